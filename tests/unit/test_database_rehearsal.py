"""Rehearsals of a restore: whether there is room for one."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from novacron.local.database_archive import BaseBackup
from novacron.local.database_backup import DatabaseBackup
from novacron.local.database_recovery import Recovery, Restorable
from novacron.local.database_rehearsal import room_problem
from novacron.local.database_wal import Coverage, WalFile

GIB = 1 << 30
SEGMENT_BYTES = 16 << 20
AT = datetime(2026, 11, 1, tzinfo=UTC)


def recovery(wal_files: int) -> Recovery:
    """Of a base backup of 1 GiB."""
    base = BaseBackup("c", "0" * 24, 1, 0, SEGMENT_BYTES, "15")
    files = tuple(WalFile(f"{number:024X}", "s", AT) for number in range(wal_files))
    return Recovery(
        Restorable(DatabaseBackup("b" * 64, AT, "host", 900, GIB, scheduled=True), base, 1, Coverage(files, AT)), None
    )


@pytest.mark.parametrize(
    ("wal_files", "total_gib", "needed_gib"),
    [(0, 10, 3 + 1), (64, 10, 3 + 1 + 1), (640, 10, 3 + 10 + 1), (64, 100, 3 + 1 + 5)],
)
def test_a_rehearsal_needs_room_for_all_wal_and_leaves_a_reserve(
    wal_files: int, total_gib: int, needed_gib: int
) -> None:
    assert room_problem(recovery(wal_files), needed_gib * GIB, total_gib * GIB) == ""
    problem = room_problem(recovery(wal_files), needed_gib * GIB - 1, total_gib * GIB)
    assert f"{wal_files * 16} MiB for {wal_files} WAL files" in problem


def test_a_backup_that_is_restored_as_it_is_needs_no_room_for_wal() -> None:
    assert recovery(640)._replace(as_it_is=True).wal_bytes == 0

"""What WAL files' names say, and which of them a restore needs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from novacron.local import database_wal
from novacron.local.database_connection import DatabaseConnection
from novacron.local.database_wal import Branch, WalFile

SIZE = 16 << 20
NOW = datetime(2026, 11, 29, 12, tzinfo=UTC)


def stored(*names: str) -> dict[str, WalFile]:
    return {name: WalFile(name, name, NOW + timedelta(seconds=n)) for n, name in enumerate(names)}


def name(timeline: int, number: int) -> str:
    return database_wal.segment_name(timeline, number, SIZE)


def names(found: database_wal.Coverage | None) -> list[str]:
    assert found is not None
    return [file.name for file in found.files]


@pytest.mark.parametrize("size", [1 << 20, SIZE, 1 << 30])
@pytest.mark.parametrize("number", [0, 1, 255, 256, 4095, 4096, 70_000])
def test_a_segments_name_gives_its_number_back(number: int, size: int) -> None:
    text = database_wal.segment_name(3, number, size)
    assert database_wal.number_of(text, size) == number and database_wal.timeline_of(text) == 3
    assert database_wal.is_wal(text) and database_wal.is_wal(text + ".partial")


def test_what_is_no_wal_file_is_none() -> None:
    for text in ("", "0" * 23, "../" + "0" * 24, "archive_status", "0" * 24 + ".tmp", "00000002.history.partial\n"):
        assert not database_wal.is_wal(text), text
    assert database_wal.is_wal("00000002.history")


def test_a_backup_is_followed_up_to_the_first_gap() -> None:
    files = stored(name(1, 3), name(1, 4), name(1, 6), name(1, 7) + ".partial")
    history = database_wal.branches(1, "")
    assert names(database_wal.coverage(3 * SIZE + 40, 1, history, files, SIZE)) == [name(1, 3), name(1, 4)]
    assert names(database_wal.coverage(6 * SIZE, 1, history, files, SIZE)) == [name(1, 6), name(1, 7) + ".partial"]
    after = database_wal.coverage(9 * SIZE + 40, 1, history, files, SIZE)
    assert after is not None and after.files == () and after.until is None


def test_a_restore_follows_the_timeline_past_the_point_where_it_began() -> None:
    history = database_wal.branches(2, "1\t0/4000100\tbefore 2026-11-29\n")
    assert history == [Branch(2, 4 * SIZE + 0x100, None), Branch(1, 0, 4 * SIZE + 0x100)]
    files = stored(name(1, 3), name(1, 4), name(1, 5), name(2, 4), name(2, 5) + ".partial", "00000002.history")
    expected = [name(1, 3), name(2, 4), name(2, 5) + ".partial"]
    assert names(database_wal.coverage(3 * SIZE + 40, 1, history, files, SIZE)) == expected
    del files[name(2, 4)]
    assert names(database_wal.coverage(3 * SIZE + 40, 1, history, files, SIZE))[:2] == [name(1, 3), name(1, 4)]
    beyond = database_wal.coverage(4 * SIZE + 0x200, 1, history, files, SIZE)
    assert beyond is None, "the backup was made on the timeline that was given up"


@pytest.mark.parametrize("text", ["one\t0/4000100", "1", "1\t4000100", "1\t0/x"])
def test_a_damaged_history_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        database_wal.branches(2, text)


def test_backups_are_kept_as_long_as_a_time_needs_them() -> None:
    bases = [(str(days), NOW - timedelta(days=days)) for days in (40, 35, 31, 29, 1)]
    assert database_wal.expired_bases(bases, NOW, timedelta(days=30)) == ["40", "35"]
    assert database_wal.expired_bases(bases[:1], NOW, timedelta(days=30)) == [], "never the last one"
    files = [name(1, 3), name(1, 4), name(2, 3) + ".partial", "00000002.history"]
    assert database_wal.superseded(files, 4, SIZE) == [name(1, 3), name(2, 3) + ".partial"]


@pytest.mark.parametrize(
    ("url", "plain", "password"),
    [
        ("postgresql://nova:s%40cret@db.example.net:5433/nova?sslmode=require",
         "postgresql://nova@db.example.net:5433/nova?sslmode=require", "s@cret"),
        ("postgresql://nova@/nova?host=/run/pg dir&password=s%20cret", "postgresql://nova@/nova?host=/run/pg%20dir",
         "s cret"),
        ("postgresql://db/nova", "postgresql://db/nova", None),
    ],
)  # fmt: skip
def test_a_password_is_in_the_environment_and_not_on_the_command_line(url: str, plain: str, password: str) -> None:
    found = DatabaseConnection.of(url)
    assert found.url == plain and found.secrets.get("PGPASSWORD") == password

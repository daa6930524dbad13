"""Damaged files of an agent's state: each costs what it says, and never the agent."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from novacron.agent import identity
from novacron.agent.vm.journal import Journal, Record
from novacron.model.errors import InvalidInput
from novacron.model.ownership import Claim, OwnershipRecord

RECORD = Record(OwnershipRecord(8, Claim.RELEASED), machine="pc")


def _old(epoch: str) -> bytes:
    return msgspec.json.encode(RECORD).replace(b'"epoch":8', b'"epoch":' + epoch.encode())


@pytest.mark.parametrize(
    "content", [_old("-8"), _old("9" * 18), _old("9" * 50), _old("8") + b" " * (1 << 20)],
    ids=["negative", "large", "huge", "long"],
)  # fmt: skip
def test_an_epoch_or_a_size_that_cannot_be_is_damage(tmp_path: Path, content: bytes) -> None:
    Journal(tmp_path).store("vm-b", RECORD)
    (tmp_path / "vm-a.json").write_bytes(content)
    records = Journal(tmp_path).load()
    assert records["vm-a"].damaged
    assert records["vm-b"] == RECORD


def test_a_record_that_cannot_be_read_leaves_the_others(tmp_path: Path) -> None:
    Journal(tmp_path).store("vm-b", RECORD)
    (tmp_path / "vm-a.json").symlink_to(tmp_path / "vm-a.json")  # ELOOP, also for root
    records = Journal(tmp_path).load()
    assert records["vm-a"].damaged
    assert records["vm-b"] == RECORD


@pytest.mark.parametrize("content", [b"{}", b"\xff", b"[" * 100_000], ids=["empty", "UTF-8", "deep"])
def test_a_damaged_identity_says_what_to_do(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "identity.json").write_bytes(content)
    with pytest.raises(InvalidInput, match="is damaged"):
        identity.load(tmp_path)

"""What an agent remembers through its own death."""

from __future__ import annotations

import os
import time
from pathlib import Path

import msgspec
import pytest

from novacron.agent.vm.journal import FORGET_AFTER_S, Journal, Record, obey_order
from novacron.model.ownership import Claim, Order, OrderKind, OrderVerdict, OwnershipRecord, may_run


def test_a_record_comes_back_as_it_was_stored(tmp_path: Path) -> None:
    record = Record(OwnershipRecord(3, Claim.RELEASED), machine="pc-i440fx-7.2", reboots=2, migration="mig-a")
    Journal(tmp_path).store("vm-a", record)
    assert Journal(tmp_path).load() == {"vm-a": record}
    assert Journal(tmp_path).load_one("vm-a") == record


def test_a_vm_never_heard_of_has_an_empty_record(tmp_path: Path) -> None:
    assert Journal(tmp_path).load_one("vm-a") == Record()


def test_a_write_cut_short_leaves_the_record_before_it(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.store("vm-a", Record(OwnershipRecord(1, Claim.OWNER)))
    (tmp_path / "vm-a.new").write_bytes(b'{"held": {"ep')
    assert Journal(tmp_path).load() == {"vm-a": Record(OwnershipRecord(1, Claim.OWNER))}


RECORD = Record(OwnershipRecord(3, Claim.RELEASED), machine="pc-i440fx-7.2", reboots=2, migration="mig-a")


def damaged_contents() -> list[bytes]:
    whole = msgspec.json.encode(RECORD)
    torn = [whole[:length] for length in range(1, len(whole), 7)]
    return [b"", b"garbage", bytes(len(whole)), os.urandom(64), b"{}", b"[]", b"null", b'{"held":{}}', *torn]


@pytest.mark.parametrize("content", damaged_contents(), ids=lambda content: f"{len(content)} bytes")
def test_a_vm_whose_record_is_damaged_does_not_run_before_a_later_epoch(tmp_path: Path, content: bytes) -> None:
    """What is lost may have been the promise not to run it at this very epoch."""
    (tmp_path / "vm-a.json").write_bytes(content)
    record = Journal(tmp_path).load()["vm-a"]
    assert record.damaged
    for _ in range(3):  # however often the server repeats it
        record, verdict = obey_order(record, Order(OrderKind.OWN, 3))
        assert verdict is OrderVerdict.HOLD
        assert not may_run(record.held)
    for kind, refused in ((OrderKind.GONE, OrderVerdict.HOLD), (OrderKind.RECEIVE, OrderVerdict.IGNORE)):
        assert obey_order(record, Order(kind, 3)) == (record, refused)
    record, verdict = obey_order(record, Order(OrderKind.OWN, 4))
    assert (verdict, record.held, record.damaged) == (OrderVerdict.RUN, OwnershipRecord(4, Claim.OWNER), False)


@pytest.mark.parametrize(
    "content",
    [b'{"held":{"epoch":3,"claim":"released"},"machine":"\xff"}', b'{"a":' * 100_000,
     b'{"held":{"epoch":-1,"claim":"none"}}'],
    ids=["no UTF-8", "nested too deeply", "a negative epoch"],
)  # fmt: skip
def test_a_record_that_no_decoder_takes_is_damaged(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "vm-a.json").write_bytes(content)
    assert Journal(tmp_path).load()["vm-a"].damaged


def test_a_directory_in_place_of_a_record_is_set_aside(tmp_path: Path) -> None:
    (tmp_path / "vm-a.json").mkdir()
    assert Journal(tmp_path).load()["vm-a"].damaged


def test_a_damaged_record_of_a_vm_that_was_deleted_keeps_nothing_of_it(tmp_path: Path) -> None:
    (tmp_path / "vm-a.json").write_bytes(b"{}")
    record, verdict = obey_order(Journal(tmp_path).load_one("vm-a"), Order(OrderKind.GONE, 3), deleted=True)
    assert (verdict, record.held, record.damaged) == (OrderVerdict.DESTROY, OwnershipRecord(3, Claim.NONE), False)


def test_a_flipped_bit_does_not_undo_a_promise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """RELEASED at epoch 8 with one bit flipped was RELEASED at 0, which lets the node run the VM at 8."""
    Journal(tmp_path).store("vm-a", Record(OwnershipRecord(8, Claim.RELEASED), machine="pc-i440fx-7.2"))
    monkeypatch.setattr(os, "fsync", lambda _: None)
    path = tmp_path / "vm-a.json"
    whole = path.read_bytes()
    for bit in range(8 * len(whole)):
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        record = Journal(tmp_path).load_one("vm-a")
        assert record.damaged or record.held == OwnershipRecord(8, Claim.RELEASED), bytes(changed)
        path.with_suffix(".damaged").unlink(missing_ok=True)


def test_a_record_without_a_checksum_is_read(tmp_path: Path) -> None:
    (tmp_path / "vm-a.json").write_bytes(msgspec.json.encode(RECORD))
    assert Journal(tmp_path).load_one("vm-a") == RECORD


def test_damage_is_remembered_through_the_agents_own_death(tmp_path: Path) -> None:
    (tmp_path / "vm-a.json").write_bytes(b"garbage")
    assert Journal(tmp_path).load_one("vm-a").damaged
    journal = Journal(tmp_path)
    record, _ = obey_order(journal.load()["vm-a"], Order(OrderKind.OWN, 3))
    journal.store("vm-a", record)
    _, verdict = obey_order(Journal(tmp_path).load()["vm-a"], Order(OrderKind.OWN, 3))
    assert verdict is OrderVerdict.HOLD


def test_a_record_that_an_earlier_agent_set_aside_still_counts_as_damaged(tmp_path: Path) -> None:
    (tmp_path / "vm-a.damaged").write_bytes(b"garbage")
    assert Journal(tmp_path).load()["vm-a"].damaged
    (tmp_path / "vm-b.damaged").write_bytes(b"garbage")
    assert Journal(tmp_path).load_one("vm-b").damaged


def test_a_damaged_record_is_kept_for_whoever_looks_into_it(tmp_path: Path) -> None:
    (tmp_path / "vm-a.json").write_bytes(b"garbage")
    Journal(tmp_path).load()
    Journal(tmp_path).load()
    assert (tmp_path / "vm-a.damaged").read_bytes() == b"garbage"


def test_only_records_of_vms_gone_long_ago_are_removed(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.store("vm-gone", Record(OwnershipRecord(2, Claim.NONE)))
    journal.store("vm-owned", Record(OwnershipRecord(2, Claim.OWNER)))
    journal.store("vm-fresh", Record(OwnershipRecord(2, Claim.NONE)))
    old = time.time() - FORGET_AFTER_S - 10
    for vm in ("vm-gone", "vm-owned"):
        os.utime(tmp_path / f"{vm}.json", (old, old))
    assert set(journal.load()) == {"vm-owned", "vm-fresh"}

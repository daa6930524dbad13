"""What an agent remembers through its own death."""

from __future__ import annotations

import os
import time
from pathlib import Path

from novacron.agent.vm.journal import FORGET_AFTER_S, Journal, Record
from novacron.model.ownership import Claim, Held


def test_a_record_comes_back_as_it_was_stored(tmp_path: Path) -> None:
    record = Record(Held(3, Claim.RELEASED), machine="pc-i440fx-7.2", reboots=2, migration="mig-a")
    Journal(tmp_path).store("vm-a", record)
    assert Journal(tmp_path).load() == {"vm-a": record}
    assert Journal(tmp_path).load_one("vm-a") == record


def test_a_vm_never_heard_of_has_an_empty_record(tmp_path: Path) -> None:
    assert Journal(tmp_path).load_one("vm-a") == Record()


def test_a_write_cut_short_leaves_the_record_before_it(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.store("vm-a", Record(Held(1, Claim.OWNER)))
    (tmp_path / "vm-a.new").write_bytes(b'{"held": {"ep')
    assert Journal(tmp_path).load() == {"vm-a": Record(Held(1, Claim.OWNER))}


def test_a_damaged_record_is_kept_for_whoever_looks_into_it(tmp_path: Path) -> None:
    (tmp_path / "vm-a.json").write_bytes(b"garbage")
    assert Journal(tmp_path).load() == {}
    assert (tmp_path / "vm-a.damaged").read_bytes() == b"garbage"


def test_only_vms_that_are_long_gone_are_forgotten(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.store("vm-gone", Record(Held(2, Claim.NONE)))
    journal.store("vm-owned", Record(Held(2, Claim.OWNER)))
    journal.store("vm-fresh", Record(Held(2, Claim.NONE)))
    old = time.time() - FORGET_AFTER_S - 10
    for vm in ("vm-gone", "vm-owned"):
        os.utime(tmp_path / f"{vm}.json", (old, old))
    assert set(journal.load()) == {"vm-owned", "vm-fresh"}

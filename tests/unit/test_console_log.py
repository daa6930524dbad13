"""What a guest printed: within limits, and of an encrypted VM on the disk only encrypted."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from novacron.agent.vm import console_log
from novacron.agent.vm.console_log import DAMAGED, ENCRYPTED, OLDER_ENCRYPTED, ConsoleLog, EncryptedLog
from novacron.model.encryption import DataKey
from tests.support.plain import files_with

KEY = DataKey("key-0123456789abcdef", bytes(range(32)))
OTHER = DataKey("key-0123456789abcdef", bytes(32))


def printed(log: ConsoleLog, text: bytes, key: DataKey | None = KEY) -> None:
    """Have a guest print something, as its QEMU writes it."""
    descriptor = log.begin(key)
    assert descriptor is not None
    os.write(descriptor, text)
    os.close(descriptor)


def test_what_a_guest_of_an_encrypted_vm_prints_is_on_no_disk_in_the_clear(tmp_path: Path) -> None:
    log = ConsoleLog(tmp_path, "vm-1")
    printed(log, b"MARKER one\n")
    assert log.read(100, KEY) == b"MARKER one\n" and not list(tmp_path.iterdir())
    log.keep(KEY)
    printed(log, b"MARKER two\n")
    assert log.read(100, KEY) == b"MARKER one\nMARKER two\n"
    log.keep(KEY)
    assert [path.name for path in tmp_path.iterdir()] == [ENCRYPTED] and files_with(tmp_path, b"MARKER") == set()
    assert log.read(100, KEY) == b"MARKER one\nMARKER two\n" and log.read(4, KEY) == b"two\n"
    assert (tmp_path / ENCRYPTED).stat().st_mode & 0o777 == 0o600
    assert ConsoleLog(tmp_path, "vm-1").read(100, KEY) == b"MARKER one\nMARKER two\n", "a later agent reads it"
    with pytest.raises(OSError, match="its node does not have the key"):
        ConsoleLog(tmp_path, "vm-1").read(100, None)
    assert b"MARKER" not in ConsoleLog(tmp_path, "vm-1").read(100, OTHER)
    assert b"MARKER" not in ConsoleLog(tmp_path, "vm-2").read(100, KEY), "it is another VM's"


def test_a_vm_whose_disk_is_not_encrypted_has_a_log_that_qemu_writes(tmp_path: Path) -> None:
    log = ConsoleLog(tmp_path, "vm-1")
    assert log.begin(None) is None
    (tmp_path / "console.log").write_bytes(b"plain\n")
    log.keep(None)
    assert log.read(100, None) == b"plain\n"


def test_without_the_key_what_is_printed_stays_in_memory_and_within_its_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console_log, "BYTES_MAX", 1000)
    before = ConsoleLog(tmp_path, "vm-adopted")
    printed(before, b"MARKER")
    log = ConsoleLog(tmp_path, "vm-adopted")  # an agent that was started again: the server has not said anything yet
    log.adopt(os.getpid())
    log.keep(None)
    assert not list(tmp_path.iterdir()) and log.read(100, KEY) == b"MARKER"
    printed(before, b"x" * 5000 + b"end")
    log.keep(None)
    assert not list(tmp_path.iterdir())
    log.keep(KEY)
    assert log.read(5000, KEY) == b"x" * 997 + b"end"
    before.drop()
    log.drop()


def test_what_an_earlier_agent_logged_in_the_clear_is_encrypted_at_the_next_start(tmp_path: Path) -> None:
    (tmp_path / "console.log.1").write_bytes(b"MARKER first\n")
    (tmp_path / "console.log").write_bytes(b"MARKER second\n")
    log = ConsoleLog(tmp_path, "vm-1")
    log.keep(KEY)
    assert log.read(100, KEY) == b"MARKER first\nMARKER second\n", "its QEMU goes on as it was started"
    printed(log, b"third\n")
    assert files_with(tmp_path, b"MARKER") == set()
    assert log.read(100, KEY) == b"MARKER first\nMARKER second\nthird\n"


def test_a_damaged_or_cut_frame_costs_what_was_in_it(tmp_path: Path) -> None:
    log, path = EncryptedLog(tmp_path, "vm-1"), tmp_path / ENCRYPTED
    for text in (b"first\n", b"second\n", b"third\n"):
        log.append(KEY, text)
    whole = path.read_bytes()
    path.write_bytes(whole[:70] + bytes([whole[70] ^ 1]) + whole[71:])
    assert log.read(KEY, 1000) in (DAMAGED + b"second\nthird\n", b"first\n" + DAMAGED + b"third\n")
    path.write_bytes(whole[:-3])
    again = EncryptedLog(tmp_path, "vm-1")
    assert again.read(KEY, 1000) == b"first\nsecond\n"
    again.append(KEY, b"fourth\n")
    assert again.read(KEY, 1000) == b"first\nsecond\nfourth\n"


def test_a_frame_that_is_moved_within_its_file_or_to_another_does_not_open(tmp_path: Path) -> None:
    log, path = EncryptedLog(tmp_path, "vm-1"), tmp_path / ENCRYPTED
    for text in (b"one", b"two"):
        log.append(KEY, text)
    raw, head = path.read_bytes(), console_log.HEAD_BYTES
    half = (len(raw) - head) // 2
    path.write_bytes(raw[:head] + raw[head + half :] + raw[head : head + half])
    assert log.read(KEY, 1000) == DAMAGED * 2


def test_an_encrypted_log_begins_anew_when_it_is_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console_log, "BYTES_MAX", 1000)
    log = EncryptedLog(tmp_path, "vm-1")
    for number in range(20):
        log.append(KEY, f"{number:03}".encode() * 100)
    assert (tmp_path / OLDER_ENCRYPTED).exists()
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 3000
    assert log.read(KEY, 600) == b"018" * 100 + b"019" * 100


def test_a_full_disk_loses_nothing_that_was_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left on device")

    log = ConsoleLog(tmp_path, "vm-1")
    printed(log, b"printed\n")
    with monkeypatch.context() as disk:
        disk.setattr(EncryptedLog, "append", full)
        with pytest.raises(OSError, match="no space"):
            log.keep(KEY)
    printed(log, b"later\n")
    log.keep(KEY)
    assert EncryptedLog(tmp_path, "vm-1").read(KEY, 100) == b"printed\nlater\n"

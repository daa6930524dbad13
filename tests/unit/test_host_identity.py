"""A state folder that was copied to another host."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from novacron.agent.host import host_identity
from novacron.agent.host.host_identity import HostIdentity, check, note, of_this_host
from novacron.model.errors import InvalidInput

A, B = "4c4c4544-0043-3510-8052-b4c04f564d31", "4c4c4544-0043-3510-8052-b4c04f564d32"
SYSTEM_A, SYSTEM_B = "0123456789abcdef0123456789abcdea", "0123456789abcdef0123456789abcdeb"


class Host:
    """What a host says of itself."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = directory / "host.json"
        self._hardware, self._system = directory / "product_uuid", directory / "machine-id"
        monkeypatch.setattr(host_identity, "PRODUCT_UUID", self._hardware)
        monkeypatch.setattr(host_identity, "MACHINE_ID", self._system)

    def is_(self, hardware: str, system: str) -> None:
        self._hardware.write_text(f"{hardware}\n")
        self._system.write_text(f"{system}\n")

    def begins(self) -> bool:
        """Say whether an agent begins here with the folder."""
        try:
            check(self.folder)
        except InvalidInput as error:
            assert "comes from another host" in str(error) and "--state-moved" in str(error.hint)
            return False
        return True


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("was", "now", "begins"),
    [
        ((A, SYSTEM_A), (A, SYSTEM_A), True),
        ((A, SYSTEM_A), (A, SYSTEM_B), True),  # installed anew
        ((A, SYSTEM_A), (B, SYSTEM_B), False),
        ((A, SYSTEM_A), (B, SYSTEM_A), False),  # a disk that was cloned, or another mainboard
        (("", SYSTEM_A), ("", SYSTEM_A), True),
        (("", SYSTEM_A), ("", SYSTEM_B), False),
        (("", SYSTEM_A), (A, SYSTEM_A), True),
        (("", SYSTEM_A), (A, SYSTEM_B), False),
        ((A, SYSTEM_A), ("", SYSTEM_A), True),  # not root this time
        ((A, ""), ("", SYSTEM_A), True),  # can't be told apart
        (("", ""), (A, SYSTEM_A), True),
        (("00000000-0000-0000-0000-000000000000", SYSTEM_A), ("00000000-0000-0000-0000-000000000000", SYSTEM_B), False),
        (("03000200-0400-0500-0006-000700080009", SYSTEM_A), ("03000200-0400-0500-0006-000700080009", SYSTEM_B), False),
        (("Not Specified", SYSTEM_A), ("Not Specified", SYSTEM_A), True),
    ],
)
def test_an_agent_begins_on_the_host_of_its_state_folder_alone(
    host: Host, was: tuple[str, str], now: tuple[str, str], *, begins: bool
) -> None:
    host.is_(*was)
    assert host.begins()
    host.is_(*now)
    assert host.begins() is begins
    assert host.begins() is begins, "it stays so"


def test_more_that_is_known_later_is_noted_and_less_does_not_take_its_place(host: Host) -> None:
    host.is_("", SYSTEM_A)
    assert host.begins()
    host.is_(A, SYSTEM_A)
    assert host.begins()
    host.is_("", SYSTEM_A)
    assert host.begins()
    host.is_(B, SYSTEM_A)
    assert not host.begins()


def test_an_operator_says_that_the_folder_was_moved_for_good(host: Host) -> None:
    host.is_(A, SYSTEM_A)
    assert host.begins()
    host.is_(B, SYSTEM_B)
    note(host.folder)
    assert host.begins()
    host.is_(A, SYSTEM_A)
    assert not host.begins(), "its former host does not begin again"


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"\0" * 40])
def test_a_damaged_note_is_no_reason_to_begin(host: Host, damage: bytes) -> None:
    host.is_(A, SYSTEM_A)
    host.folder.write_bytes(damage)
    with pytest.raises(InvalidInput, match="can't be read"):
        check(host.folder)


def test_the_ids_themselves_are_not_written_down(host: Host) -> None:
    host.is_(A, SYSTEM_A)
    assert host.begins()
    stored = json.loads(host.folder.read_text())
    assert set(stored) == {"hardware", "system"} and not {A, SYSTEM_A} & set(stored.values())


def test_what_this_machine_says_of_itself_is_the_same_each_time() -> None:
    assert of_this_host() == of_this_host() and of_this_host().same(HostIdentity())

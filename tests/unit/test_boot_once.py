"""A guest boots once from what was chosen for its next start, whatever ends it."""

from __future__ import annotations

import pytest

from novacron.model.devices import BootDevice
from novacron.model.vm import VmSpec
from novacron.qemu.boot import boots_once_from, for_start
from novacron.store.media import booting_once


@pytest.mark.parametrize(
    ("starts", "at", "booted_once_at", "once"),
    [
        (1, 1, -1, True),
        (1, 1, 0, True),
        (1, 1, 1, False),  # it crashed, was reset onto more memory, or starts on another node
        (2, 1, 1, False),
        (2, 1, -1, False),  # the start for which it was chosen is over
        (1, 2, 1, False),  # chosen for the next start
        (2, 2, 1, True),
        (2, 2, 2, False),
        (1, 1, 5, False),  # the database is older than what the node knows
        (0, 0, -1, True),
    ],
)
def test_a_guest_boots_once_from_what_was_chosen_for_its_start(
    starts: int, at: int, booted_once_at: int, once: bool
) -> None:
    spec = VmSpec(image="tiny", starts=starts, boot_once=BootDevice.CDROM, boot_once_at=at)
    assert (boots_once_from(for_start(spec, booted_once_at)) is BootDevice.CDROM) is once


def test_what_is_chosen_while_a_guest_runs_is_for_its_next_start() -> None:
    spec = booting_once(VmSpec(image="tiny", starts=3, boot_once=BootDevice.DISK), 4)
    assert boots_once_from(for_start(spec, 3)) is None

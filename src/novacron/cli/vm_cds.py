"""``novacron vm insert`` and ``vm eject``: what is in a VM's CD-ROM drives."""

from __future__ import annotations

from typing import Annotated

import typer

from novacron.cli import output
from novacron.cli.vms import VmRef
from novacron.client import Client
from novacron.terminal import say

Drive = Annotated[int, typer.Option(min=1, max=2, help="which of its CD-ROM drives")]


def insert(
    vm: VmRef,
    iso: Annotated[str, typer.Argument(help="ISO, see: novacron image list", show_default=False)],
    drive: Drive = 1,
) -> None:
    """Put an ISO into a CD-ROM drive of a VM, instead of what is there."""
    _change_cd(vm, drive, iso)


def eject(vm: VmRef, drive: Drive = 1) -> None:
    """Take out what is in a CD-ROM drive of a VM, even if the guest has locked it."""
    _change_cd(vm, drive, None)


def _change_cd(vm: str, drive: int, iso: str | None) -> None:
    with output.errors():
        client = Client()
        found = client.get("vms", vm)
        drives = found["spec"]["cdroms"]
        if drive > len(drives):
            has = "no CD-ROM drive" if not drives else f"{len(drives)} CD-ROM drive{'s' if len(drives) > 1 else ''}"
            raise output.fail(f"{vm} has {has}; while it is off: novacron vm set {vm} --cd ISO", output.EXIT_FAILED)
        drives[drive - 1]["iso"] = iso
        client.configure_vm(found["id"], cdroms=drives)
        say(f"{vm}: drive {drive} {'is to be empty' if iso is None else f'is to hold {iso}'}")

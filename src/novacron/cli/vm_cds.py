"""``novacron vm insert`` and ``vm eject``: what is in a VM's CD-ROM drives."""

from __future__ import annotations

from typing import Annotated

import typer

from novacron.cli import output, updates
from novacron.cli.output import Object
from novacron.cli.vms import VmRef
from novacron.client import Client
from novacron.terminal import say

Drive = Annotated[int, typer.Option(min=1, max=2, help="which of its CD-ROM drives")]


def insert(
    vm: VmRef,
    iso: Annotated[str, typer.Argument(help="ISO, see: novacron image list", show_default=False)],
    drive: Drive = 1,
) -> None:
    """Insert an ISO into a CD-ROM drive of a VM, replacing the current disc."""
    _change_cd(vm, drive, iso)


def eject(vm: VmRef, drive: Drive = 1) -> None:
    """Eject the disc from a CD-ROM drive of a VM, even if the guest has locked the drive."""
    _change_cd(vm, drive, None)


def _change_cd(vm: str, drive: int, iso: str | None) -> None:
    with output.errors():
        updates.update(Client(), "vms", vm, lambda found: _with_cd(found, drive, iso))
        say(f"{vm}: drive {drive} {'is to be empty' if iso is None else f'is to hold {iso}'}")


def _with_cd(vm: Object, drive: int, iso: str | None) -> Object:
    """Return the change of a VM in one of whose drives another ISO is to be. Raises typer.Exit."""
    drives, name = vm["spec"]["cdroms"], vm["name"]
    if drive > len(drives):
        has = "no CD-ROM drive" if not drives else f"{len(drives)} CD-ROM drive{'s' if len(drives) > 1 else ''}"
        raise output.fail(f"{name} has {has}; while it is off: novacron vm set {name} --cd ISO", output.EXIT_FAILED)
    return {"cdroms": [{**has, "iso": iso} if number == drive else has for number, has in enumerate(drives, 1)]}

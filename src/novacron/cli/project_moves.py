"""``novacron vm move-to-project``, and the same for volumes and images."""

from __future__ import annotations

from typing import Annotated

import typer

from novacron.cli import output
from novacron.client import Client
from novacron.terminal import say

Project = Annotated[str, typer.Argument(help="name of the other project", show_default=False)]


def vm(
    vm: Annotated[str, typer.Argument(metavar="vm", help="name or id of the VM", show_default=False)], project: Project
) -> None:
    """Move a VM that is off, with its volumes and snapshots, to another project."""
    with output.errors():
        say(f"{Client().move_to_project('vms', vm, project)['name']}: is project {project}'s")


def volume(
    volume: Annotated[str, typer.Argument(help="name or id of the volume", show_default=False)], project: Project
) -> None:
    """Move a volume that is attached to no VM to another project."""
    with output.errors():
        say(f"{Client().move_to_project('volumes', volume, project)['name']}: is project {project}'s")


def image(
    name: Annotated[str, typer.Argument(help="name of the image", show_default=False)],
    project: Annotated[str | None, typer.Argument(help="its new project; default: available to all projects")] = None,
) -> None:
    """Move an image to a project, or make it available to all projects."""
    with output.errors():
        owner = Client().move_to_project("images", name, project)["project"]
        say(f"{name}: is {'everybody' if owner is None else f'project {owner}'}'s")

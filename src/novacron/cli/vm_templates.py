"""``novacron flavor`` and ``novacron template``: what new VMs begin with."""

from __future__ import annotations

from typing import Annotated

import typer

from novacron.cli import metadata, options, output, updates
from novacron.cli.names import names_of
from novacron.cli.output import Columns, Object, Output, OutputFormat
from novacron.cli.vm_options import TEMPLATE_OPTIONS, labels
from novacron.client import Client
from novacron.terminal import say

flavors = typer.Typer(no_args_is_help=True, help="Manage flavors: sizes of VMs, for vm create --flavor.")
templates = typer.Typer(no_args_is_help=True, help="Manage templates of VMs, for vm create --template.")

FlavorName = Annotated[
    str, typer.Argument(help="name of the flavor", autocompletion=names_of("flavors"), show_default=False)
]
TemplateName = Annotated[
    str, typer.Argument(help="name of the template", autocompletion=names_of("templates"), show_default=False)
]
Shared = Annotated[bool, typer.Option("--shared", help="for all projects")]

FLAVORS: Columns = {
    "NAME": lambda f: f["name"],
    "CPUS": lambda f: f["spec"]["vcpus"],
    "MEMORY": lambda f: f"{f['spec']['memory_mib']} MiB",
    "DISK": lambda f: f"{f['spec']['disk_mib']} MiB" if f["spec"]["disk_mib"] else "of the image",
    "LABELS": lambda f: [f"{key}={value}" for key, value in f["spec"]["labels"].items()],
    "PROJECT": lambda f: f["project"] or "all",
    "AGE": lambda f: output.age(f["created_at"]),
}
TEMPLATES: Columns = {
    "NAME": lambda t: t["name"],
    "IMAGE": lambda t: t["spec"].get("image"),
    "NETWORKS": lambda t: [nic["network"] for nic in t["spec"].get("nics", ())],
    "PROJECT": lambda t: t["project"] or "all",
    "AGE": lambda t: output.age(t["created_at"]),
}
SETS: Columns = {"SETS": lambda t: [f"{field} {_in_words(value)}" for field, value in t["spec"].items()]}

SIZE_OPTIONS = (
    options.option("vcpus", int, help="virtual CPUs"),
    options.option("memory_mib", str, "--memory", help="memory, such as 4G", convert=output.parse_mib, metavar="SIZE"),
    options.option(
        "disk_mib", str, "--disk", help="size of the disk, such as 20G; by default the image's",
        convert=output.parse_mib, metavar="SIZE",
    ),
    options.option(
        "labels", list[str], "--require-label", convert=labels,
        help="KEY=VALUE that the node must have as a label; can be repeated",
    ),
)  # fmt: skip


def _in_words(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(_in_words(item) for item in value) or "none"
    if isinstance(value, dict):
        return " ".join(f"{key}={_in_words(item)}" for key, item in value.items() if item) or "none"
    return "none" if value is None else str(value)


def _configure(kind: str, name: str, changes: Object, described: Object) -> None:
    """Change a flavor or template, whose spec the API replaces as a whole. Raises ApiError, typer.BadParameter."""
    if not changes and not described:
        raise typer.BadParameter("nothing to change: specify an option")
    updates.update(Client(), kind, name, lambda now: described | (
        {"spec": {**now["spec"], **changes}} if changes else {}
    ))  # fmt: skip
    say(f"{name}: changed")


@flavors.command("list")
def list_flavors(tag: metadata.TagFilter = None, output_: Output = OutputFormat.TABLE) -> None:
    """List flavors."""
    with output.errors():
        output.rows(Client().list("flavors", **metadata.filters(tag)), FLAVORS, output_)


@flavors.command("show")
def show_flavor(name: FlavorName, output_: Output = OutputFormat.TABLE) -> None:
    """Show a flavor."""
    with output.errors():
        output.fields(Client().get("flavors", name), {**FLAVORS, **metadata.COLUMNS}, output_)


@flavors.command("create")
@options.expand
def create_flavor(
    name: Annotated[str, typer.Argument(help="lower-case letters, digits and hyphens", show_default=False)],
    spec: Annotated[Object, SIZE_OPTIONS],
    shared: Shared = False,
) -> None:
    """Create a flavor: a predefined VM size."""
    with output.errors():
        say(f"{Client().create_flavor(name, spec, shared=shared)['name']}: created")


@flavors.command("set")
@options.expand
def set_flavor(name: FlavorName, changes: Annotated[Object, SIZE_OPTIONS], described: metadata.Changes) -> None:
    """Change a flavor, which affects new VMs only, or its description and tags."""
    with output.errors():
        _configure("flavors", name, changes, described)


@flavors.command("delete")
def delete_flavor(name: FlavorName) -> None:
    """Delete a flavor. VMs that were created with it stay as they are."""
    with output.errors():
        Client().delete("flavors", name)
        say(f"{name}: deleted")


@templates.command("list")
def list_templates(tag: metadata.TagFilter = None, output_: Output = OutputFormat.TABLE) -> None:
    """List templates."""
    with output.errors():
        output.rows(Client().list("templates", **metadata.filters(tag)), TEMPLATES, output_)


@templates.command("show")
def show_template(name: TemplateName, output_: Output = OutputFormat.TABLE) -> None:
    """Show a template, with all fields that it sets."""
    with output.errors():
        output.fields(Client().get("templates", name), {**TEMPLATES, **SETS, **metadata.COLUMNS}, output_)


@templates.command("create")
@options.expand
def create_template(
    name: Annotated[str, typer.Argument(help="lower-case letters, digits and hyphens", show_default=False)],
    spec: Annotated[Object, TEMPLATE_OPTIONS],
    vm: Annotated[
        str | None,
        typer.Option(
            help="copy the settings of this VM, without its name and addresses", autocompletion=names_of("vms")
        ),
    ] = None,
    shared: Shared = False,
) -> None:
    """Create a template of VMs, from options or from a VM."""
    with output.errors():
        made = Client().create_template(name, spec or (None if vm else {}), vm=vm, shared=shared)
        say(f"{made['name']}: created")


@templates.command("set")
@options.expand
def set_template(name: TemplateName, changes: Annotated[Object, TEMPLATE_OPTIONS], described: metadata.Changes) -> None:
    """Change a template, which affects new VMs only, or its description and tags."""
    with output.errors():
        _configure("templates", name, changes, described)


@templates.command("delete")
def delete_template(name: TemplateName) -> None:
    """Delete a template. VMs that were created with it stay as they are."""
    with output.errors():
        Client().delete("templates", name)
        say(f"{name}: deleted")

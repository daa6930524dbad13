"""Writes the files that follow from others: run it with ``script/generate``; a test fails while one is out of date."""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import sys
import types
from collections.abc import Iterator
from enum import Enum, StrEnum
from pathlib import Path
from typing import cast

import msgspec
import msgspec.inspect
from litestar import Litestar
from litestar.handlers import HTTPRouteHandler

from lab import bodies, feature_matrix, reasons_page, runbooks_index, settings_page
from lab.documents import table as executed_commands
from novacron.api.access.context import Services
from novacron.api.app import create_app
from novacron.api.edge import openapi
from novacron.model import (
    audit,
    capacity_forecast,
    constraints,
    cpu,
    devices,
    drain,
    drill,
    image,
    key,
    migration,
    network,
    rebalance,
    vm,
)

ROOT = Path(__file__).parents[1]
PRESET_FIELDS = ("vcpus", "memory_mib", "firmware", "tpm", "disk_bus", "nic_model")
"""The fields of a VM whose default depends on its operating system."""
OPENAPI = ROOT / "docs/reference/openapi.json"
CLIENT = ROOT / "src/novacron/client"
BY_HAND = {"__init__.py", "transport.py"}
TO_SYNC = (
    (r"\b(async|await) ", ""),
    (r"\bAsync([A-Z])", r"\1"),
    (r"__a(enter|exit)__", r"__\1__"),
    (r"\bclient\.aio\b", "client.sync"),
)
"""What a call for asyncio has that a blocking one has not."""
CHOICES: tuple[type[StrEnum], ...] = (
    constraints.AntiAffinityScope,
    devices.BootDevice,
    devices.CpuPolicy,
    devices.DiskBus,
    devices.HugePages,
    devices.NicModel,
    devices.Os,
    audit.AuditOutcome,
    capacity_forecast.CapacityResource,
    cpu.CpuKind,
    vm.Display,
    drain.DrainPolicy,
    drill.DrillName,
    drill.DrillVerdict,
    network.Encryption,
    network.Ipv6Addresses,
    vm.Firmware,
    image.ImageFormat,
    key.KeyName,
    migration.MigrationPolicy,
    vm.Power,
    rebalance.RebalanceBasis,
    rebalance.RebalanceMode,
    vm.Restart,
)
"""Enums of the model that the client has too."""
CHOICES_HEAD = '''"""The model's enums and a VM's fields, for programs that can't wait for the model to load.

Made of ``novacron.model`` by script/generate: change that, and run it.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple


class VmField(NamedTuple):
    """A field of ``POST /api/v1/vms``."""

    type: type
    default: object
    changeable: bool
    """``PATCH`` takes it too."""
    clearable: bool
    """... and null, which removes a limit."""
    by_os: bool = False
    """Left out, it depends on the operating system."""

'''


def sync_client() -> dict[Path, str]:
    """Return the blocking calls, made of those for asyncio."""
    files = {}
    for source in sorted((CLIENT / "aio").glob("*.py")):
        if source.name in BY_HAND:
            continue
        text = source.read_text()
        for pattern, replacement in TO_SYNC:
            text = re.sub(pattern, replacement, text)
        note = f"# Made of aio/{source.name} by script/generate: change that, and run it.\n"
        files[CLIENT / "sync" / source.name] = _formatted(note + text)
    return files


def choices() -> str:
    """Return a module with the model's enums and a VM's fields that the client can load fast."""
    lines = [CHOICES_HEAD]
    for enum in CHOICES:
        name = enum.__name__
        lines += [f"class {name}(StrEnum):", f'    """{(enum.__doc__ or name).splitlines()[0]}"""', ""]
        lines += [f'    {member.name} = "{member.value}"' for member in enum] + ["", ""]
    lines.append("VM_FIELDS: dict[str, VmField] = {")
    changes = {field.name: field for field in msgspec.structs.fields(vm.VmChanges)}
    for field in msgspec.structs.fields(vm.VmFields):
        type_ = _type(field.type)
        if type_ is not None and field.default is not msgspec.NODEFAULT:
            changeable = field.name in changes
            clearable = changeable and type(None) in _members(changes[field.name].type)
            default = () if type_ == "list" else field.default
            by_os = ", True" if field.name in PRESET_FIELDS else ""
            value = f"{type(default).__name__}.{default.name}" if isinstance(default, Enum) else repr(default)
            lines.append(f'    "{field.name}": VmField({type_}, {value}, {changeable}, {clearable}{by_os}),')
    return _formatted("\n".join([*lines, "}", '"""Those with a default and of a simple type."""', ""]))


def _members(annotation: object) -> set[object]:
    return set(getattr(annotation, "__args__", (annotation,)))


def _type(annotation: object) -> str | None:
    """Return the name of the type that a command's option has; None: it takes more than an option."""
    kinds = {type(kind): kind for kind in _kinds(msgspec.inspect.type_info(annotation))}
    for simple, name in ((msgspec.inspect.IntType, "int"), (msgspec.inspect.BoolType, "bool")):
        if simple in kinds:
            return name
    enum = kinds.get(msgspec.inspect.EnumType)
    if isinstance(enum, msgspec.inspect.EnumType):
        return enum.cls.__name__
    array = kinds.get(msgspec.inspect.VarTupleType)
    if isinstance(array, msgspec.inspect.VarTupleType):
        return "list" if isinstance(array.item_type, msgspec.inspect.StrType | msgspec.inspect.EnumType) else None
    return "str" if msgspec.inspect.StrType in kinds else None


def _kinds(kind: msgspec.inspect.Type) -> list[msgspec.inspect.Type]:
    kinds = list(kind.types) if isinstance(kind, msgspec.inspect.UnionType) else [kind]
    return [kind.type if isinstance(kind, msgspec.inspect.Metadata) else kind for kind in kinds]


def generated() -> dict[Path, str]:
    """Return all generated files with their text."""
    return {
        **sync_client(),
        CLIENT / "choices.py": choices(),
        CLIENT / "bodies.py": _formatted(bodies.module(request_bodies())),
        ROOT / "docs/reference/cli.md": commands(),
        ROOT / "docs/reference/feature-matrix.md": feature_matrix.page(),
        OPENAPI: openapi_document(),
        ROOT / "docs/reference/reasons.md": reasons_page.page(),
        ROOT / "docs/reference/settings.md": settings_page.page(),
        ROOT / "docs/runbooks/README.md": runbooks_index.page(),
        executed_commands.PAGE: executed_commands.page(),
    }


@functools.cache
def application() -> Litestar:
    return create_app(cast(Services, types.SimpleNamespace()))


def _documented(app: Litestar) -> Iterator[HTTPRouteHandler]:
    """Yield the handlers of the document's operations."""
    for route in app.routes:
        for method, (handler, _) in getattr(route, "route_handler_map", {}).items():
            if method != "OPTIONS" and handler.resolve_include_in_schema():
                yield handler


def request_bodies() -> list[object]:
    """Return the types of the bodies that routes take."""
    fields = [handler.parsed_data_field for handler in _documented(application())]
    return [field.annotation for field in fields if field is not None]


def openapi_document() -> str:
    """Return the OpenAPI document, as ``/schema`` answers with it."""
    document = openapi.describe(application())
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def commands() -> str:
    """Return the reference of all commands."""
    arguments = ["novacron.__main__", "utils", "docs", "--name", "novacron", "--title", "The novacron command"]
    command = [sys.executable, "-m", "typer", *arguments]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("NOVACRON_")}
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env=environment)
    return done.stdout.strip() + "\n"


def _formatted(text: str) -> str:
    for command in (("check", "--select", "I", "--fix", "--quiet"), ("format", "--quiet")):
        arguments = [sys.executable, "-m", "ruff", *command, "--stdin-filename", "src/novacron/client/sync/x.py", "-"]
        done = subprocess.run(arguments, input=text, capture_output=True, text=True, check=True, cwd=ROOT)
        text = done.stdout
    return text


def main() -> None:
    _write({CLIENT / "choices.py": choices()})  # without a new field in it, the command does not start
    for _ in range(2):  # the reference of the commands shows enums that the first round may have changed
        _write(generated())


def _write(files: dict[Path, str]) -> None:
    for path, text in files.items():
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
            print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()

"""What is left to do on a host: decided from what it has and what is wanted. Nothing here looks or acts."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from novacron import settings_file
from novacron.local.setup.services import ENVIRONMENT_DIR, JOIN_TOKEN, ROOT, HostService, OwnedFolder
from novacron.local.setup.settings_edit import CannotEdit, as_in_file, difference, edited

READABLE_BY_GROUP, PRIVATE = 0o640, 0o600
USABLE = "loaded"
"""systemd's word for a unit whose file it has read."""


class PathFacts(NamedTuple):
    """What a file or folder is."""

    is_folder: bool
    mode: int
    owner: str
    group: str
    changed_at_s: float = 0.0
    content: bytes = b""
    """Of the files that are looked into."""


class UnitFacts(NamedTuple):
    """How a unit is."""

    load_state: str
    is_enabled: bool = False
    is_active: bool = False
    began_at_s: float = 0.0
    """When its process began, if it is active."""


class HostFacts(NamedTuple):
    """What a host has of what is to be set up."""

    paths: Mapping[Path, PathFacts]
    unit: UnitFacts
    has_user: bool = True
    node: str | None = None
    """The name under which this host has joined an installation; None: it has not."""


class CreateServiceUser(NamedTuple):
    """Create the user of a service."""

    file: str

    def __str__(self) -> str:
        return f"create the user of {self.file.removesuffix('.conf')}"


class SetFolder(NamedTuple):
    """Make a folder, or set its mode and owner."""

    folder: OwnedFolder

    def __str__(self) -> str:
        path, mode, owner, group = self.folder
        return f"folder {path}: mode {mode:04o}, owner {owner}:{group}"


class SetFile(NamedTuple):
    """Write a file, whole or not at all, with its mode and owner."""

    path: Path
    content: bytes
    mode: int
    group: str
    changes: tuple[str, ...] = ()
    """What changes, for people; empty where that is nobody's business."""

    def __str__(self) -> str:
        head = f"file {self.path}: mode {self.mode:04o}, owner {ROOT}:{self.group}"
        return "\n".join((head, *(f"    {line}" for line in self.changes)))


class DeleteFile(NamedTuple):
    """Remove a file."""

    path: Path
    why: str

    def __str__(self) -> str:
        return f"remove {self.path}: {self.why}"


class EnableUnit(NamedTuple):
    """Let systemd start a unit with the host."""

    unit: str

    def __str__(self) -> str:
        return f"systemctl enable {self.unit}"


class StopUnit(NamedTuple):
    """Stop a unit; it starts again with the host, unless ``for_good`` is set."""

    unit: str
    why: str
    for_good: bool = False

    def __str__(self) -> str:
        return f"systemctl {'disable --now' if self.for_good else 'stop'} {self.unit}: {self.why}"


class RestartUnit(NamedTuple):
    """Start a unit, or start it anew, and wait until it says that it is ready."""

    unit: str
    why: str

    def __str__(self) -> str:
        return f"systemctl restart {self.unit}: {self.why}"


SetupStep = CreateServiceUser | SetFolder | SetFile | DeleteFile | EnableUnit | StopUnit | RestartUnit


class SetupRequest(NamedTuple):
    """What is wanted of a service."""

    service: HostService
    settings: Mapping[str, object]
    """Settings that the operator gave, by their names in a file."""
    defaults: Mapping[str, object] = {}
    """Settings that are added where the file says nothing."""
    replace: bool = False
    """Settings that the file has otherwise are changed."""
    join_token: str | None = None
    files: tuple[SetFile, ...] = ()
    """More files, and the folders that they are in."""
    folders: tuple[OwnedFolder, ...] = ()


class SetupRefused(Exception):
    """Something must be decided or mended first. ``problems``: each in words."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def settings_in(request: SetupRequest, facts: HostFacts) -> dict[str, Any]:
    """Return what the settings file says now. Raises SetupRefused if it can't be read."""
    try:
        return tomllib.loads(_settings_text(request, facts))
    except (ValueError, RecursionError) as error:
        raise SetupRefused(f"{request.service.settings} can't be read as TOML: {error}") from None


def _settings_text(request: SetupRequest, facts: HostFacts) -> str:
    file = facts.paths.get(request.service.settings)
    if file is None:
        return settings_file.template(request.service.title, request.service.options)
    return file.content.decode()


def wanted_settings(request: SetupRequest, facts: HostFacts) -> dict[str, object]:
    """Return the settings to write into the file, each with its value.

    Raises SetupRefused, with what it is now and what was given, for those that an operator wrote otherwise.
    """
    present = settings_in(request, facts)
    given = {name: as_in_file(value) for name, value in request.settings.items()}
    other = {name: value for name, value in given.items() if name in present and present[name] != value}
    if other and not request.replace:
        raise SetupRefused(*_conflicts(request, present, other))
    missing = {name: value for name, value in given.items() if name not in present}
    defaults = {name: value for name, value in request.defaults.items() if name not in present and name not in given}
    return {**other, **missing, **defaults}


def _conflicts(request: SetupRequest, present: Mapping[str, Any], other: Mapping[str, object]) -> Iterator[str]:
    for name, value in other.items():
        now, given = (settings_file.without_password(settings_file.toml(v)) for v in (present[name], value))
        yield (
            f"{request.service.settings} has {name} = {now}, but you gave {given}:"
            " nothing was changed; to change it, add --replace"
        )


def steps_left(request: SetupRequest, facts: HostFacts) -> list[SetupStep]:
    """Return what is left to do, in its order; empty: the host is as it is wanted. Raises SetupRefused."""
    service = request.service
    if facts.unit.load_state != USABLE:
        raise SetupRefused(unusable(service.name, service.unit, facts.unit.load_state))
    steps: list[SetupStep] = []
    if not facts.has_user:
        steps.append(CreateServiceUser(service.users))
    folders = (*service.folders, *request.folders)
    steps += [SetFolder(folder) for folder in folders if not _is_folder(folder, facts)]
    steps += [file for file in (_settings(request, facts), *request.files) if not _is_file(file, facts)]
    steps += _token(request, facts)
    if not facts.unit.is_enabled:
        steps.append(EnableUnit(service.unit))
    why = _restart(request, facts, steps)
    if why:
        steps.append(RestartUnit(service.unit, why))
    return steps


def unusable(package: str, unit: str, load_state: str) -> str:
    """Return why systemd can't use a unit of a package, and what to do."""
    if load_state == "not-found":
        return f"{unit} is not installed: apt install ./{package}_*.deb"
    if load_state == "masked":
        return f"{unit} is masked: systemctl unmask {unit}"
    return f"systemd can't use {unit} ({load_state}): systemctl status {unit}"


def _is_folder(folder: OwnedFolder, facts: HostFacts) -> bool:
    return is_as_wanted(folder, facts.paths.get(folder.path))


def is_as_wanted(folder: OwnedFolder, found: PathFacts | None) -> bool:
    """Say whether a folder is there with its mode and owner. Raises SetupRefused for something else in its place."""
    if found is not None and not found.is_folder:
        raise SetupRefused(f"{folder.path} is not a directory: move it away")
    return found is not None and (found.mode, found.owner, found.group) == folder[1:]


def _is_file(file: SetFile, facts: HostFacts) -> bool:
    present = facts.paths.get(file.path)
    return present is not None and (present.content, present.mode, present.owner, present.group) == (
        file.content, file.mode, ROOT, file.group,
    )  # fmt: skip


def _settings(request: SetupRequest, facts: HostFacts) -> SetFile:
    """Return the settings file as it is wanted."""
    path, before = request.service.settings, _settings_text(request, facts)
    values = wanted_settings(request, facts)
    try:
        after = edited(before, values) if values else before
    except (CannotEdit, ValueError) as error:
        raise SetupRefused(f"{path}: {error}") from None
    changes = tuple(difference(str(path), before, after))
    return SetFile(path, after.encode(), READABLE_BY_GROUP, request.service.group, changes)


def _token(request: SetupRequest, facts: HostFacts) -> Iterator[SetupStep]:
    present = facts.paths.get(JOIN_TOKEN)
    if facts.node is not None:
        if present is not None:
            yield DeleteFile(JOIN_TOKEN, f"this host has joined as node {facts.node}")
    elif request.join_token is not None:
        file = SetFile(JOIN_TOKEN, request.join_token.encode() + b"\n", PRIVATE, ROOT)
        if not _is_file(file, facts):
            yield file


def _restart(request: SetupRequest, facts: HostFacts, steps: list[SetupStep]) -> str:
    """Return why the unit has to be started anew; empty: it has not."""
    settings = request.service.settings
    change = any(isinstance(step, SetFile) and step.path == settings and step.changes for step in steps)
    return restart_reason(facts.unit, facts.paths.get(settings), change)


def restart_reason(unit: UnitFacts, found: PathFacts | None, change: bool) -> str:
    """Return why a unit has to be started anew; empty: it has not.

    ``found``: its settings file; ``change``: that changes now.
    """
    if not unit.is_active:
        return "it is not running"
    if change:
        return "its settings change"
    if found is not None and found.changed_at_s > unit.began_at_s:
        return "its settings have changed since it started"
    return ""


def overridden(request: SetupRequest, wanted: Mapping[str, object], environment: str) -> Iterator[str]:
    """Yield which settings have no effect, because variables in the unit's file of its environment win over them."""
    by_name = {setting.name: setting for setting in settings_file.settings(request.service.options)}
    set_there = {line.partition("=")[0].strip() for line in environment.splitlines() if "=" in line}
    for name in wanted:
        for variable in set_there.intersection(by_name[name].variables):
            yield f"{ENVIRONMENT_DIR / request.service.name} has {variable}, which overrides {name}: remove that line"

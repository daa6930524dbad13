"""How a host is set up: everything is looked at first, then the steps that are left are made until none is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, NamedTuple, TypeVar

import typer

from novacron import settings_file
from novacron.local.setup import checks
from novacron.local.setup.host import LocalHost, SetupFailed
from novacron.local.setup.plan import (
    HostFacts,
    SetupRefused,
    SetupRequest,
    SetupStep,
    overridden,
    settings_in,
    steps_left,
    wanted_settings,
)
from novacron.local.setup.services import HostService
from novacron.state_lock import FolderInUse, FolderLock

ROUNDS_MAX = 4
"""How often it is looked at what is left: once more than steps can depend on what others bring about."""
LOCK = "novacron-setup.lock"
NOT_HERE = frozenset({"state-dir", "settings", "check-settings", "rejoin", "new-keys", "join"})
"""Options of the services that are no settings here: units have their state in one place, and some count once."""


class Ended(NamedTuple):
    """What was done at last, and what to do next."""

    changes: tuple[str, ...]
    following: str


OptionsT = TypeVar("OptionsT")
SettingsT = TypeVar("SettingsT")


class ServiceSetup(ABC, Generic[OptionsT, SettingsT]):
    """How one kind of service is set up, with its options and what they mean: its settings."""

    service: HostService

    @abstractmethod
    def request(self, given: Mapping[str, object], replace: bool) -> SetupRequest:
        """Return what is wanted. Raises SetupRefused."""

    @abstractmethod
    def node(self) -> str | None:
        """Return the name under which this host has joined. Raises SetupFailed."""

    @abstractmethod
    def check(self, settings: SettingsT, now: SettingsT | None, is_active: bool) -> Iterator[str]:
        """Yield what is in the way of these settings. ``now``: those with which the unit runs, if it does."""

    @abstractmethod
    def settings(self, options: OptionsT) -> SettingsT:
        """Return what options mean. Raises BadParameter."""

    @abstractmethod
    def database(self, options: OptionsT) -> str | None:
        """Return the URL of the database that is looked at before."""

    @abstractmethod
    def end(self, settings: SettingsT) -> Ended:
        """Make sure that the service answers. Raises SetupFailed."""


def given_in(context: typer.Context, options: object) -> dict[str, object]:
    """Return the settings that a command line and the file that it names give. Raises SetupRefused."""
    given, problems = dict[str, object](), list[str]()
    for setting in settings_file.settings(type(options)):
        source = context.get_parameter_source(setting.field)
        value = getattr(options, setting.field)
        if source is None or source.name not in (settings_file.FROM_COMMAND_LINE, settings_file.FROM_FILE):
            continue
        if setting.name == "state-dir":
            problems.append("--state-dir can't be set for a host: the unit keeps its state in /var/lib/novacron")
        elif setting.name in NOT_HERE - {"settings", "join"}:
            problems.append(f"--{setting.name} can't be set for a host")
        elif source.name == settings_file.FROM_COMMAND_LINE and settings_file.PASSWORD.search(str(value)):
            problems.append(
                f"--{setting.name} contains a password, and every user of this host can read command lines: change that"
                f" password, write {setting.name} = ... into a file with mode 0600, and give the file with --settings"
            )
        elif setting.name not in NOT_HERE:
            given[setting.name] = value
    if problems:
        raise SetupRefused(*problems)
    return given


class Prepared(NamedTuple, Generic[SettingsT]):
    """What is set up, and what is left of it."""

    request: SetupRequest
    settings: SettingsT
    steps: list[SetupStep]
    warnings: tuple[str, ...]


def prepare(
    kind: ServiceSetup[OptionsT, SettingsT], host: LocalHost, context: typer.Context, options: object, *, replace: bool
) -> Prepared[SettingsT]:
    """Look at everything. Raises SetupRefused with all that is in the way."""
    problems = checks.of_machine()
    try:
        request = kind.request(given_in(context, options), replace)
        facts = host.facts(request, kind.node())
        now, planned = settings_in(request, facts), wanted_settings(request, facts)
        problems += overridden(request, planned, host.text(kind.service.environment))
        later, current = _meanings(kind, context, now, planned)
        problems += kind.check(later.settings, current, facts.unit.is_active)
        database = kind.database(later.options)
        steps = steps_left(request, facts)
    except SetupRefused as refused:
        checked = checks.of_service(kind.service.extra, None)
        raise SetupRefused(*problems, *refused.problems, *checked.problems) from None
    except SetupFailed as failed:
        raise SetupRefused(*problems, str(failed)) from None
    checked = checks.of_service(kind.service.extra, database)
    if problems or checked.problems:
        raise SetupRefused(*problems, *checked.problems)
    return Prepared(request, later.settings, steps, checked.warnings)


class _Meaning(NamedTuple, Generic[OptionsT, SettingsT]):
    options: OptionsT
    settings: SettingsT


def _meanings(
    kind: ServiceSetup[OptionsT, SettingsT],
    context: typer.Context,
    now: Mapping[str, Any],
    wanted: Mapping[str, object],
) -> tuple[_Meaning[OptionsT, SettingsT], SettingsT | None]:
    """Return what the settings mean that are to be, and those that are; None if these mean nothing."""
    kinds = {setting.name: setting for setting in settings_file.settings(kind.service.options)}
    file = kind.service.settings
    problems = [f"{file}: {problem}" for problem in settings_file.problems_in(context, file, now, kinds)]
    if problems:
        raise SetupRefused(*problems)
    try:
        options: OptionsT = settings_file.options_of(context, kind.service.options, {**now, **wanted})
        later = _Meaning(options, kind.settings(options))
    except typer.BadParameter as error:
        hint = str(error.param_hint or "").removeprefix("--")
        raise SetupRefused(f"{hint or file}: {error.message}") from None
    try:
        return later, kind.settings(settings_file.options_of(context, kind.service.options, now))
    except typer.BadParameter:
        return later, None


def perform(
    kind: ServiceSetup[OptionsT, SettingsT], host: LocalHost, prepared: Prepared[SettingsT], show: Callable[[str], None]
) -> tuple[int, Ended]:
    """Make the steps that are left; return how many they were. Raises SetupFailed, SetupRefused."""
    made, steps = 0, prepared.steps
    for _ in range(ROUNDS_MAX):
        for step in steps:
            show(str(step))
            host.make(step)
            made += 1
        facts: HostFacts = host.facts(prepared.request, kind.node())
        steps = steps_left(prepared.request, facts)
        if not steps:
            return made, kind.end(prepared.settings)
    left = "; ".join(str(step).splitlines()[0] for step in steps)
    raise SetupFailed(f"something else on this host keeps undoing this: {left}")


def alone() -> FolderLock:
    """Make sure that nobody else sets this host up meanwhile. Raises SetupRefused."""
    try:
        return FolderLock(checks.RUN, LOCK)
    except FolderInUse as error:
        raise SetupRefused(f"process {error.pid} is setting up this host: wait until it has ended") from None
    except OSError as error:
        raise SetupRefused(f"can't write to {checks.RUN}: {error.strerror}; run it as root") from None

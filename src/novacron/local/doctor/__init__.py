"""``novacron doctor``: looks at this machine, and at the platform that it can reach, and says what to do."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterator
from pathlib import Path

import msgspec

from novacron.extras import Extra, installed
from novacron.local.doctor import key_files, machine, running
from novacron.local.doctor.finding import Finding, Grade, warning

__all__ = ["Finding", "Grade", "Subject", "examine"]

CHECK_S_MAX = 30.0


class Subject(msgspec.Struct, frozen=True):
    """What is looked at."""

    state_dir: Path
    database: str | None = None
    """Its URL, if that is to be looked at."""
    qemu_binary: str = "qemu-system-x86_64"
    parts: frozenset[Extra] | None = None
    """The parts of NovaCron whose needs are looked at; None: those that are installed here."""
    platform: bool = True
    """Whether to look at the platform that this user's settings lead to."""


async def examine(subject: Subject) -> list[Finding]:
    """Return what was found, in the order in which it is best read. Nothing is changed."""
    groups = await asyncio.gather(*(_guarded(name, check) for name, check in _checks(subject)))
    return list(_flat(groups))


def _checks(subject: Subject) -> Iterator[tuple[str, Awaitable[list[Finding]]]]:
    """Yield what is to be looked at: of this machine, what the parts of NovaCron need that are installed here."""
    parts = frozenset(filter(installed, Extra)) if subject.parts is None else subject.parts
    if Extra.AGENT in parts:
        from novacron.local.doctor import agent_host

        yield "privileges", machine.privileges()
        yield "QEMU", machine.qemu(subject.qemu_binary)
        yield "accelerator", agent_host.accelerator(subject.qemu_binary)
        yield "programs", machine.programs()
        yield "kernel", machine.kernel()
        yield "leftovers", agent_host.leftovers()
    if parts:
        yield "ports", machine.ports()
        yield "disk", machine.disk(subject.state_dir)
        yield "memory", machine.memory()
        yield "limits", machine.limits()
        yield "certificates", machine.certificates(subject.state_dir)
        yield "keys", key_files.key_files(subject.state_dir)
    yield "clock", machine.clock()
    if subject.database is not None:
        yield "database", _database(subject.database)
    if subject.platform:
        yield "platform", running.platform()


async def _database(url: str) -> list[Finding]:
    if not installed(Extra.SERVER):
        return [warning("database", "only NovaCron's server package can check it", "install novacron[server]")]
    from novacron.local.doctor import database

    return await database.database(url)


async def _guarded(name: str, check: Awaitable[list[Finding]]) -> list[Finding]:
    """Return what a check finds; one that can't be done is a finding, too."""
    try:
        return await asyncio.wait_for(check, CHECK_S_MAX)
    except Exception as error:  # the others are still worth knowing
        why = str(error) or type(error).__name__
        return [Finding(name, Grade.WARNING, f"could not be checked: {why}", "run it again as root")]


def _flat(groups: list[list[Finding]]) -> Iterator[Finding]:
    for findings in groups:
        yield from findings

"""``novacron doctor``: looks at this machine, and at the platform that it can reach, and says what to do."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import msgspec

from novacron.local.doctor import key_files, machine, running
from novacron.local.doctor.finding import Finding, Grade

__all__ = ["Finding", "Grade", "Subject", "examine"]

CHECK_S_MAX = 30.0


class Subject(msgspec.Struct, frozen=True):
    """What is looked at."""

    state_dir: Path
    database: str | None = None
    """Its URL, if that is to be looked at."""
    qemu_binary: str = "qemu-system-x86_64"


Check = Callable[[Subject], Awaitable[list[Finding]]]


async def examine(subject: Subject) -> list[Finding]:
    """Return what was found, in the order in which it is best read. Nothing is changed."""
    checks: list[tuple[str, Awaitable[list[Finding]]]] = [
        ("privileges", machine.privileges()),
        ("QEMU", machine.qemu(subject.qemu_binary)),
        ("accelerator", machine.accelerator(subject.qemu_binary)),
        ("programs", machine.programs()),
        ("kernel", machine.kernel()),
        ("clock", machine.clock()),
        ("ports", machine.ports()),
        ("disk", machine.disk(subject.state_dir)),
        ("memory", machine.memory()),
        ("limits", machine.limits()),
        ("leftovers", machine.leftovers()),
        ("certificates", machine.certificates(subject.state_dir)),
        ("keys", key_files.key_files(subject.state_dir)),
        ("database", running.database(subject.database)),
        ("platform", running.platform()),
    ]
    groups = await asyncio.gather(*(_guarded(name, check) for name, check in checks))
    return list(_flat(groups))


async def _guarded(name: str, check: Awaitable[list[Finding]]) -> list[Finding]:
    """Return what a check finds; one that can't be done is a finding, too."""
    try:
        return await asyncio.wait_for(check, CHECK_S_MAX)
    except Exception as error:  # the others are still worth knowing
        why = str(error) or type(error).__name__
        return [Finding(name, Grade.WARNING, f"could not be looked at: {why}", "run it again as root")]


def _flat(groups: list[list[Finding]]) -> Iterator[Finding]:
    for findings in groups:
        yield from findings

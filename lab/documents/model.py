"""How the commands of a page are executed: what has to be there, what stands for what, and what is left out and why."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from lab.documents.commands import ROOT, DocumentCommand, commands
from lab.platform import Platform

NOTHING: Mapping[str, str] = MappingProxyType({})
Prepare = Callable[[Platform, Path], None]

OWN_TESTS = "set-up, demo, tests and packages have tests of their own"
SHELL = "a command of the shell, which changes nothing of the platform"
MACHINE = "changes the machine that runs the tests; whole Debian hosts have tests of their own"
TERMINAL = "takes a terminal and a person; tested with a terminal of its own"
ENDLESS = "goes on until it is ended"
OTHER_PROGRAMS = {
    "script/": OWN_TESTS,
    "git ": OWN_TESTS,
    "export ": SHELL,
    "cd ": SHELL,
    "cat ": SHELL,
    "apt": MACHINE,
    "dpkg": MACHINE,
    "systemctl ": MACHINE,
    "kill ": MACHINE,
    "install ": MACHINE,
}


class PageRun(NamedTuple):
    """How a page is executed. Texts are those of its commands, from their beginning where it is about leaving out."""

    page: str
    instead: Mapping[str, str] = NOTHING
    """What is typed for a part of a command that is only an example: names of images, sizes, addresses."""
    left_out: Mapping[str, str] = NOTHING
    """Commands that are not executed, with the reasons."""
    given: Mapping[str, tuple[str, ...]] = MappingProxyType({})
    """What has been typed before a command of the page."""
    ends_with: Mapping[str, int] = MappingProxyType({})
    """Commands that have to fail, with their exit codes."""
    prepare: Prepare = lambda site, here: None
    """Makes files that the page speaks of, in the folder in which its commands run."""
    fresh: tuple[str, ...] = ()
    """Sections that begin without what earlier ones have made."""
    quick: bool = False
    """It takes seconds, so every run of the tests executes it."""
    needs_hosts: bool = False
    """It takes hosts with networks of their own."""

    @property
    def path(self) -> Path:
        return ROOT / self.page

    def why_not(self, command: DocumentCommand) -> str | None:
        """Return why a command is not executed; None: it is."""
        for beginning, reason in {**OTHER_PROGRAMS, **self.left_out}.items():
            if command.text.startswith(beginning):
                return reason
        return None

    def commands(self, text: str | None = None) -> list[DocumentCommand]:
        """Return the commands of the page that are executed, as they are typed."""
        return [
            command._replace(text=self._typed(command.text))
            for command in commands(self.path.read_text() if text is None else text)
            if self.why_not(command) is None
        ]

    def _typed(self, text: str) -> str:
        for shown, typed in self.instead.items():
            text = text.replace(shown, typed)
        return text

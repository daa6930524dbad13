"""Executes a page: each command as a step of a runbook. What the page shows as an id stands for the id that came."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

from lab.documents.commands import DocumentCommand
from lab.documents.model import PageRun
from lab.platform import Platform, until
from lab.runbook_runs import OnCall
from novacron.client import ApiError
from novacron.runbooks import command_lines, programs, runner
from novacron.runbooks.model import RunbookCommand, RunbookStep, StepKind
from novacron.runbooks.programs import CommandResult
from novacron.runbooks.run_log import RunLog
from novacron.runbooks.runner import StepOutcome, World

ID = re.compile(r"\b([a-z]+)-[0-9a-f]{16}\b")
COMMAND_S_MAX = 120.0
GONE_S_MAX = 90.0
KINDS = (
    "plans", "forwards", "floating-addresses", "vms", "volumes", "templates", "flavors", "security-groups", "networks",
)  # fmt: skip
"""What sections leave behind, in the order in which it can be deleted."""


class PageFailed(Exception):
    """A command of a page did not do what the page says."""


class PageExecution:
    """One execution of a page on a platform."""

    def __init__(self, run: PageRun, site: Platform, directory: Path) -> None:
        self._run, self._site, self._directory = run, site, directory
        self._ids = dict[str, str]()
        self.executed = 0

    def execute(self, text: str | None = None) -> None:
        """Execute the page, or another text of it. Raises PageFailed that names the line."""
        assert self._site.client, "commands without settings mean this platform"
        self._run.prepare(self._site, self._directory)
        section = ""
        with _in_folder(self._directory), closing(RunLog.begin(self._directory / "run.log")) as log:
            for command in self._run.commands(text):
                if command.section != section and command.section in self._run.fresh:
                    clear(self._site)
                section = command.section
                for before in self._run.given.get(command.text, ()):
                    self._type(command._replace(text=before, output=()), log)
                self._type(command, log)
                self.executed += 1

    def _type(self, command: DocumentCommand, log: RunLog) -> None:
        typed = ID.sub(lambda match: self._ids.get(match[0], match[0]), command.text)
        code = self._run.ends_with.get(command.text, 0)
        step = RunbookStep(
            StepKind.COMMAND, f"line-{command.line}", command.section, command.line,
            commands=(RunbookCommand(command_lines.words_of(typed), ()),), exit_code=code, limit_s=COMMAND_S_MAX,
        )  # fmt: skip
        said = list[str]()

        def execute(words: tuple[str, ...], limit_s: float, show: Callable[[str], None]) -> CommandResult:
            result = programs.execute_here(words, limit_s, show)
            said.append(result.output)
            return result

        operator = OnCall()
        result = runner.run([step], {}, World(operator, log, {"": execute}))
        if result.outcome is not StepOutcome.DONE:
            shown = "\n".join(operator.said)
            raise PageFailed(f"{self._run.page}, line {command.line}: {typed}: {result.why}\n{shown}")
        self._learn(command, "".join(said))

    def _learn(self, command: DocumentCommand, said: str) -> None:
        """Let the ids below a command on the page stand for those that it has printed."""
        came = [match for match in ID.finditer(said) if match[0] not in self._ids.values()]
        for shown in ID.finditer("\n".join(command.output)):
            if shown[0] not in self._ids:
                new = next((match[0] for match in came if match[1] == shown[1]), None)
                if new is not None:
                    self._ids[shown[0]] = new


def clear(site: Platform) -> None:
    """Delete what a section has made."""
    for kind in KINDS:
        until(lambda k=kind: _none_left(site, k), f"no {kind} are left", GONE_S_MAX)  # type: ignore[misc]


def _none_left(site: Platform, kind: str) -> bool:
    left = [each for each in site.client.list(kind) if each.get("name") != "default"]
    for each in left:
        with contextlib.suppress(ApiError):  # it is being deleted, or waits for another one that is
            site.client.delete(kind, str(each.get("id") or each["name"]))
    return not left


@contextlib.contextmanager
def _in_folder(directory: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(directory)
    try:
        yield
    finally:
        os.chdir(before)

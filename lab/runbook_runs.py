"""Runbooks run on a platform of the lab: an operator who says yes, and hosts without systemd."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from pathlib import Path

from novacron.local import postgres
from novacron.runbooks import programs, runner
from novacron.runbooks.command_lines import shown
from novacron.runbooks.model import RunbookPlace, RunbookStep
from novacron.runbooks.programs import CommandResult
from novacron.runbooks.run_log import RunLog
from novacron.runbooks.runner import AskedFor, OperatorAnswer, StepResult, World

PAGES = Path(__file__).parents[1] / "docs/runbooks"
Actions = Mapping[str, Callable[[], object]]
"""What the lab does instead of a command on a host, by how it would be typed; a string is what the command says."""
Answers = Mapping[str, Callable[[], object]]
"""What people do when a step asks whether it is done, by the step's name."""


class OnCall:
    """An operator who does what is asked, says yes, and keeps what was shown."""

    def __init__(self, answers: Answers | None = None) -> None:
        self.said: list[str] = []
        self._answers = answers or {}

    def show(self, line: str) -> None:
        self.said.append(line)

    def may(self, step: RunbookStep, question: str, asked: AskedFor) -> OperatorAnswer:
        assert asked is not AskedFor.HAND, f"step {step.name} ran nowhere"
        if asked is AskedFor.JUDGEMENT and step.name in self._answers:
            self._answers[step.name]()
        return OperatorAnswer.YES


def lab_host(actions: Actions) -> programs.Execute:
    """Return how commands run on a host of the lab, which has no systemd: some do what the lab does instead, and
    those that only look say nothing."""

    def execute(words: tuple[str, ...], limit_s: float, show: Callable[[str], None]) -> CommandResult:
        act = actions.get(shown(words))
        said = None if act is None else act()
        return CommandResult(0, said if isinstance(said, str) else "")

    return execute


def lab_server(actions: Actions) -> programs.Execute:
    """Return how commands run on the server's machine: as on any host, and those of NovaCron as they are."""
    host = lab_host(actions)

    def execute(words: tuple[str, ...], limit_s: float, show: Callable[[str], None]) -> CommandResult:
        run = programs.execute_here if words[0] == "novacron" and shown(words) not in actions else host
        return run(words, limit_s, show)

    return execute


def lab_machine(actions: Actions) -> programs.Execute:
    """Return how commands run on any machine of the lab: those of NovaCron and PostgreSQL's ``psql`` as they are."""
    server = lab_server(actions)

    def execute(words: tuple[str, ...], limit_s: float, show: Callable[[str], None]) -> CommandResult:
        if words[0] == "psql":
            return programs.execute_here((str(postgres.programs() / "psql"), *words[1:]), limit_s, show)
        return server(words, limit_s, show)

    return execute


def run_steps(
    steps: Iterable[RunbookStep],
    values: Mapping[str, str],
    log: Path,
    machine: programs.Execute,
    answers: Answers | None = None,
) -> tuple[StepResult, str]:
    """Run steps against the platform that the environment names; return how they ended, and what an operator saw."""
    operator = OnCall(answers)
    with closing(RunLog.begin(log)) as writing:
        elsewhere = dict.fromkeys([place.value for place in RunbookPlace], machine)
        world = World(operator, writing, {"": programs.execute_here, **elsewhere})
        result = runner.run(steps, values, world)
    return result, "\n".join(operator.said)

"""Runs a runbook: shows each step, asks where people decide, and stops at the first check that fails."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from typing import NamedTuple, Protocol

import msgspec

from novacron.runbooks.command_lines import check_value, filled, shown
from novacron.runbooks.expectations import missing, with_names
from novacron.runbooks.model import HERE, Runbook, RunbookCommand, RunbookError, RunbookStep, StepKind
from novacron.runbooks.programs import CommandResult, Execute

FIRST_PAUSE_S, PAUSE_S_MAX, PAUSE_GROWTH = 1.0, 10.0, 1.5
LOGGED_CHARACTERS_MAX = 65_536


class OperatorAnswer(StrEnum):
    """What an operator says."""

    YES = "yes"
    SKIP = "skip"
    NO = "no"


class AskedFor(StrEnum):
    """What the operator is asked for."""

    LEAVE = "leave"
    """Leave to run a destructive step."""
    HAND = "hand"
    """To run commands by hand, on another machine."""
    JUDGEMENT = "judgement"
    """What the runbook asks."""


class StepOutcome(StrEnum):
    """How a step ended; only after the first two the run goes on."""

    DONE = "done"
    SKIPPED = "skipped"
    DECLINED = "declined"
    FAILED = "failed"
    STOPPED = "stopped"


class Operator(Protocol):
    """Who runs a runbook."""

    def show(self, line: str) -> None:
        """Show a line."""

    def may(self, step: RunbookStep, question: str, asked: AskedFor) -> OperatorAnswer:
        """Ask something of a step."""


class Log(Protocol):
    """Where a run is recorded."""

    def write(self, event: str, **fields: object) -> None:
        """Record something."""


class StepResult(NamedTuple):
    """How a step ended, and why."""

    outcome: StepOutcome
    why: str = ""


class World(NamedTuple):
    """What a run works with."""

    operator: Operator
    log: Log
    places: Mapping[str, Execute]
    """How commands run here and on other machines; on one that is not named, the operator runs them."""
    stop: Callable[[], str] = lambda: ""
    """Says why the run has to stop now; empty: it need not."""
    clock: Callable[[], float] = time.monotonic
    pause: Callable[[float], None] = time.sleep


def values_for(runbook: Runbook, labels: Mapping[str, str], given: Mapping[str, str]) -> dict[str, str]:
    """Return the values of a run: what was given, then an alert's labels, then defaults. Raises RunbookError."""
    if unknown := sorted(given.keys() - runbook.front.values.keys()):
        known = ", ".join(runbook.front.values) or "none"
        raise RunbookError(f"runbook {runbook.name} has no value {unknown[0]!r}; it has: {known}")
    values = {}
    for name, declared in runbook.front.values.items():
        value = given.get(name) or labels.get(declared.label or name) or declared.default
        if not value:
            raise RunbookError(f"runbook {runbook.name} needs {declared.what}: --set {name}=VALUE")
        values[name] = check_value(name, value)
    return values


def with_values(step: RunbookStep, values: Mapping[str, str]) -> RunbookStep:
    """Return a step whose commands, and what is expected of them, have their values."""
    commands = tuple(
        RunbookCommand(filled(command.words, values), tuple(with_names(line, values) for line in command.expected))
        for command in step.commands
    )
    return msgspec.structs.replace(step, commands=commands)


def describe(step: RunbookStep) -> list[str]:
    """Return lines that say what a step does."""
    marks = [f"on the {step.place}"] if step.place != HERE else []
    marks += ["destructive"] if step.destructive else []
    marks += [f"waits up to {step.wait_s:.0f} s"] if step.wait_s else []
    marked = f" ({', '.join(marks)})" if marks else ""
    lines = [f"[{step.section}] {step.name}{marked}"]
    lines += [f"  ? {step.question}"] if step.question else []
    for command in step.commands:
        lines.append(f"  $ {shown(command.words)}")
        lines += [f"      expects: {line}" for line in command.expected]
    return lines


def run(steps: Iterable[RunbookStep], values: Mapping[str, str], world: World) -> StepResult:
    """Run steps in their order; return how the last one ended: ``DONE`` if all did.

    Raises KeyboardInterrupt, after it was recorded.
    """
    for step in steps:
        ready = with_values(step, values)
        for line in describe(ready):
            world.operator.show(line)
        try:
            result = _run_step(ready, world)
        except KeyboardInterrupt:
            world.log.write("step", step=step.name, outcome=StepOutcome.STOPPED, why="interrupted")
            raise
        world.log.write("step", step=step.name, outcome=result.outcome, why=result.why)
        if result.outcome not in (StepOutcome.DONE, StepOutcome.SKIPPED):
            world.log.write("ended", outcome=result.outcome, step=step.name)
            return StepResult(result.outcome, f"step {step.name}: {result.why}")
    world.log.write("ended", outcome=StepOutcome.DONE)
    return StepResult(StepOutcome.DONE)


def _run_step(step: RunbookStep, world: World) -> StepResult:
    if reason := world.stop():
        return StepResult(StepOutcome.STOPPED, reason)
    if step.kind is StepKind.QUESTION:
        return _answered(step, step.question, AskedFor.JUDGEMENT, world)
    execute = world.places.get(step.place)
    if execute is None:
        question = f"Run this on the {step.place} yourself. Did you, and is the output as expected?"
        return _answered(step, question, AskedFor.HAND, world)
    if step.destructive:
        result = _answered(step, "This step is destructive. Run it?", AskedFor.LEAVE, world)
        if result.outcome is not StepOutcome.DONE:
            return result
    return _until_it_holds(step, execute, world)


def _answered(step: RunbookStep, question: str, asked: AskedFor, world: World) -> StepResult:
    answer = world.operator.may(step, question, asked)
    world.log.write("answer", step=step.name, question=question, answer=answer)
    if answer is OperatorAnswer.YES:
        return StepResult(StepOutcome.DONE)
    if answer is OperatorAnswer.SKIP and asked is not AskedFor.JUDGEMENT:
        return StepResult(StepOutcome.SKIPPED)
    return StepResult(StepOutcome.DECLINED, f"no yes to: {question}")


def _until_it_holds(step: RunbookStep, execute: Execute, world: World) -> StepResult:
    """Run a step's commands; those of a check again, ever more slowly, until they are as expected or its time is up."""
    deadline, pause_s = world.clock() + step.wait_s, FIRST_PAUSE_S
    while True:
        why = _run_commands(step, execute, world)
        if not why:
            return StepResult(StepOutcome.DONE)
        left_s = deadline - world.clock()
        if left_s <= 0:
            waited = f" (for {step.wait_s:.0f} s)" if step.wait_s else ""
            return StepResult(StepOutcome.FAILED, f"{why}{waited}")
        world.operator.show(f"  not yet: {why}; {left_s:.0f} s are left")
        world.pause(min(pause_s, left_s))
        pause_s = min(pause_s * PAUSE_GROWTH, PAUSE_S_MAX)
        if reason := world.stop():
            return StepResult(StepOutcome.STOPPED, reason)


def _run_commands(step: RunbookStep, execute: Execute, world: World) -> str:
    """Run a step's commands; return what is not as expected; empty: all is."""
    for command in step.commands:
        began = world.clock()
        try:
            result = execute(command.words, step.limit_s, lambda line: world.operator.show(f"    {line}"))
        except OSError as error:
            result = CommandResult(127, f"can't run {command.words[0]}: {error.strerror}")
        why = _judged(step, command, result)
        world.log.write(
            "command",
            step=step.name,
            words=command.words,
            exit=result.exit_code,
            s=round(world.clock() - began, 3),
            output=result.output[:LOGGED_CHARACTERS_MAX],
            why=why,
        )
        if why:
            return why
    return ""


def _judged(step: RunbookStep, command: RunbookCommand, result: CommandResult) -> str:
    typed = shown(command.words)
    if result.timed_out:
        return f"{typed} took longer than {step.limit_s:.0f} s"
    if step.exit_code is not None and result.exit_code != step.exit_code:
        said = (result.output.strip().splitlines() or ["nothing was printed"])[-1]
        return f"{typed} ended with {result.exit_code}, not {step.exit_code}: {said}"
    wrong = missing(command.expected, result.output)
    return "" if wrong is None else f"{typed}: the output is not as expected: {wrong}"

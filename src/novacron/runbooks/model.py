"""What a runbook is: who needs it when, and steps in the order in which they run."""

from __future__ import annotations

import hashlib
from enum import StrEnum

import msgspec

HERE = ""
"""The place of commands that run where the runbook is run."""


class RunbookError(Exception):
    """A page, a value or an alert is not as it must be: says where, and what to do."""


class RunbookSeverity(StrEnum):
    """How urgent what leads to a runbook is; ``planned``: nothing is wrong."""

    CRITICAL = "critical"
    WARNING = "warning"
    INFO = "info"
    PLANNED = "planned"


class RunbookPlace(StrEnum):
    """Machines on which commands run, beside the one where the runbook is run."""

    SERVER = "server"
    NODE = "node"
    DATABASE = "database"


class StepKind(StrEnum):
    """What a step does."""

    COMMAND = "step"
    """It runs commands, once."""
    CHECK = "check"
    """It runs commands that change nothing, again and again until their output is as expected or its time is up."""
    QUESTION = "ask"
    """It asks the operator, who says yes, or ends the run."""


class RunbookValue(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A value that a run needs, such as the name of a node."""

    what: str
    label: str = ""
    """The label of alerts that has it; by default the one of its own name."""
    default: str = ""


class FrontMatter(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"stop_on": "stop-on"}):
    """The head of a page."""

    purpose: str
    severity: RunbookSeverity
    time: str
    """How long it usually takes, in words."""
    risk: str
    roles: tuple[str, ...]
    """Roles of NovaCron, or rights on machines, that its commands take."""
    tested: str
    """What of it is executed by tests."""
    alerts: tuple[str, ...] = ()
    values: dict[str, RunbookValue] = {}
    stop_on: tuple[str, ...] = ()
    """Alerts that end a run when they begin to fire meanwhile."""


class ExpectedLine(msgspec.Struct, frozen=True):
    """A line below a command: what its output must have, or must not have."""

    text: str
    pattern: bool = False
    """It is a regular expression, which has to match somewhere in a line."""
    absent: bool = False
    """No line may be so."""

    def __str__(self) -> str:
        return f"{'~ ' if self.pattern else '! ' if self.absent else ''}{self.text}"


class RunbookCommand(msgspec.Struct, frozen=True):
    """A command: its words, and what to expect of its output, in this order."""

    words: tuple[str, ...]
    expected: tuple[ExpectedLine, ...] = ()


class RunbookStep(msgspec.Struct, frozen=True):
    """A fenced block of a page that is run."""

    kind: StepKind
    name: str
    section: str
    line: int
    commands: tuple[RunbookCommand, ...] = ()
    question: str = ""
    place: str = HERE
    destructive: bool = False
    exit_code: int | None = 0
    """With what each command has to end; None: with whatever it likes."""
    limit_s: float = 120.0
    """How long each command may take."""
    wait_s: float = 0.0
    """How long a check may fail before it has failed."""


class Runbook(msgspec.Struct, frozen=True):
    """A page: ``name`` is its path below the directory of runbooks, without ``.md``."""

    name: str
    title: str
    front: FrontMatter
    steps: tuple[RunbookStep, ...]

    @property
    def group(self) -> str:
        return self.name.partition("/")[0]

    @property
    def digest(self) -> str:
        """Return what tells whether the steps are still the same."""
        steps = [msgspec.structs.replace(step, line=0) for step in self.steps]
        return hashlib.sha256(msgspec.json.encode(steps)).hexdigest()[:16]

    def index_of(self, step: str) -> int:
        """Return the place of a step. Raises RunbookError."""
        names = [other.name for other in self.steps]
        if step not in names:
            raise RunbookError(f"runbook {self.name} has no step {step!r}; it has: {', '.join(names)}")
        return names.index(step)

"""How the commands show records of rollouts, of servers and of agents."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Generic, TypeVar

from novacron.cli import output
from novacron.cli.output import Columns, Object, OutputFormat
from novacron.terminal import say

if TYPE_CHECKING:  # loaded where they are needed: other commands start faster
    from novacron.rollout.journal import RecordJournal
    from novacron.rollout.model import RolloutRecord

R = TypeVar("R", bound="RolloutRecord")

EVENTS_SHOWN = 5
"""Of the newest rollout."""
COURSE_COLUMNS: Columns = {
    "STATE": lambda r: r["state"],
    "STEP": lambda r: r["step"],
    "BEGAN": lambda r: output.when(r["began_at"]),
    "TOOK": lambda r: f"{r['took_s']:.0f} s",
    "REASON": lambda r: r["reason"].partition("\n")[0],
}
"""The last columns of each list of rollouts."""
COURSE_FIELDS: Columns = {
    "WATCHED": lambda r: f"{r['watched_s']:.0f} s",
    "REASON": lambda r: r["reason"],
    "WENT BACK": lambda r: f"within {r['went_back_s']:.1f} s" if r["went_back_s"] else "",
    "BEGAN": lambda r: output.when(r["began_at"]),
    "ENDED": lambda r: output.when(r["ended_at"]),
    "BY": lambda r: r["by"],
}
"""The last fields of each rollout."""


class RecordView(Generic[R]):
    """How one kind of rollouts is shown. ``more`` returns what a row has beside the record."""

    def __init__(self, columns: Columns, fields: Columns, more: Callable[[R], Object], none_yet: str) -> None:
        self._columns, self._fields = {**columns, **COURSE_COLUMNS}, {**fields, **COURSE_FIELDS}
        self._more, self._none_yet = more, none_yet

    def newest(self, journal: RecordJournal[R], output_: OutputFormat) -> R:
        """Show the newest rollout and its latest steps; return it. Ends the command if there is none."""
        rollout = journal.last()
        if rollout is None:
            raise output.fail(self._none_yet, output.EXIT_NOT_FOUND)
        self._show(journal, rollout, output_, EVENTS_SHOWN)
        return rollout

    def with_all_steps(self, journal: RecordJournal[R], number: int, output_: OutputFormat) -> R:
        """Show a rollout with all that it did; return it. Raises RolloutError."""
        rollout = journal.get(number)
        self._show(journal, rollout, output_, None)
        return rollout

    def list(self, journal: RecordJournal[R], output_: OutputFormat) -> None:
        """List all rollouts, newest first."""
        rows = [self._row(journal, rollout) for rollout in reversed(journal.all())]
        output.rows(rows, self._columns, output_)

    def _show(self, journal: RecordJournal[R], rollout: R, output_: OutputFormat, events_max: int | None) -> None:
        row = self._row(journal, rollout)
        output.fields(row, self._fields, output_)
        if output_.for_people:
            say()
            for event in row["events"][-events_max if events_max else 0 :]:
                say(f"{output.when(event['at'])}  {event['step']:<10}  {event['text']}")

    def _row(self, journal: RecordJournal[R], rollout: R) -> Object:
        import msgspec

        row: Object = msgspec.to_builtins(rollout)
        row["events"] = [{**event, "at": output.at(event["at_s"])} for event in row["events"]]
        return {
            **row,
            **self._more(rollout),
            "began_at": output.at(rollout.began_s),
            "ended_at": output.at(rollout.ended_s),
            "took_s": (rollout.ended_s or time.time()) - rollout.began_s,
            "abandoned": not rollout.ended and not journal.is_worked_on(),
        }

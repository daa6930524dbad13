"""What ``novacron rollout ... --agents`` shows and does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from novacron.cli import output
from novacron.cli.output import Columns, Object, OutputFormat
from novacron.cli.rollout_records import RecordView
from novacron.client import Client
from novacron.terminal import say

if TYPE_CHECKING:  # loaded where they are needed: other commands start faster
    from novacron.rollout.agents.fleet import RolloutFleet
    from novacron.rollout.agents.journal import AgentJournal
    from novacron.rollout.agents.model import AgentRollout
    from novacron.rollout.agents.orders import AgentOrders
    from novacron.rollout.options import RolloutOptions

NAMED_MAX = 20
COLUMNS: Columns = {
    "NUMBER": lambda r: r["number"],
    "VERSION": lambda r: r["version"],
    "BEFORE": lambda r: r["version_before"],
    "NODES": lambda r: len(r["nodes"]),
}
FIELDS: Columns = {
    "ROLLOUT": lambda r: f"{r['number']} of agents",
    "VERSION": lambda r: r["version"],
    "BEFORE": lambda r: r["version_before"],
    "STATE": lambda r: (
        r["state"] + (" (no process works on it: novacron rollout resume --agents)" if r["abandoned"] else "")
    ),
    "STEP": lambda r: r["step"],
    "WAVES": lambda r: ", ".join(str(size) for size in r["waves"]) + f" nodes, each watched for {r['watch_s']:g} s",
    "NODES": lambda r: ", ".join(f"{count} {stage}" for stage, count in r["counts"].items()),
}


def _nodes(rollout: AgentRollout) -> Object:
    """Return what a row says of a rollout's nodes, beside its record."""
    return {
        "version_before": rollout.version_before,
        "counts": rollout.counts(),
        "waves": [len(rollout.of_wave(number)) for number in range(1, rollout.waves + 1)],
    }


VIEW: RecordView[AgentRollout] = RecordView(COLUMNS, FIELDS, _nodes, "there has been no rollout of agents yet")


def connect() -> RolloutFleet:
    """Open the API of the present context."""
    from novacron.rollout.agents.fleet import ApiFleet

    return ApiFleet(Client())


def orders(options: RolloutOptions, line: Callable[[str], None]) -> AgentOrders:
    """Return what can be ordered of rollouts of agents."""
    from novacron.rollout.agents.orders import AgentOrders

    return AgentOrders(options, connect, line)


def end(rollout: AgentRollout) -> None:
    """Say how a rollout ended; exit with 1 unless the nodes have the version that was asked for."""
    from novacron.rollout.agents.orders import AFTER_FAILURE
    from novacron.rollout.model import RolloutState

    name_left_out(rollout)
    if rollout.state is RolloutState.DONE:
        counts = ", ".join(f"{count} {stage}" for stage, count in rollout.counts().items())
        say(f"rollout {rollout.number} of agents to {rollout.version} is done: {counts}")
        return
    say(f"rollout {rollout.number} of agents is {rollout.state}: {rollout.reason}", err=True)
    if rollout.state is RolloutState.FAILED:
        say(AFTER_FAILURE, err=True)
    raise typer.Exit(output.EXIT_FAILED)


def name_left_out(rollout: AgentRollout) -> None:
    """Name the nodes that do not have the version that was asked for, and why."""
    noted = [node for node in rollout.nodes if node.note]
    for node in noted[:NAMED_MAX]:
        say(f"{node.name} is {node.stage}: {node.note}", err=True)
    if len(noted) > NAMED_MAX:
        say(f"and {len(noted) - NAMED_MAX} more: novacron rollout status --agents -o json", err=True)


def resumed(rollout: AgentRollout) -> None:
    """Say what a rollout that goes on does, or how it ended."""
    from novacron.rollout.model import RolloutState

    if not rollout.ended:
        say(f"rollout {rollout.number} of agents continues: novacron rollout status --agents")
    elif rollout.state is RolloutState.ROLLED_BACK:
        back(rollout)
    else:
        end(rollout)


def back(rollout: AgentRollout) -> None:
    """Say how going back ended; exit with 1 if nodes still have the new version."""
    from novacron.rollout.model import RolloutState

    if rollout.state is RolloutState.ROLLED_BACK:
        name_left_out(rollout)
        say(f"rollout {rollout.number} of agents is rolled back: its nodes have {rollout.version_before} again")
        return
    if rollout.state is RolloutState.DONE:
        done = f"rollout {rollout.number} of agents was done before it could be aborted"
        raise output.fail(done, output.EXIT_FAILED, "another version: novacron rollout start --agents")
    end(rollout)


def status(state_dir: Path, output_: OutputFormat) -> None:
    """Show the newest rollout of agents."""
    rollout = VIEW.newest(_journal(state_dir), output_)
    if output_.for_people:
        name_left_out(rollout)


def history(state_dir: Path, number: int | None, output_: OutputFormat) -> None:
    """List rollouts of agents, newest first, or show the steps of one."""
    journal = _journal(state_dir)
    if number is None:
        VIEW.list(journal, output_)
        return
    rollout = VIEW.with_all_steps(journal, number, output_)
    if output_.for_people:
        name_left_out(rollout)


def _journal(state_dir: Path) -> AgentJournal:
    from novacron.rollout.agents.journal import AgentJournal

    return AgentJournal(state_dir)

"""``novacron rollout``: brings a new version of the server behind HAProxy, and back. Runs on the server's host."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from novacron import settings_file
from novacron.cli import agent_rollouts, output
from novacron.cli.options import expand
from novacron.cli.output import Columns, Output, OutputFormat
from novacron.cli.rollout_records import RecordView
from novacron.rollout.options import SETTINGS, STATE_DIR, RolloutOptions
from novacron.terminal import say

if TYPE_CHECKING:  # loaded where they are needed: other commands start faster
    from novacron.rollout.agents.orders import AgentOrders
    from novacron.rollout.journal import RolloutJournal
    from novacron.rollout.model import Rollout
    from novacron.rollout.orders import Orders

app = typer.Typer(
    no_args_is_help=True,
    help="Roll out a new version of the server behind HAProxy, or of the agents in waves; watch it, and roll back"
    " automatically.",
)


class StartStrategy(StrEnum):
    """How a new version gets its requests."""

    BLUE_GREEN = "blue-green"
    CANARY = "canary"


Version = Annotated[str, typer.Option(help="version to roll out, such as 1.2.0", show_default=False)]
At = Annotated[Path | None, typer.Option("--state-dir", help=f"directory with the journal; default: {STATE_DIR}")]
Settings = Annotated[
    Path | None, typer.Option("--settings", help=f"TOML file that names it; default: {SETTINGS} if it is there")
]
Agents = Annotated[bool, typer.Option("--agents", help="roll out agents on the nodes, not the server")]
COLUMNS: Columns = {
    "NUMBER": lambda r: r["number"],
    "STRATEGY": lambda r: r["strategy"],
    "VERSION": lambda r: r["version"],
    "BEFORE": lambda r: r["version_before"],
}
FIELDS: Columns = {
    "ROLLOUT": lambda r: r["number"],
    "STRATEGY": lambda r: r["strategy"],
    "VERSION": lambda r: f"{r['version']} on {r['colour']}",
    "BEFORE": lambda r: f"{r['version_before']} on {r['stable']}" if r["version_before"] else "",
    "STATE": lambda r: r["state"] + (" (no process works on it: novacron rollout resume)" if r["abandoned"] else ""),
    "STEP": lambda r: r["step"],
    "SHARES": lambda r: ", ".join(f"{share['percent']} % for {share['watch_s']:g} s" for share in r["shares"]),
}
VIEW: RecordView[Rollout] = RecordView(
    COLUMNS, FIELDS, lambda rollout: {"stable": rollout.stable.value}, "there has been no rollout yet"
)


@contextmanager
def _errors() -> Iterator[None]:
    from novacron.rollout.model import RolloutError

    with output.errors():
        try:
            yield
        except RolloutError as error:
            raise output.fail(str(error), output.EXIT_REFUSED) from None


def _orders(context: typer.Context, options: RolloutOptions) -> Orders:
    """Return what can be ordered. Ends the command if the settings are wrong."""
    from novacron.rollout.orders import Orders

    return Orders(_checked(context, options, RolloutOptions.check), _say_when)


def _agent_orders(context: typer.Context, options: RolloutOptions) -> AgentOrders:
    """Return what can be ordered of agents. Ends the command if the settings are wrong."""
    return agent_rollouts.orders(_checked(context, options, RolloutOptions.check_agents), _say_when)


def _checked(
    context: typer.Context, options: RolloutOptions, check: Callable[[RolloutOptions], None]
) -> RolloutOptions:
    """Return the settings, with the usual file if none is named. Ends the command if they are wrong."""
    if options.settings_file is None and SETTINGS.exists():
        options = _with_default_file(context)
    try:
        check(options)
    except typer.BadParameter as error:
        settings_file.fail(settings_file.blamed(context, error))
    return options


def _say_when(line: str) -> None:
    say(f"{datetime.now(UTC):%H:%M:%S} {line}", flush=True)


def _with_default_file(context: typer.Context) -> RolloutOptions:
    """Return the options with what the file says that nobody named: what was typed wins over it."""
    kinds = {setting.name: setting for setting in settings_file.settings(RolloutOptions)}
    settings = settings_file.parse(SETTINGS)
    problems = list(settings_file.problems_in(context, SETTINGS, settings, kinds))
    if problems:
        settings_file.fail(*(f"{SETTINGS}: {problem}" for problem in problems))
    from_file = settings_file.options_of(context, RolloutOptions, settings)
    values: dict[str, Any] = {}
    for setting in kinds.values():
        source = context.get_parameter_source(setting.field)
        typed = source is not None and source.name in (settings_file.FROM_COMMAND_LINE, settings_file.FROM_ENVIRONMENT)
        values[setting.field] = context.params[setting.field] if typed else getattr(from_file, setting.field)
    return RolloutOptions(**values)


def _end(rollout: Rollout) -> None:
    """Say how a rollout ended; exit with 1 if the version that was asked for does not serve."""
    from novacron.rollout.model import AFTER_FAILURE, RolloutState

    if rollout.state is RolloutState.DONE:
        say(f"rollout {rollout.number} is done: version {rollout.version} serves on {rollout.colour}")
        return
    say(f"rollout {rollout.number} is {rollout.state}: {rollout.reason}", err=True)
    if rollout.state is RolloutState.FAILED:
        say(AFTER_FAILURE, err=True)
    raise typer.Exit(output.EXIT_FAILED)


def _back(rollout: Rollout) -> None:
    """Say how going back ended; exit with 1 if the old version does not serve."""
    from novacron.rollout.model import RolloutState

    if rollout.state is RolloutState.ROLLED_BACK:
        say(f"rollout {rollout.number} is rolled back: version {rollout.serving_version} on {rollout.serving} serves")
        return
    if rollout.state is RolloutState.DONE:
        done = f"rollout {rollout.number} was done before it could be aborted: version {rollout.version} serves"
        raise output.fail(done, output.EXIT_FAILED, "to roll back anyway: novacron rollout rollback")
    _end(rollout)


@app.command()
@expand
def start(
    context: typer.Context,
    version: Version,
    strategy: Annotated[StartStrategy, typer.Option(help="blue-green: all requests at once; canary: gradually")] = (
        StartStrategy.BLUE_GREEN
    ),
    agents: Agents = False,
    options: RolloutOptions = RolloutOptions(),
) -> None:
    """Roll out a version: install it next to the current one, test it, shift the requests to it, watch it, and roll
    back on errors. With --agents: install it on the nodes, wave by wave; VMs keep running."""
    from novacron.rollout.model import Strategy

    with _errors():
        if agents:
            agent_rollouts.end(_agent_orders(context, options).start(version))
            return
        _end(_orders(context, options).start(Strategy(strategy.value), version))


@app.command()
@expand
def begin(context: typer.Context, version: Version, options: RolloutOptions = RolloutOptions()) -> None:
    """Start the first version behind HAProxy."""
    from novacron.rollout.model import Strategy

    with _errors():
        _end(_orders(context, options).start(Strategy.BEGIN, version))


@app.command()
@expand
def resume(context: typer.Context, agents: Agents = False, options: RolloutOptions = RolloutOptions()) -> None:
    """Resume a rollout that was paused, or whose process has ended."""
    from novacron.rollout.model import RolloutState

    with _errors():
        if agents:
            agent_rollouts.resumed(_agent_orders(context, options).resume())
            return
        rollout = _orders(context, options).resume()
        if not rollout.ended:
            say(f"rollout {rollout.number} continues: novacron rollout status")
        elif rollout.state is RolloutState.DONE:
            _end(rollout)
        else:
            _back(rollout)


@app.command()
@expand
def abort(context: typer.Context, agents: Agents = False, options: RolloutOptions = RolloutOptions()) -> None:
    """Roll back a rollout in progress, and wait until the old version serves all requests."""
    with _errors():
        if agents:
            agent_rollouts.back(_agent_orders(context, options).abort())
            return
        _back(_orders(context, options).abort())


@app.command()
@expand
def accept(context: typer.Context, agents: Agents = False, options: RolloutOptions = RolloutOptions()) -> None:
    """After a failed rollout: keep the version that is now serving, with all requests, and stop the other one."""
    from novacron.rollout.model import RolloutState

    with _errors():
        if agents:
            agent_rollouts.end(_agent_orders(context, options).accept())
            return
        rollout = _orders(context, options).accept()
        if rollout.state is RolloutState.DONE:
            _end(rollout)
        else:
            _back(rollout)


@app.command()
@expand
def rollback(context: typer.Context, options: RolloutOptions = RolloutOptions()) -> None:
    """Roll back to the previous version, whether a rollout is in progress or done."""
    from novacron.rollout.model import RolloutState

    with _errors():
        orders = _orders(context, options)
        last = orders.journal.last()
        if last is not None and (not last.ended or last.state is RolloutState.FAILED):
            _back(orders.abort())
        else:
            _end(orders.rollback())


@app.command()
def pause(agents: Agents = False, settings: Settings = None, state_dir: At = None) -> None:
    """Pause a rollout where it is. It is still watched, and still rolls back."""
    from novacron.rollout.orders import Orders

    with _errors():
        options = RolloutOptions(state_dir=_directory(settings, state_dir))
        rollout = agent_rollouts.orders(options, say).pause() if agents else Orders(options, say).pause()
        say(f"rollout {rollout.number} is {rollout.state} in step {rollout.step}")


@app.command()
def status(
    agents: Agents = False, settings: Settings = None, state_dir: At = None, output_: Output = OutputFormat.TABLE
) -> None:
    """Show the newest rollout and its latest steps."""
    with _errors():
        if agents:
            agent_rollouts.status(_directory(settings, state_dir), output_)
            return
        VIEW.newest(_journal(settings, state_dir), output_)


@app.command()
def history(
    number: Annotated[
        int | None, typer.Argument(help="number of a rollout whose steps to show", show_default=False)
    ] = None,
    agents: Agents = False,
    settings: Settings = None,
    state_dir: At = None,
    output_: Output = OutputFormat.TABLE,
) -> None:
    """List rollouts, newest first, or show the steps of one."""
    with _errors():
        if agents:
            agent_rollouts.history(_directory(settings, state_dir), number, output_)
            return
        journal = _journal(settings, state_dir)
        if number is None:
            VIEW.list(journal, output_)
        else:
            VIEW.with_all_steps(journal, number, output_)


def _directory(settings: Path | None, state_dir: Path | None) -> Path:
    """Return where the journal is."""
    file = settings or (SETTINGS if SETTINGS.exists() else None)
    if state_dir is not None or file is None:
        return state_dir or STATE_DIR
    named = settings_file.parse(file).get("state-dir", str(STATE_DIR))
    if not isinstance(named, str) or not named:
        settings_file.fail(f"{file}: state-dir must be a string in quotes, not {named!r}")
    return Path(named)


def _journal(settings: Path | None, state_dir: Path | None) -> RolloutJournal:
    from novacron.rollout.journal import RolloutJournal

    return RolloutJournal(_directory(settings, state_dir))

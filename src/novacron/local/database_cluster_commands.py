"""``novacron database cluster``: the database in several places."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from novacron.cli import output
from novacron.cli.options import expand
from novacron.extras import Extra, require
from novacron.service_options import StateDir, default_state_dir
from novacron.terminal import say

if TYPE_CHECKING:
    from novacron.local.database_cluster.files import MemberFiles
    from novacron.local.database_cluster.health import ClusterProblem
    from novacron.local.database_cluster.moves import Mover, PrimaryMove
    from novacron.local.database_cluster.settings import Cluster, ClusterMember
    from novacron.local.database_cluster.view import ClusterView

app = typer.Typer(no_args_is_help=True)
BY_SYSTEMD = "start it: systemctl enable --now novacron-database; and then see: novacron database cluster status"
SIZES = {"": 1, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}

CheckOnly = Annotated[bool, typer.Option("--check", help="only check that everything is ready, and change nothing")]
NoStart = Annotated[
    bool, typer.Option("--no-start", help="prepare everything, and let systemd start it: novacron-database.service")
]
PrivateNetwork = Annotated[
    bool,
    typer.Option(
        "--private-network",
        help="confirm that nobody else can read the unencrypted traffic between members and to etcd",
    ),
]
SetAside = Annotated[
    bool,
    typer.Option("--set-aside", help="keep this machine's existing database as data.set-aside"),
]
To = Annotated[str | None, typer.Option(help="new primary; default: the synchronous standby")]
Yes = Annotated[bool, typer.Option("--yes", help="don't ask")]


@dataclasses.dataclass(frozen=True)
class MemberOptions:
    """What a member is."""

    host: Annotated[str, typer.Option(help="address of this machine, for the other members and the servers")]
    member: Annotated[str, typer.Option(help="name of this member, such as database-1")]
    port: Annotated[int, typer.Option(min=1, max=65535, help="port of PostgreSQL")] = 5432
    api_port: Annotated[int, typer.Option(min=1, max=65535, help="port of Patroni's API, for the other members")] = 8008
    private_network: PrivateNetwork = False

    def typed(self) -> ClusterMember:
        from novacron.local.database_cluster import settings

        return settings.ClusterMember(
            name=settings.check_name(self.member, "--member"), host=settings.check_host(self.host, "--host"),
            port=self.port, api_port=self.api_port,
        )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class ClusterOptions:
    """What a cluster is."""

    etcd: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help="endpoint of etcd, such as https://192.0.2.11:2379; can be repeated"),
    ] = None
    etcd_ca: Annotated[Path | None, typer.Option(help="file with the CA of etcd; the same path on all members")] = None
    etcd_certificate: Annotated[Path | None, typer.Option(help="file with the client certificate for etcd")] = None
    etcd_key: Annotated[Path | None, typer.Option(help="file with its key")] = None
    name: Annotated[str, typer.Option(help="name of the cluster in etcd")] = "novacron"
    strict: Annotated[
        bool,
        typer.Option(
            "--strict", help="the last remaining member accepts no writes, because they would be in one place only"
        ),
    ] = False

    def words(self) -> tuple[str, ...]:
        """Return these options as they are typed; none: no etcd is named."""
        if not self.etcd:
            return ()
        files = (
            ("--etcd-ca", self.etcd_ca), ("--etcd-certificate", self.etcd_certificate), ("--etcd-key", self.etcd_key)
        )  # fmt: skip
        return (
            *(word for url in self.etcd for word in ("--etcd", url)),
            *(word for option, path in files if path is not None for word in (option, str(path.resolve()))),
            *("--name", self.name),
            *(("--strict",) if self.strict else ()),
        )

    def typed(self) -> Cluster:
        from novacron.local.database_cluster import checks, settings

        paths = [None if path is None else str(path.resolve())
                 for path in (self.etcd_ca, self.etcd_certificate, self.etcd_key)]  # fmt: skip
        access = settings.check_etcd(self.etcd or [], *paths)
        return settings.Cluster.new(
            settings.check_name(self.name, "--name"), access, tls=checks.speaks_tls(), lone_writes=not self.strict
        )


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Say in words why something can't be done, and end."""
    require(Extra.SERVER, Extra.CLUSTER)
    from novacron.local.database_cluster.settings import ClusterFailed
    from novacron.local.postgres import PostgresFailed

    try:
        yield
    except (ClusterFailed, PostgresFailed, OSError) as error:
        say(f"error: {error}", err=True)
        sys.exit(1)


def _files(state_dir: Path | None) -> MemberFiles:
    from novacron.local.database_cluster.files import MemberFiles

    return MemberFiles((state_dir or default_state_dir()).resolve())


@app.command("init")
@expand
def cluster_init(
    member_options: MemberOptions,
    cluster_options: ClusterOptions,
    state_dir: StateDir = None,
    check: CheckOnly = False,
    no_start: NoStart = False,
) -> None:
    """Make the embedded database, with all of its data, the first member of a cluster.

    Stop the server first; nothing is changed before all was checked. If it is interrupted, run it again.
    """
    with _explained():
        from novacron.local.database_cluster import steps
        from novacron.local.database_cluster.settings import ClusterFailed

        files, asked_for = _files(state_dir), cluster_options.typed()
        cluster, member = files.cluster() or asked_for, member_options.typed()
        if (cluster.name, cluster.etcd) != (asked_for.name, asked_for.etcd):
            raise ClusterFailed(
                f"{files.join_file} is of an init that named --name {cluster.name} and --etcd"
                f" {', '.join(cluster.etcd.endpoints)}: name the same, or remove the file to begin anew"
            )
        _same_member(files, member)
        steps.check_init(files, cluster, member, private_network=member_options.private_network)
        if check:
            say("everything is ready; nothing was changed")
            return
        steps.prepare_init(files, cluster, member, say)
        if no_start:
            say(BY_SYSTEMD)
        else:
            _show(steps.begin(files, cluster, member, steps.READY_S_MAX), output.OutputFormat.TABLE)
        say(
            f"copy {files.join_file}, which holds passwords, to the other machines, and there:"
            " novacron database cluster join --file cluster.join --host ADDRESS --member NAME"
        )
        _say_url(files)


@app.command("join")
@expand
def cluster_join(
    file: Annotated[
        Path,
        typer.Option(allow_dash=True, help="cluster.join, from the state directory of a member; - for standard input"),
    ],
    member_options: MemberOptions,
    state_dir: StateDir = None,
    check: CheckOnly = False,
    no_start: NoStart = False,
    set_aside: SetAside = False,
) -> None:
    """Add this machine to a cluster as a member, with a copy of the primary's data."""
    with _explained():
        from novacron.local.database_cluster import steps

        files, cluster, member = _files(state_dir), _join_file(file), member_options.typed()
        _same_member(files, member)
        private = member_options.private_network
        steps.check_join(files, cluster, member, private_network=private, set_aside=set_aside)
        if check:
            say("everything is ready; nothing was changed")
            return
        steps.prepare_join(files, cluster, member, say, set_aside=set_aside)
        if no_start:
            say(BY_SYSTEMD)
            return
        _show(steps.begin(files, cluster, member, steps.COPY_S_MAX), output.OutputFormat.TABLE)
        _say_url(files)


def _join_file(path: Path) -> Cluster:
    from novacron.local.database_cluster.files import JOIN_BYTES_MAX, parse_join_file, read_join_file

    if str(path) == "-":
        return parse_join_file(sys.stdin.buffer.read(JOIN_BYTES_MAX), "--file -")
    return read_join_file(path)


@app.command("run")
def cluster_run(state_dir: StateDir = None) -> None:
    """Run this machine's member in the foreground, for a service manager, after init or join."""
    with _explained():
        from novacron.local.database_cluster import process

        process.run(_files(state_dir))


@app.command("status")
def cluster_status(state_dir: StateDir = None, output_: output.Output = output.OutputFormat.TABLE) -> None:
    """Show the members, any problems, and what to do. Exits with 1 if there is a problem."""
    with _explained():
        from novacron.local.database_cluster import health
        from novacron.local.database_cluster.settings import ClusterFailed

        with _controls(state_dir) as (files, cluster, mover):
            now_s = time.time()
            ending = health.of_certificates(files.certificate_ends(), now_s)
            try:
                view = mover.look()
            except ClusterFailed:
                _say_problems(ending)  # which may be why
                raise
            problems = [*health.problems(view), *ending, *health.of_etcd_servers(view, now_s)]
            if view.primary is not None and view.members:
                with contextlib.suppress(PermissionError):
                    files.keep_url(cluster, [each.address for each in view.members if each.address])
        _show(view, output_, problems)
        if problems:
            sys.exit(1)


@app.command("renew")
def cluster_renew(state_dir: StateDir = None) -> None:
    """Renew the certificate of this machine's member while it runs. It is also renewed when it starts, if due."""
    with _explained():
        from novacron.local.database_cluster import process

        files = _files(state_dir)
        files.renew_certificates(time.time(), force=True)
        uses = "Patroni uses it within seconds" if process.reload(files) else "Patroni uses it once it is started"
        say(f"this member has a new certificate; {uses}")


@app.command("switch")
def cluster_switch(to: To = None, yes: Yes = False, state_dir: StateDir = None) -> None:
    """Switch over to another primary, as planned: no acknowledged write is lost."""
    with _explained():
        from novacron.local.database_cluster import moves

        with _controls(state_dir) as (_, _, mover):
            move = moves.plan_switch(mover.look(), to)
            _confirm(f"{move.target.name} becomes the primary instead of {move.primary}; writes wait for seconds", yes)
            _show(mover.switch(move), output.OutputFormat.TABLE)


@app.command("failover")
def cluster_failover(
    to: To = None,
    accept_loss: Annotated[
        str | None,
        typer.Option(metavar="BYTES|unknown", help="limit of acknowledged data that may be lost, such as 64KiB"),
    ] = None,
    fenced: Annotated[
        str | None,
        typer.Option(metavar="MEMBER", help="lost primary whose machine is certainly off: don't wait for it"),
    ] = None,
    yes: Yes = False,
    state_dir: StateDir = None,
) -> None:
    """Fail over to another primary after the current one is lost."""
    with _explained():
        from novacron.local.database_cluster import moves

        with _controls(state_dir) as (_, _, mover):
            view = mover.look()
            move = moves.plan_failover(view, to)
            moves.check_off(view, fenced)
            moves.check_loss(move, _loss(accept_loss))
            _confirm(_what_is_lost(move), yes)
            _show(mover.failover(move, fenced), output.OutputFormat.TABLE)


def _what_is_lost(move: PrimaryMove) -> str:
    if not move.loses:
        return f"{move.target.name} becomes the primary; no acknowledged write is lost"
    lost = "an unknown part" if move.loss_bytes is None else f"{output.size(move.loss_bytes)} or more"
    return f"{move.target.name} becomes the primary; {lost} of acknowledged writes is lost for good"


@contextlib.contextmanager
def _controls(state_dir: Path | None) -> Iterator[tuple[MemberFiles, Cluster, Mover]]:
    from novacron.local.database_cluster.etcd import Etcd
    from novacron.local.database_cluster.moves import Mover
    from novacron.local.database_cluster.view import Members, look

    files = _files(state_dir)
    cluster, _ = files.membership()
    etcd, members = Etcd(cluster.etcd), Members(cluster)
    try:
        yield files, cluster, Mover(cluster, etcd, members, lambda: look(cluster, etcd, members))
    finally:
        etcd.close()
        members.close()


def _same_member(files: MemberFiles, member: ClusterMember) -> None:
    from novacron.local.database_cluster.settings import ClusterFailed

    known = files.member()
    if known is not None and known != member:
        raise ClusterFailed(
            f"this machine is, or is to become, member {known.name} at {known.address} (--api-port {known.api_port}):"
            " name the same"
        )


def _confirm(words: str, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        say(f"error: {words}: confirm with --yes", err=True)
        sys.exit(2)
    typer.confirm(f"{words}. Continue?", abort=True)


def _loss(text: str | None) -> int | str | None:
    """Return an amount that was typed. Raises BadParameter."""
    if text is None or text == "unknown":
        return text
    digits = text.rstrip("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
    unit = SIZES.get(text[len(digits) :].lower())
    if not digits.isdecimal() or unit is None:
        raise typer.BadParameter(f"{text!r}: write it like 4096, 64KiB or unknown", param_hint="--accept-loss")
    return int(digits) * unit


def _show(view: ClusterView, output_: output.OutputFormat, problems: list[ClusterProblem] | None = None) -> None:
    if output_ is not output.OutputFormat.TABLE:
        shown = {"well": not problems, **msgspec.to_builtins(view), "problems": msgspec.to_builtins(problems or [])}
        output.show(shown, output_)
        return
    columns: output.Columns = {
        "MEMBER": lambda row: row["name"],
        "ADDRESS": lambda row: row["address"],
        "ROLE": lambda row: row["role"],
        "STATE": lambda row: row["state"],
        "TIMELINE": lambda row: row["timeline"],
        "LAG": lambda row: "unknown" if row["lag_bytes"] is None else output.size(row["lag_bytes"]),
        "BEHIND": lambda row: "" if row["lag_s"] is None else f"{row['lag_s']:.0f} s",
    }
    output.rows([msgspec.to_builtins(member) for member in view.members], columns, output_)
    _say_problems(problems or [])


def _say_problems(problems: list[ClusterProblem]) -> None:
    for problem in problems:
        say(f"wrong: {problem.text}", err=True)
        say(f"  do: {problem.hint}", err=True)


def _say_url(files: MemberFiles) -> None:
    say(f"servers reach the database by the URL in {files.url_file}: NOVACRON_DATABASE_URL, or --database")

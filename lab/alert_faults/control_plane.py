"""Faults of the server and of its database."""

from __future__ import annotations

import contextlib
import os
import signal
import ssl
import threading
import time
from collections.abc import Callable, Iterator

import urllib3

from lab.alert_faults.model import AlertFault, Mending, Scene
from lab.database_sessions import DatabaseSessions, execute, sessions
from lab.observers import Collector
from lab.platform import Platform, until
from lab.runbook_runs import Actions

RESTART = "systemctl restart novacron-server"
IS_ACTIVE = "systemctl is-active novacron-server"
STALL_S, BETWEEN_STALLS_S = 0.5, 0.2
CLIENTS = 6
DATABASE = {"database": "postgres"}
"""By name: where it is, PostgreSQL's programs have from the environment."""
CONTROLLER = "rebalance"
WAITING_WRITES = 60
FREE_SESSIONS = 6
BAD_SPEC = """UPDATE vms SET spec = spec || '{"power": "teleport"}' WHERE id = '%s'"""
SLOW_WRITES = 12
SLOW_DOWN = """
    CREATE OR REPLACE FUNCTION slow_down() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN PERFORM pg_sleep(0.25); RETURN coalesce(NEW, OLD); END $$;
    CREATE TRIGGER slow_down BEFORE INSERT OR DELETE ON projects FOR EACH ROW EXECUTE FUNCTION slow_down()
"""
SPEED_UP = "DROP FUNCTION IF EXISTS slow_down() CASCADE"
REFUSE = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.name = 'refused' AND NEW.node IS NOT NULL THEN RAISE EXCEPTION 'not this one'; END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER refuse BEFORE UPDATE ON vms FOR EACH ROW EXECUTE FUNCTION refuse();
"""
ADMIT = "DROP FUNCTION IF EXISTS refuse CASCADE"
GOOD_SPEC = """UPDATE vms SET spec = spec || '{"power": "stopped"}' WHERE id = '%s'"""


@contextlib.contextmanager
def killed_server(scene: Scene) -> Iterator[Mending]:
    site = scene.site
    site.server.kill()
    try:
        yield Mending(_server_actions(site, site.server.start))
    finally:
        if not site.server.running:
            site.server.start()
        site.wait_settled()


def _server_actions(site: Platform, restart: Callable[[], object]) -> Actions:
    return {RESTART: restart, IS_ACTIVE: lambda: "active" if site.server.running else "inactive"}


@contextlib.contextmanager
def killed_database(scene: Scene) -> Iterator[Mending]:
    site, begun = scene.site, list[str]()
    site.postgres.kill()
    try:
        yield Mending(
            {
                "systemctl start postgresql": lambda: begun.append(site.postgres.start()),
                "pg_isready": lambda: "accepting connections" if begun else "no response",
            },
            values=DATABASE,
        )
    finally:
        if not begun:
            site.postgres.start()
        site.wait_ready()


@contextlib.contextmanager
def old_transaction(scene: Scene) -> Iterator[Mending]:
    """Somebody has begun to write, and went home."""
    with _forgotten(scene, "SELECT pg_current_xact_id()") as mending:
        yield mending


@contextlib.contextmanager
def locked_leases(scene: Scene) -> Iterator[Mending]:
    """The same, and nobody else may write to the nodes' leases meanwhile."""
    with _forgotten(scene, "SELECT pg_current_xact_id()", "LOCK TABLE node_leases IN EXCLUSIVE MODE") as mending:
        yield mending
    scene.site.wait_settled()


@contextlib.contextmanager
def _forgotten(scene: Scene, *statements: str) -> Iterator[Mending]:
    """A transaction that somebody has begun, and does not end."""
    url = scene.site.postgres.url
    with sessions(url) as somebody:
        somebody.execute("BEGIN", *statements)
        answers = dict.fromkeys(("no-old-transaction", "cause-mended"), lambda: _end_old_transactions(url))
        yield Mending({"pg_isready": lambda: "accepting connections"}, answers, DATABASE)


def _end_old_transactions(url: str) -> None:
    """End them as the page says."""
    execute(
        url,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE backend_xid IS NOT NULL AND state = 'idle in transaction' AND pid <> pg_backend_pid()",
    )


@contextlib.contextmanager
def many_sessions(scene: Scene) -> Iterator[Mending]:
    """Somebody's program opens sessions, and closes none."""
    url = scene.site.postgres.url
    with sessions(url) as somebody:
        _take_sessions(somebody)
        yield Mending(answers={"cause-mended": somebody.close}, values=DATABASE)


def _take_sessions(somebody: DatabaseSessions) -> None:
    """Leave few sessions free."""
    used = somebody.fetch_number("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'")
    most = somebody.fetch_number("SELECT current_setting('max_connections')::int")
    somebody.open(most - used - FREE_SESSIONS)


@contextlib.contextmanager
def locked_table(scene: Scene) -> Iterator[Mending]:
    """Somebody has locked a table; who writes to it waits, with a connection of the pool."""
    site = scene.site
    with sessions(site.postgres.url) as somebody, _clients(site, _write_project, WAITING_WRITES):
        somebody.execute("BEGIN", "LOCK TABLE projects IN EXCLUSIVE MODE")
        yield Mending(answers={"cause-mended": somebody.close}, values=DATABASE)


@contextlib.contextmanager
def slow_writes(scene: Scene) -> Iterator[Mending]:
    """A trigger that somebody has put into the database makes writes slow."""
    site = scene.site
    execute(site.postgres.url, SLOW_DOWN)
    try:
        with _clients(site, _write_project, SLOW_WRITES):
            yield Mending(answers={"cause-mended": lambda: execute(site.postgres.url, SPEED_UP)}, values=DATABASE)
    finally:
        execute(site.postgres.url, SPEED_UP)


@contextlib.contextmanager
def database_away(scene: Scene) -> Iterator[Mending]:
    """PostgreSQL is killed, and whoever is called for what fails because of it starts it."""
    with killed_database(scene) as mending:
        start = mending.actions["systemctl start postgresql"]
        yield Mending(bundle(scene), {"cause-mended": start})


@contextlib.contextmanager
def dead_session(scene: Scene) -> Iterator[Mending]:
    """A session of a server that is gone holds the lock of a controller."""
    site = scene.site
    site.server.stop()
    with sessions(site.postgres.url) as dead:
        dead.execute(f"SELECT pg_advisory_lock(hashtext('novacron.{CONTROLLER}'))")
        pid = dead.fetch_number("SELECT pg_backend_pid()")
        site.server.start()
        site.wait_settled()
        end = f"SELECT pg_terminate_backend({pid})"
        yield Mending(
            _server_actions(site, lambda: _restart(site)),
            {"no-dead-session": lambda: execute(site.postgres.url, end)},
        )
    site.wait_settled()


@contextlib.contextmanager
def unreadable_row(scene: Scene) -> Iterator[Mending]:
    """The specification of a VM has a value that no version knows."""
    site = scene.site
    vm = site.client.create_vm(name="unreadable", image="tiny", memory_mib=128, power="stopped")["id"]
    execute(site.postgres.url, BAD_SPEC % vm)
    repository = scene.directory / "repository-of-unreadable"
    os.environ["NOVACRON_DATABASE_URL"] = site.postgres.url
    os.environ["NOVACRON_STATE_DIR"] = str(scene.directory)
    site.cli("database", "backup", "--repository", str(repository), "--create")
    try:
        yield Mending(
            {**_server_actions(site, lambda: _restart(site)), **_journal_of(site)},
            {"corrected": lambda: execute(site.postgres.url, GOOD_SPEC % vm)},
            {"repository": str(repository)},
        )
    finally:
        for name in ("NOVACRON_DATABASE_URL", "NOVACRON_STATE_DIR"):
            os.environ.pop(name, None)
        execute(site.postgres.url, GOOD_SPEC % vm)
        site.wait_settled()
        site.client.delete("vms", vm)


@contextlib.contextmanager
def refused_row(scene: Scene) -> Iterator[Mending]:
    """A trigger that somebody has put into the database refuses that one VM is given to a node."""
    site = scene.site
    execute(site.postgres.url, REFUSE)
    vm = site.client.create_vm(name="refused", image="tiny", memory_mib=128, power="stopped")["id"]
    try:
        yield Mending(bundle(scene), {"cause-mended": lambda: execute(site.postgres.url, ADMIT)})
    finally:
        execute(site.postgres.url, ADMIT)
        site.client.delete("vms", vm)
        site.wait_settled()


def _journal_of(site: Platform) -> Actions:
    """Show the server's own log since its last start, where a host has the journal."""

    def since_start() -> str:
        lines = site.server.log.read_text(errors="replace").splitlines()
        begun = [number for number, line in enumerate(lines) if '"serving"' in line]
        return "\n".join(line for line in lines[begun[-1] if begun else 0 :] if "left out" in line)

    return {"journalctl -u novacron-server --no-pager --since -2min --grep 'left out'": since_start}


def _restart(site: Platform) -> None:
    site.server.stop()
    site.server.start()


@contextlib.contextmanager
def bad_release(scene: Scene, fault: str, wait_s: float) -> Iterator[Mending]:
    """The server has got into a state in which it does what ``lab.released`` says, until it is started again."""
    site, good = scene.site, list(scene.site.server.arguments)
    at = good.index("novacron")
    site.server.stop()
    site.server.arguments = [*good[:at], "lab.released", "1.0.0", fault, *good[at:]]
    site.server.start()
    _wait_answers(site)

    def restart() -> None:
        site.server.stop()
        site.server.arguments = good
        site.server.start()
        site.wait_settled()

    check = {"novacron server --settings /etc/novacron/server.toml --check-settings": lambda: ""}
    try:
        with _clients(site, _read_nodes, CLIENTS, wait_s):
            yield Mending({**_server_actions(site, restart), **check, **bundle(scene)})
    finally:
        if site.server.arguments != good:
            restart()


def _wait_answers(site: Platform) -> None:
    """Wait until the server listens again, though it may answer with errors."""
    with _pool(site) as pool:
        until(lambda: _status(pool, site, "/readyz") == 200, "the server is ready", 60)


def failing_requests(scene: Scene) -> contextlib.AbstractContextManager[Mending]:
    """One request of four ends with 500, until the server is started again."""
    return bad_release(scene, "errors=0.25", 0.1)


def slow_requests(scene: Scene) -> contextlib.AbstractContextManager[Mending]:
    """Each request takes 0.8 s, until the server is started again."""
    return bad_release(scene, "delay=0.8", 0.1)


def bundle(scene: Scene) -> Actions:
    """Make the bundle of evidence where it does not lie in the tests' folder."""
    return {
        "novacron support-bundle": lambda: (
            scene.site.cli("support-bundle", str(scene.directory / f"bundle-{time.monotonic_ns()}.tar.gz")).stdout
        )
    }


@contextlib.contextmanager
def absent_collector(scene: Scene) -> Iterator[Mending]:
    """The server is to send its spans to a collector that does not run."""
    site, collector, before = scene.site, Collector(), dict(scene.site.server.env)
    site.server.env |= {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_TRACES_SAMPLER_ARG": "1"}
    _restart(site)
    site.wait_settled()
    with contextlib.ExitStack() as after:
        try:
            with _clients(site, _read_nodes, 1, 0.2):
                yield Mending(bundle(scene), {"cause-mended": lambda: after.enter_context(collector.running())})
        finally:
            site.server.env = before
            _restart(site)
            site.wait_settled()


@contextlib.contextmanager
def stalled_server(scene: Scene) -> Iterator[Mending]:
    """The server's machine gives it no processor for half a second, again and again."""
    site = scene.site
    process, ended = site.server.process, threading.Event()
    assert process is not None

    def stall() -> None:
        while not ended.wait(BETWEEN_STALLS_S):
            process.send_signal(signal.SIGSTOP)
            ended.wait(STALL_S)
            process.send_signal(signal.SIGCONT)

    thread = threading.Thread(target=stall)
    thread.start()

    def give_processor() -> None:
        ended.set()
        thread.join()

    check = {"novacron server --settings /etc/novacron/server.toml --check-settings": lambda: ""}
    actions = {**_server_actions(site, lambda: _restart(site)), **check}
    try:
        yield Mending(actions, {"settings-changed": give_processor})
    finally:
        give_processor()
        site.wait_settled()


Ask = Callable[[urllib3.PoolManager, Platform, int], object]


@contextlib.contextmanager
def _clients(site: Platform, ask: Ask, count: int, wait_s: float = 0.05) -> Iterator[None]:
    """Let clients ask the server until the block ends; what they are answered does not matter."""
    ended = threading.Event()

    def work(number: int) -> None:
        with _pool(site) as pool:
            while not ended.wait(wait_s):
                with contextlib.suppress(urllib3.exceptions.HTTPError):
                    ask(pool, site, number)

    threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def _pool(site: Platform) -> urllib3.PoolManager:
    return urllib3.PoolManager(ssl_context=ssl.create_default_context(cadata=site.client.config.ca))


def _status(pool: urllib3.PoolManager, site: Platform, path: str, method: str = "GET", body: bytes = b"") -> int:
    headers = {"Authorization": f"Bearer {site.client.config.token}"}
    url = f"https://127.0.0.1:{site.ports[0]}{path}"
    try:
        return int(pool.request(method, url, headers=headers, body=body or None, retries=False, timeout=20).status)
    except urllib3.exceptions.HTTPError:
        return 0


def _read_nodes(pool: urllib3.PoolManager, site: Platform, number: int) -> None:
    _status(pool, site, "/api/v1/nodes?limit=5")


def _write_project(pool: urllib3.PoolManager, site: Platform, number: int) -> None:
    _status(pool, site, "/api/v1/projects", "POST", b'{"name": "waits-%d"}' % number)
    _status(pool, site, f"/api/v1/projects/waits-{number}", "DELETE")


ALL = (
    AlertFault(
        "killed-server", "the server is killed", ("ServiceDown",), "incidents/service-down", killed_server
    ),
    AlertFault(
        "killed-database", "PostgreSQL is killed", ("DatabaseUnavailable",),
        "incidents/database-issues", killed_database,
    ),
    AlertFault(
        "locked-leases", "a session that nobody needs has locked the table of the nodes' leases",
        ("HeartbeatsNotStored",), "incidents/database-issues", locked_leases,
    ),
    AlertFault(
        "database-away", "PostgreSQL is killed, and controllers fail",
        ("ControllerFails", "NodeLinkBreaks"), "troubleshooting/api", database_away,
    ),
    AlertFault(
        "refused-row", "a trigger in the database refuses that one VM is given to a node",
        ("ControllerObjectsFail",), "troubleshooting/api", refused_row,
    ),
    AlertFault(
        "dead-session", "a session of a server that is gone holds the lock of a controller",
        ("ControllerWithoutLeader",), "incidents/service-down", dead_session, {"controller": CONTROLLER},
    ),
    AlertFault(
        "old-transaction", "a session that nobody needs has had a transaction open for minutes",
        ("ReadsAreOld", "DatabaseTransactionTooLong"), "incidents/database-issues", old_transaction, fires_s_max=180,
    ),
    AlertFault(
        "unchained-audit-log", "the same, for so long that the audit log is not chained",
        ("AuditLogNotChained",), "troubleshooting/database", old_transaction, fires_s_max=360,
    ),
    AlertFault(
        "many-sessions", "a program has opened nearly all sessions that PostgreSQL may have",
        ("DatabaseSessionsAlmostUsed",), "troubleshooting/database", many_sessions,
    ),
    AlertFault(
        "locked-table", "a session holds a lock on a table that users write to",
        ("DatabaseConnectionPoolExhaustion",), "troubleshooting/database", locked_table,
    ),
    AlertFault(
        "slow-writes", "a trigger in the database makes writes slow",
        ("DatabaseSlow",), "troubleshooting/database", slow_writes,
    ),
    AlertFault(
        "unreadable-row", "a row of a VM has a value that no version knows",
        ("DatabaseRowsUnreadable",), "disaster-recovery/data-corruption", unreadable_row,
    ),
    AlertFault(
        "failing-requests", "a quarter of the requests ends with 500 until the server is started again",
        ("HighAPIErrorRate", "APIErrorBudgetBurnsFast", "APIErrorBudgetBurnsSlowly"),
        "incidents/high-error-rate", failing_requests,
    ),
    AlertFault(
        "slow-requests", "each request takes 0.8 s longer until the server is started again",
        ("HighAPILatency",), "incidents/high-latency", slow_requests,
    ),
    AlertFault(
        "stalled-server", "the server gets no processor for half a second, again and again",
        ("ServerLoopLate",), "incidents/high-latency", stalled_server,
    ),
    AlertFault(
        "absent-collector", "the collector of spans does not run",
        ("TelemetryDropped",), "troubleshooting/api", absent_collector,
    ),
)  # fmt: skip

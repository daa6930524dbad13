"""How much of the platform can be seen: for each route, controller, action of agents, phase of DWCP and call of the
database, whether it has a metric, a line in a log, and a span. The figures are printed and may not fall."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple
from unittest.mock import Mock

import pytest
from prometheus_client.parser import text_string_to_metric_families
from structlog.testing import capture_logs

import novacron
from lab.observers import Collector
from lab.platform import Platform, until
from novacron.agent.actions import Action
from novacron.agent.vm.power import Step
from novacron.api.app import create_app
from novacron.control.audit_chain import AuditChain
from novacron.control.controller import Controllers
from novacron.store.database import Database, PooledConnection
from novacron.telemetry import traces, values
from novacron.telemetry.declared import BY_NAME
from tests.integration.conftest import Api, sending
from tests.support.recorded_spans import record_spans
from tests.support.sources import parsed
from tests.waiting import pause

SOURCE = Path(novacron.__file__).parent
QUERY_METHODS = {"execute", "executemany", "fetch", "fetchrow", "fetchval", "cursor", "copy_records_to_table"}
PHASES = {
    # metric, event of the log, span or event of a span
    "open": ("novacron_dwcp_connections_opened_total", "a session is open", "dwcp open"),
    "send": ("novacron_dwcp_sessions_total", "a session was sent", "dwcp send"),
    "receive": ("novacron_dwcp_sessions_total", "a session was received", "dwcp receive"),
    "resume": ("novacron_dwcp_resumed_sessions_total", "a session goes on: all its connections had been lost",
               "dwcp resumed"),
    "repair": ("novacron_dwcp_repaired_pages_total", "pages are sent again: the peer's were damaged", "dwcp repaired"),
}  # fmt: skip
FLOORS = {
    "routes": 100.0, "controllers": 100.0, "agents' actions": 100.0, "phases of DWCP": 100.0, "database calls": 100.0,
}  # fmt: skip
"""Percent of metric, log and trace that each group must have."""


class Seen(NamedTuple):
    """By what something can be seen."""

    what: str
    metric: bool
    log: bool
    trace: bool

    @property
    def share(self) -> float:
        return (self.metric + self.log + self.trace) / 3


def share_of(group: list[Seen]) -> float:
    """Return the percentage of metrics, logs and traces that are there, of all that could be; 0 of nothing."""
    return 100 * sum(item.share for item in group) / len(group) if group else 0.0


def below_floor(groups: dict[str, list[Seen]]) -> dict[str, list[Seen]]:
    """Return what lacks something, of each group below its floor."""
    return {
        name: [item for item in groups.get(name, []) if item.share < 1]
        for name, floor in FLOORS.items()
        if share_of(groups.get(name, [])) < floor
    }


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with Collector().running() as running:
        yield running


@pytest.fixture(scope="module")
def traced(images: Path, lacks: list[str], collector: Collector) -> Iterator[Platform]:
    """A platform all of whose traces are recorded."""
    with sending(collector, 1, "nvc", images, lacks) as running:
        yield running


def counted(text: str) -> dict[str, list[dict[str, str]]]:
    """Return the labels of every sample that is not zero, by name."""
    by_family: dict[str, list[dict[str, str]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.value:
                by_family.setdefault(sample.name, []).append(sample.labels)
    return by_family


def routes() -> list[tuple[str, str]]:
    """Return method and path of every operation that there is."""
    app = create_app(None)  # type: ignore[arg-type]
    endpoints = set()
    for route in app.routes:
        for handler in getattr(route, "route_handlers", ()):
            for method in getattr(handler, "http_methods", ()):
                if str(method) not in ("OPTIONS", "HEAD"):
                    endpoints.add((str(method), str(route.path_format)))
    return sorted(endpoints)


def of_routes(traced: Platform, collector: Collector) -> list[Seen]:
    """Ask for everything that can be asked for, of things that there are not."""
    api = Api(traced.client)
    endpoints = routes()
    for number, (method, path) in enumerate(endpoints):
        body: dict[str, object] | None = {} if method in ("POST", "PUT", "PATCH") else None
        trace = f"00-{number + 1:032x}-{number + 1:016x}-01"
        api(method, re.sub(r"\{[^}]*\}", "none", path), body, traceparent=trace, Accept="application/json")
        pause(0.06)  # of reads that succeed, twenty a second are written down
    evidence: list[Seen] = []

    def all_are_seen() -> bool:
        evidence[:] = found_of_routes(api, collector, endpoints)
        return all(item.share == 1 for item in evidence)

    in_time(all_are_seen)
    return evidence


def in_time(condition: Callable[[], bool]) -> None:
    """Wait until it is so; if it does not come to be so, the figures tell."""
    with contextlib.suppress(AssertionError):
        until(condition, "all is seen", 30)


def found_of_routes(api: Api, collector: Collector, endpoints: list[tuple[str, str]]) -> list[Seen]:
    metrics = counted(api("GET", "/metrics").body)
    metric = {(entry["method"], entry["route"]) for entry in metrics["novacron_api_requests_total"]}
    logged = set()
    after = ""
    while True:
        page = api("GET", f"/api/v1/api-log?limit=500{after}").body
        logged |= {(entry["method"], entry["route"]) for entry in page["items"]}
        if not page.get("next"):
            break
        after = f"&after={page['next']}"
    spans = {span.name for span in list(collector.spans)}
    evidence = []
    for method, path in endpoints:
        names = {path, path.rstrip("/") or "/", re.sub(r"\{(\w+)(:\w+)?\}", r"{\1}", path)}
        evidence.append(
            Seen(
                f"{method} {path}",
                any((method, name) in metric for name in names),
                any((method, name) in logged for name in names),
                any(f"{method} {name}" in spans for name in names),
            )
        )
    return evidence


def steps_of(traced: Platform) -> list[dict[str, str]]:
    """Return the labels of the steps that controllers have made."""
    return counted(traced.client.metrics()).get("novacron_controller_steps_total", [])


def of_controllers(traced: Platform, collector: Collector) -> list[Seen]:
    audit = AuditChain(None, "", 0)  # type: ignore[arg-type]
    names = [item.name for item in Controllers(None, None, Mock(), audit)._all]  # type: ignore[arg-type]

    evidence: list[Seen] = []

    def all_are_seen() -> bool:
        log, spans = traced.server.log.read_text(), {span.name for span in list(collector.spans)}
        steps = {labels["controller"] for labels in steps_of(traced)}
        evidence[:] = [
            Seen(name, name in steps, f'"controller": "{name}"' in log, f"controller {name}" in spans) for name in names
        ]
        return all(item.share == 1 for item in evidence)

    in_time(all_are_seen)
    return evidence


def calls(tree: ast.AST) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def modules(*packages: str) -> Iterator[tuple[Path, ast.Module]]:
    for package in packages:
        for path in sorted((SOURCE / package).rglob("*.py")):
            if "schema" not in path.parts:
                yield path, parsed(path)


def of_actions() -> list[Seen]:
    """What is done in a block of ``doing`` has all three (test_an_action_is_counted_logged_and_traced)."""
    done = set()
    for _, tree in modules("agent"):
        for call in calls(tree):
            name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
            if name not in ("doing", "_doing") or not call.args:
                continue
            first = call.args[0]
            if isinstance(first, ast.Attribute):
                done.add(Action[first.attr])
            elif isinstance(first, ast.Call):  # Action(step)
                done |= {Action(step) for step in Step if step is not Step.NOTHING}
    return [Seen(action, action in done, action in done, action in done) for action in Action]


def texts(*packages: str) -> dict[str, set[str]]:
    """Return the texts of the calls that log, trace and count, by source."""
    by_source: dict[str, set[str]] = {"log": set(), "traces": set(), "counter": set()}
    for _, tree in modules(*packages):
        for call in calls(tree):
            first = call.args[0].value if call.args and isinstance(call.args[0], ast.Constant) else None
            if not isinstance(first, str):
                continue
            if isinstance(call.func, ast.Attribute) and isinstance(call.func.value, ast.Name):
                by_source.get(call.func.value.id, set()).add(first)
            elif isinstance(call.func, ast.Name) and call.func.id in ("counter", "histogram"):
                by_source["counter"].add(first)
    return by_source


def of_phases(traced: Platform, collector: Collector) -> list[Seen]:
    """Those of a migration are seen as it goes. What only failures bring is looked up in the code here, and seen to
    happen where they are made (test_dwcp_faults)."""
    said = texts("dwcp", "telemetry")
    logs = "".join(agent.log.read_text() for agent in traced.agents.values())
    spans = {span.name for span in list(collector.spans)}
    metrics = counted(traced.client.metrics("host-a") + traced.client.metrics("host-b"))
    evidence = []
    for phase, (metric, event, span) in PHASES.items():
        happened = phase in ("open", "send", "receive")
        evidence.append(
            Seen(
                phase,
                metric in metrics if happened else metric in said["counter"] and metric in BY_NAME,
                event in logs if happened else event in said["log"],
                span in spans if happened else span in said["traces"],
            )
        )
    return evidence


def of_database() -> list[Seen]:
    """A call through one of the methods that measure has all three (test_a_query_is_counted_logged_and_traced)."""
    measured = {name for name in QUERY_METHODS if name in vars(PooledConnection)}
    evidence = []
    for path, tree in modules("store", "api", "server", "control"):
        for call in calls(tree):
            if not isinstance(call.func, ast.Attribute) or call.func.attr not in QUERY_METHODS:
                continue
            owner = ast.unparse(call.func.value)
            if not re.search(r"connection|lock\b", owner):
                continue
            seen = call.func.attr in measured
            evidence.append(Seen(f"{path.relative_to(SOURCE)}:{call.lineno} {call.func.attr}", seen, seen, seen))
    return evidence


def test_metrics_logs_and_traces_cover_each_group_to_its_floor(
    traced: Platform, collector: Collector, record_property: Callable[[str, object], None]
) -> None:
    vm = traced.client.create_vm(name="moving", image="tiny", memory_mib=128, node="host-a")
    traced.wait_state(vm["id"], "running")
    traced.cli("vm", "migrate", "moving", "--to", "host-b")
    groups = {
        "routes": of_routes(traced, collector),
        "controllers": of_controllers(traced, collector),
        "agents' actions": of_actions(),
        "phases of DWCP": of_phases(traced, collector),
        "database calls": of_database(),
    }
    every = [item for group in groups.values() for item in group]
    shares = {name: share_of(group) for name, group in groups.items()}
    lines = [f"{'':20}  count  metric     log   trace   all three"]
    for name, group in groups.items():
        each = [100 * sum(getattr(item, way) for item in group) / len(group) for way in ("metric", "log", "trace")]
        lines.append(f"{name:20}  {len(group):5}  " + "  ".join(f"{share:5.1f}%" for share in (*each, shares[name])))
    lines.append(f"{'the whole':20}  {len(every):5}  {'':22}{share_of(every):5.1f}%")
    record_property("what can be seen", "\n".join(lines))
    assert below_floor(groups) == {}
    assert len(groups["routes"]) > 100 and len(groups["database calls"]) > 100


@pytest.mark.parametrize("group", FLOORS)
def test_a_group_that_lacks_a_metric_a_log_or_a_trace_is_below_its_floor(group: str) -> None:
    whole = {name: [Seen("a", True, True, True), Seen("b", True, True, True)] for name in FLOORS}
    assert below_floor(whole) == {}
    for lacking in (Seen("b", False, True, True), Seen("b", True, False, True), Seen("b", True, True, False)):
        assert below_floor({**whole, group: [whole[group][0], lacking]}) == {group: [lacking]}
    assert below_floor({**whole, group: []}) == {group: []}, "nothing to be seen is no success"


async def test_a_query_is_counted_logged_and_traced(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    exporter = record_spans(1.0)
    monkeypatch.setattr(traces, "QUERIES_SHARE", 1.0)
    monkeypatch.setattr("novacron.store.database.logs.debugging", lambda: True)
    queries = values.histogram("novacron_database_query_duration_seconds")

    def count() -> float:
        return sum(sum(cell[:-1]) for cell in queries.cells.values())

    async with database.connection() as connection:
        for method, arguments in (
            ("execute", ("SELECT 1",)), ("fetch", ("SELECT 1",)), ("fetchrow", ("SELECT 1",)),
            ("fetchval", ("SELECT 1",)), ("executemany", ("SELECT $1::int", [(1,), (2,)])),
        ):  # fmt: skip
            before, spans = count(), len(exporter.get_finished_spans())
            with capture_logs() as logged, traces.span("work", parent=""):
                await getattr(connection, method)(*arguments)
            assert count() > before, method
            assert len(exporter.get_finished_spans()) >= spans + 2, method
            assert any(entry["event"] == "query" for entry in logged), method


async def test_an_action_is_counted_logged_and_traced() -> None:
    from novacron.agent import actions

    exporter = record_spans(0.0)
    for action in Action:
        cell = actions.DONE.cell(action, "done")
        before = cell[0]
        with capture_logs() as logged, actions.doing(action, vm="vm-1"):
            pass
        assert cell[0] == before + 1
        assert logged[-1]["event"] == "action" and logged[-1]["action"] == action and logged[-1]["vm"] == "vm-1"
        assert exporter.get_finished_spans()[-1].name == f"agent {action}"


def test_every_step_is_an_action() -> None:
    assert {step.value for step in Step if step is not Step.NOTHING} <= {action.value for action in Action}


async def test_a_cancelled_action_does_not_count_as_failed() -> None:
    from novacron.agent import actions

    cells = [actions.DONE.cell(Action.SEND, outcome) for outcome in ("cancelled", "failed")]
    before = [cell[0] for cell in cells]
    with pytest.raises(asyncio.CancelledError), actions.doing(Action.SEND):
        raise asyncio.CancelledError
    assert [cell[0] for cell in cells] == [before[0] + 1, before[1]]

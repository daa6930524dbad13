"""The API under load: ``script/bench api``. wrk, the server and PostgreSQL share this machine; nodes are simulated."""

from __future__ import annotations

import contextlib
import itertools
import re
import statistics
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import asyncpg
import uvloop

from bench.agents import IMAGE
from bench.api_held import held_figures
from bench.api_load import Load, Stand, timed
from bench.api_rights import rights_figures
from bench.report import Figure, median, parser, report
from lab.platform import clean_up_when_ended, open_directory, until
from novacron.client import Client


class Size(NamedTuple):
    """How much is measured."""

    rounds: int
    load_s: int
    """How long each load lasts."""
    stored: int = 1000
    nodes: int = 20
    ramp: tuple[tuple[int, float | None], ...] = ((1000, 100), (10_000, 1000))
    """How many connections read at once, and the most milliseconds that their 95th percentile may be."""
    overload: int = 2000
    """Connections that write at once: 400 requests are worked on, half of them of one user."""
    held: int = 2000
    """Connections that do nothing."""


FULL, QUICK, SMOKE = Size(5, 8), Size(2, 3), Size(1, 1, 200, 2, ((50, None),), 50, 30)
LIST = "/api/v1/vms?limit=20"
PACKED = ("Accept-Encoding: zstd",)
SOAK_SHARE, SOAK_WARM = 0.7, 4
"""Of the highest rate; minutes after which the server's memory may not grow."""
MIXED = """
function request()
  turn = turn + 1
  if turn % 20 == 0 then
    wrk.method, wrk.body = "PATCH", '{"start_order": ' .. (turn % 1000) .. '}'
    wrk.headers["Content-Type"] = "application/json"
    return wrk.format("PATCH", "/api/v1/vms/" .. ids[math.random(#ids)])
  end
  wrk.method, wrk.body = "GET", nil
  if turn % 2 == 0 then return wrk.format("GET", "/api/v1/vms?limit=20") end
  return wrk.format("GET", "/api/v1/vms/" .. ids[math.random(#ids)])
end
"""

WRITES = """
function request()
  turn = turn + 1
  wrk.headers["Content-Type"] = "application/json"
  return wrk.format("PATCH", "/api/v1/vms/" .. ids[math.random(#ids)], nil, '{"start_order": ' .. (turn % 1000) .. '}')
end
"""

CREATES = """
function request()
  turn = turn + 1
  local items = {}
  for n = 1, size do
    items[n] = string.format('{"name":"w-%s-%d-%d","image":"IMAGE","memory_mib":64,"power":"stopped"}', run, turn, n)
  end
  wrk.headers["Content-Type"] = "application/json"
  if keyed then wrk.headers["Idempotency-Key"] = run .. "-" .. number .. "-" .. turn end
  local body = items[1]
  if size > 1 then body = '{"items":[' .. table.concat(items, ",") .. ']}' end
  return wrk.format("POST", path, nil, body)
end
""".replace("IMAGE", IMAGE)


def read_figures(stand: Stand, rounds: int, seconds: float) -> list[Figure]:
    vm = next(iter(stand.client.list("vms", limit=1)))["id"]
    figures = []
    for name, path, headers, rate, p95 in (
        ("list of 20 VMs, 100 connections", LIST, PACKED, 20_000, 10),
        ("list of 20 VMs, not compressed", LIST, (), None, None),
        ("one VM, 100 connections", f"/api/v1/vms/{vm}", (), 25_000, None),
    ):
        loads = [stand.load(path, 100, seconds, headers=headers) for _ in range(rounds)]
        _check(loads)
        figures += [
            median(name, [load.rate for load in loads], "1/s", rate, at_least=True),
            median("  ... p95", [load.p95_ms for load in loads], "ms", p95),
        ]
    return figures


def ramp_figures(stand: Stand, size: Size) -> list[Figure]:
    figures = []
    for connections, p95 in size.ramp:
        lasts = size.load_s if connections < 5000 else 30  # their handshakes alone take a while
        loads = [stand.load(LIST, connections, lasts, headers=PACKED) for _ in range(size.rounds)]
        figures += [
            median(f"list of 20 VMs, {connections:,} connections", [load.rate for load in loads], "1/s", 12_000,
                   at_least=True),
            median("  ... p95", [load.p95_ms for load in loads], "ms", p95),
            Figure("  ... failed", 100 * max(load.failed_share for load in loads), "%", 0.01),
        ]  # fmt: skip
    return figures


def mixed_figures(stand: Stand, rounds: int, seconds: float) -> list[Figure]:
    script = _mixed(stand)
    log = stand.postgres.directory / "log"
    before = log.stat().st_size
    uvloop.run(_sample_statements(stand.postgres.url, 0.05))
    with _watched(stand.client, stand.client) as visible:
        loads = [stand.load("/", 100, seconds, script=script) for _ in range(rounds)]
    uvloop.run(_sample_statements(stand.postgres.url, 0))
    with stand.replica() as other, _watched(stand.client, other) as elsewhere:
        _check([stand.load("/", 100, seconds, script=script) for _ in range(rounds)])
    _check(loads)
    took_ms = _statements_ms(log.read_text(errors="replace")[before:])
    return [
        median("95 % reads, 5 % writes, 100 connections", [load.rate for load in loads], "1/s", 5000, at_least=True),
        median("  ... p99", [load.p99_ms for load in loads], "ms", 50),
        Figure("  ... a write visible in reads, p99", statistics.quantiles(visible, n=100)[98], "ms", 100),
        Figure("  ... in reads of a second server, p99", statistics.quantiles(elsewhere, n=100)[98], "ms", 100),
        Figure("  ... server's memory", stand.memory_mib(), "MiB", 600),
        Figure("  ... database query, average", statistics.mean(took_ms), "ms", 3),
        Figure("  ... database query, p95", statistics.quantiles(took_ms, n=20)[18], "ms", 10),
    ]


def overload_figures(stand: Stand, connections: int, seconds: float) -> list[Figure]:
    """Let a member write over far more connections than is worked on at once: what operators, those who ask how the
    server is, and nodes notice of it."""
    client = stand.client
    client.create_user("flood", kind="service")
    client.grant("flood", "member", "default")
    secret = client.create_token("flood", user="flood")["secret"]
    vm = next(iter(client.list("vms", limit=1)))["id"]
    lost = set[str]()

    def look(mine: Client, _: int) -> None:
        lost.update(node["name"] for node in mine.list("nodes") if not node["status"]["ready"])

    noticed = {
        "an operator's read": lambda mine, _: mine.get("vms", vm),
        "an operator's write": lambda mine, number: mine.configure_vm(vm, start_order=number % 1000),
        "/healthz": lambda mine, _: mine.fetch("/healthz"),
        "an operator's list of nodes": look,
    }
    with contextlib.ExitStack() as stack:
        took = {name: stack.enter_context(_again_and_again(client, ask)) for name, ask in noticed.items()}
        load = stand.load("/", connections, seconds, script=_with_ids(stand, WRITES), token=secret)
    return [
        Figure(f"overload, {connections:,} connections of a member write: done", load.ok / seconds, "1/s"),
        Figure("  ... turned away, or not answered in 10 s", 100 * load.failed_share, "%"),
        *(
            Figure(f"  ... {name}, p99 (of {len(each)})", statistics.quantiles(each, n=100)[98], "ms", 2000)
            for name, each in took.items()
        ),
        Figure("  ... nodes taken for lost", len(lost), "", 0),
    ]


@contextlib.contextmanager
def _again_and_again(client: Client, ask: Callable[[Client, int], Any]) -> Iterator[list[float]]:
    """Ask something ten times a second for as long as the block runs; yields how many milliseconds each took."""
    took, stop = list[float](), threading.Event()

    def run() -> None:
        mine = Client(client.config)
        for number in itertools.count(1):
            if stop.wait(0.1):
                return
            took.append(1e3 * timed(lambda number=number: ask(mine, number)))

    running = threading.Thread(target=run)
    running.start()
    try:
        yield took
    finally:
        stop.set()
        running.join()


def _mixed(stand: Stand) -> str:
    return _with_ids(stand, MIXED)


def _with_ids(stand: Stand, script: str) -> str:
    ids = [vm["id"] for vm in stand.client.list("vms", fields="id")]
    return f"ids = {{{', '.join(repr(id) for id in ids)}}}\n" + script


@contextlib.contextmanager
def _watched(writes: Client, reads: Client) -> Iterator[list[float]]:
    """Write now and then over one connection, and read over another, from the answer on, until the write is there:
    for as long as the block runs. Yields how many milliseconds each took."""
    took, stop = list[float](), threading.Event()
    writer, reader = Client(writes.config), Client(reads.config)

    def watch() -> None:
        vm = next(iter(reader.list("vms", limit=1)))["id"]
        for number in itertools.count(1):
            if stop.is_set():
                return
            revision = writer.configure_vm(vm, start_order=number % 1000)["revision"]
            started = time.perf_counter()
            while reader.get("vms", vm)["revision"] < revision:
                pass
            took.append((time.perf_counter() - started) * 1e3)
            time.sleep(0.05)

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield took
    finally:
        stop.set()
        watching.join()


async def _sample_statements(url: str, rate: float) -> None:
    """Let PostgreSQL log how long this share of all statements takes."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute("ALTER SYSTEM SET log_min_duration_sample = 0")
        await connection.execute(f"ALTER SYSTEM SET log_statement_sample_rate = {rate}")
        await connection.execute("SELECT pg_reload_conf()")
    finally:
        await connection.close()


def _statements_ms(log: str) -> list[float]:
    return [float(text) for text in re.findall(r"duration: ([\d.]+) ms  (?:execute|statement)", log)]


def write_figures(stand: Stand, rounds: int, seconds: float) -> list[Figure]:
    """How fast VMs are created: one by one over several connections, without and with idempotency keys as clients send
    them, and in batches of 100."""
    ratios, loads = list[float](), dict[str, list[Load]]()
    for _ in range(rounds):
        created = 60
        for _ in range(3):
            ten = timed(lambda: [stand.client.create_vm(**_item()) for _ in range(10)])
            batch = {"items": [_item() for _ in range(10)]}
            ratios.append(ten / timed(lambda batch=batch: stand.client.request("POST", "/api/v1/vms/batch", batch)))
        _settled(stand)
        for name, size, connections, keyed in (
            ("single", 1, 16, False), ("keyed", 1, 16, True), ("batch", 100, 4, True),
        ):  # fmt: skip
            path, run = "/api/v1/vms" if size == 1 else "/api/v1/vms/batch", uuid.uuid4().hex[:8]
            settings = f'size, path, run, keyed = {size}, "{path}", "{run}", {str(keyed).lower()}\n'
            load = stand.load("/", connections, seconds, script=settings + CREATES)
            _check([load])
            loads.setdefault(name, []).append(load)
            created += load.ok * size
            _settled(stand)
        _delete_made(stand, created)
    return [
        median("10 creates one after the other, over a batch of 10", ratios, "x", 5.6, at_least=True),
        median(
            "creates a second, in batches of 100",
            [100 * load.rate for load in loads["batch"]],
            "1/s",
            1000,
            at_least=True,
        ),
        median(
            "creates a second, one by one, 16 connections",
            [load.rate for load in loads["single"]],
            "1/s",
            400,
            at_least=True,
        ),
        median(
            "creates a second with idempotency keys, 16 connections",
            [load.rate for load in loads["keyed"]],
            "1/s",
            400,
            at_least=True,
        ),
        median("  ... p99", [load.p99_ms for load in loads["keyed"]], "ms"),
    ]


def _item() -> dict[str, Any]:
    return {"name": f"w-{uuid.uuid4().hex[:16]}", "image": IMAGE, "memory_mib": 64, "power": "stopped"}


def _settled(stand: Stand) -> None:
    """Wait until nodes have what was created: it would be in the way of what is measured next."""
    until(lambda: not list(stand.client.list("vms", limit=1, state="pending")), "all that was created is settled", 120)


def _delete_made(stand: Stand, least: int) -> None:
    """Delete what was created, which must be ``least`` VMs or more: else what was answered was not true."""
    ids = [vm["id"] for vm in stand.client.list("vms", name="w-*", fields="id")]
    if len(ids) < least:
        raise RuntimeError(f"{least} creates were answered, but there are {len(ids)} VMs")
    for at in range(0, len(ids), 100):
        stand.client.request("DELETE", "/api/v1/vms/batch", {"vms": ids[at : at + 100]})
    until(lambda: not list(stand.client.list("vms", name="w-*", limit=1)), "all that was created is gone", 120)


def soak_figures(stand: Stand, minutes: float, seconds: float) -> list[Figure]:
    """Ask at 70 % of the highest rates for long, a minute for lists, a minute mixed: memory may not grow after the
    first minutes, nothing may fail."""
    mixed = _mixed(stand)
    kinds = ("lists", "mixed")

    def ask(kind: str, lasts_s: float, rate: float | None) -> Load:
        if kind == "lists":
            return stand.load(LIST, 100, lasts_s, headers=PACKED, rate=rate)
        return stand.load("/", 100, lasts_s, script=mixed, rate=rate)

    highest = [ask(kind, seconds, None).rate for kind in kinds]
    pieces: list[list[Load]] = [[], []]
    memory = []
    for minute in range(max(2 * SOAK_WARM, int(minutes))):
        turn = minute % 2
        pieces[turn].append(ask(kinds[turn], 60, SOAK_SHARE * highest[turn]))
        memory.append(stand.memory_mib())
        print(f"minute {minute + 1}: {pieces[turn][-1]}, {memory[-1]:.0f} MiB", flush=True)
    every = [load for kind in pieces for load in kind]
    failed = sum(load.bad + load.errors for load in every) / sum(load.ok for load in every)
    return [
        *(
            figure
            for name, loads, most in zip(kinds, pieces, highest, strict=True)
            for figure in (
                Figure(f"soak, {minutes:.0f} min, {name}: of the highest rate", 100 * statistics.mean(
                    load.rate for load in loads) / most, "%", 0.95 * 100 * SOAK_SHARE, at_least=True),
                Figure(f"  ... {name}: p99, the worst minute", max(load.p99_ms for load in loads), "ms"),
            )
        ),
        Figure("  ... requests", sum(load.ok for load in every) / 1e6, "million"),
        Figure("  ... failed", 100 * failed, "%", 0.01),
        Figure("  ... memory gained, from the fourth minute on", memory[-1] - memory[SOAK_WARM - 1], "MiB", 10),
    ]  # fmt: skip


def _check(loads: list[Load]) -> None:
    if any(load.bad or load.errors for load in loads):
        raise RuntimeError(f"requests failed: {loads}")


PARTS: dict[str, Callable[[Stand, Size], list[Figure]]] = {
    "reads": lambda stand, size: read_figures(stand, size.rounds, size.load_s),
    "ramp": ramp_figures,
    "mixed": lambda stand, size: mixed_figures(stand, size.rounds, size.load_s),
    "writes": lambda stand, size: write_figures(stand, size.rounds, size.load_s),
    "overload": lambda stand, size: overload_figures(stand, size.overload, 2 * size.load_s),
    "rights": lambda stand, size: rights_figures(stand, size.rounds),
    "held": lambda stand, size: held_figures(stand, size.held, 4 * size.load_s),
}


def main() -> None:
    line = parser("api", __doc__, "fewer and shorter rounds")
    line.add_argument("--only", nargs="*", choices=(*PARTS, "soak"))
    line.add_argument("--minutes", type=float, default=30, help="of the soak")
    options = line.parse_args()
    clean_up_when_ended()
    size = SMOKE if options.smoke else QUICK if options.quick else FULL
    parts = options.only or list(PARTS)
    figures: list[Figure] = []
    with open_directory("nva-") as directory, Stand(directory, size.nodes).run() as stand:
        stand.fill(size.stored)
        print(f"{size.stored} VMs are stored", flush=True)
        for name, measure in PARTS.items():
            if name in parts:
                figures += measure(stand, size)
                print(f"{name}: done", flush=True)
        if "soak" in parts:
            figures += soak_figures(stand, options.minutes, size.load_s)
    report("api", figures, options.json, smoke=options.smoke)


if __name__ == "__main__":
    main()

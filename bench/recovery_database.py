"""The database loses its primary: how long nothing can be written, and whether anything acknowledged is lost."""

from __future__ import annotations

import contextlib
import itertools
import os
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import urllib3

from bench.report import Figure, median
from lab.database_cluster import DatabaseCluster, checked, database_cluster
from lab.database_writer import Writer
from lab.platform import open_directory, until
from lab.replicas import Replica
from novacron.client import load_config

WRITERS, WRITER_PAUSE_S, READ_EVERY_S = 4, 0.004, 0.02
BEFORE_S, AFTER_S, BACK_S_MAX = 1.0, 1.0, 90.0
FENCED_S, POSTGRES_S, NODE_S = 5.0, 5.0, 20.0
SETTLE_S = 3.0


class Size(NamedTuple):
    """How much is measured."""

    rounds: int
    writes: int
    """Acknowledged over the whole run, at least."""
    cases: tuple[str, ...]


CASES = ("node fenced", "PostgreSQL killed", "node killed")
SIZES = {"full": Size(5, 50_000, CASES), "quick": Size(2, 10_000, CASES), "smoke": Size(1, 100, CASES[1:2])}
BOUNDS = dict(zip(CASES, (FENCED_S, POSTGRES_S, NODE_S), strict=True))


class Reader:
    """Reads a list through the API again and again."""

    def __init__(self, replica: Replica, token: str) -> None:
        self._url, self._token = f"{replica.url}/api/v1/projects", token
        self._context = ssl.create_default_context(cadata=(replica.state / "ca.crt").read_text())
        self.answered: list[float] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reader")

    @contextlib.contextmanager
    def reading(self) -> Iterator[Reader]:
        self._thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            self._thread.join()

    def _run(self) -> None:
        headers = {"Authorization": f"Bearer {self._token}"}
        with urllib3.PoolManager(ssl_context=self._context) as pool:
            while not self._stop.wait(READ_EVERY_S):
                try:
                    answer = pool.request("GET", self._url, headers=headers, retries=False, timeout=5)
                except urllib3.exceptions.HTTPError:
                    continue
                if answer.status == 200:
                    self.answered.append(time.monotonic())

    def longest_gap_s(self, since: float, until_: float) -> float:
        times = [since, *(at for at in list(self.answered) if since <= at <= until_), until_]
        return max(later - earlier for earlier, later in itertools.pairwise(times))


def database_figures(size: Size) -> list[Figure]:
    """Return the longest gaps of writers and readers, and how many acknowledged writes are lost."""
    gaps: dict[str, list[float]] = {case: [] for case in size.cases}
    read_gaps: list[float] = []
    with database_cluster() as cluster, open_directory("nvk-") as directory:
        cluster.up()
        replica = Replica(directory / "server", cluster.url, ())
        os.environ.update(replica.environment)
        replica.start()
        try:
            token = load_config().token
            with (
                Reader(replica, token).reading() as reader,
                Writer(cluster.url, WRITERS, WRITER_PAUSE_S).writing() as writer,
            ):
                for round_, case in itertools.product(range(size.rounds), size.cases):
                    written, read = _round(cluster, writer, reader, case)
                    gaps[case].append(written)
                    read_gaps.append(read)
                    print(f"round {round_ + 1}, {case}: writes {written:.1f} s, reads {read:.2f} s", flush=True)
                until(lambda: len(writer.acknowledged) >= size.writes, "enough is written", 600)
            lost = len(writer.lost())
        finally:
            replica.server.stop()
    return [
        *(median(f"database, {case}: longest gap for writers", gaps[case], "s", BOUNDS[case]) for case in size.cases),
        median("database, all cases: longest gap for readers of the API", read_gaps, "s", 0.1),
        Figure("  ... acknowledged writes", len(writer.acknowledged), "rows", size.writes, at_least=True),
        Figure("  ... of these lost", lost, "rows", 0),
    ]


def _round(cluster: DatabaseCluster, writer: Writer, reader: Reader, case: str) -> tuple[float, float]:
    """Let the primary fail; return the longest gaps of writers and readers. Afterwards all is well again."""
    cluster.wait_well()
    until(lambda: writer.count_after(time.monotonic() - BEFORE_S) > 10, "writes are acknowledged", BACK_S_MAX)
    leader = cluster.leader()
    other = next(place for place in cluster.places if place is not leader)
    time.sleep(BEFORE_S)
    failed_at = time.monotonic()
    fail: dict[str, Callable[[], object]] = {
        "node fenced": leader.kill,
        "PostgreSQL killed": leader.kill_postgres,
        "node killed": leader.kill,
    }
    fail[case]()
    if case == "node fenced":  # what a fencing program does when the machine's power is off
        checked(cluster.tell("failover", "--fenced", leader.name, "--yes", place=other))
    until(lambda: writer.count_after(failed_at + 1) > 20, "writes are acknowledged again", BACK_S_MAX)
    time.sleep(AFTER_S)
    ended = time.monotonic()
    gaps = writer.longest_gap_s(failed_at - BEFORE_S / 2, ended), reader.longest_gap_s(failed_at - BEFORE_S / 2, ended)
    if case != "PostgreSQL killed":
        leader.start()
    cluster.wait_well()
    time.sleep(SETTLE_S if case != "PostgreSQL killed" else 0)
    return gaps

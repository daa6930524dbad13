"""The API under load while its dependencies fail, and with hostile clients."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import urllib3

from lab.platform import until
from lab.replicas import Replica, Served, serving
from tests.support.redis import Redis
from tests.waiting import pause

LOADED_S = 2.0
GRACE_S = 1.0
"""After a replica is ready its other process may not be, for a moment."""
BETWEEN_S = 0.1
"""Between two requests of a client: the outage is what is tested, not how much the servers can bear."""
HELD_UP_S = 5.0
"""Less than what would time out."""


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    server = Redis(str(tmp_path_factory.mktemp("redis")))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def served(redis: Redis) -> Iterator[Served]:
    """Two replicas, each of two processes, that share a Redis."""
    with serving("--workers", "2", "--redis", redis.url, "--leave-after", "4", replicas=2) as platform:
        yield platform


class Seen(NamedTuple):
    """An answer: when it was asked for, when it came, what it was (0: none), and what project it was about."""

    began: float
    at: float
    status: int
    name: str


class Load:
    """Clients that make projects and read them, each over connections of its own, as a balancer would let them."""

    def __init__(self, served: Served, choose: Callable[[], list[Replica]], clients: int = 4) -> None:
        self._served, self._choose = served, choose
        self.seen: list[Seen] = []
        self.made: set[str] = set()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(clients)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, number: int) -> None:
        config = self._served.client.config
        headers = {"Authorization": f"Bearer {config.token}", "Content-Type": "application/json"}
        context = ssl.create_default_context(cadata=config.ca)
        with urllib3.PoolManager(ssl_context=context, headers=headers) as pool:
            for turn in range(100_000):
                if self._stop.is_set():
                    return
                name = f"load-{os.urandom(4).hex()}-{number}-{turn}"
                replicas = self._choose()
                if not replicas:
                    pause(0.05)
                    continue
                url = f"{replicas[turn % len(replicas)].url}/api/v1/projects"
                answer = self._ask(pool, "POST", url, name, json.dumps({"name": name}))
                if answer is not None and answer.status == 201:
                    self.made.add(name)
                    # Over a new connection another process may answer.
                    self._ask(pool, "GET", f"{url}/{name}?min_revision={answer.json()['revision']}", name)
                pause(BETWEEN_S)

    def _ask(
        self, pool: urllib3.PoolManager, method: str, url: str, name: str, body: str | None = None
    ) -> urllib3.BaseHTTPResponse | None:
        began, answer = time.monotonic(), None
        with contextlib.suppress(urllib3.exceptions.HTTPError):
            answer = pool.request(method, url, body=body, retries=False, timeout=15)
        self.seen.append(Seen(began, time.monotonic(), 0 if answer is None else answer.status, name))
        return answer

    def failed(self) -> list[Seen]:
        return [request for request in self.seen if request.status not in (200, 201)]


def check_no_write_lost(served: Served, load: Load) -> None:
    """See that all that was accepted is there, in every replica."""
    assert load.made, "nothing was made: this tests nothing"
    until(lambda: all(replica.is_ready() for replica in served.replicas), "all replicas are ready", 30)

    def lost() -> set[str]:
        return load.made - {project["name"] for project in served.client.list("projects")}

    until(lambda: not lost(), "whichever process is asked has all that was made", 20)
    for name in load.made:
        served.client.delete("projects", name)


def check_no_defects(served: Served) -> None:
    for replica in served.replicas:
        log = replica.server.log.read_text()
        assert "Traceback" not in log and "defect" not in log, log[-3000:]


def test_a_rolling_restart_under_load_fails_no_request(served: Served) -> None:
    ready = list(served.replicas)
    over = threading.Event()

    def balance() -> None:
        while not over.wait(0.2):
            ready[:] = [replica for replica in served.replicas if replica.is_ready()]

    balancer = threading.Thread(target=balance)
    balancer.start()
    try:
        with Load(served, lambda: list(ready)) as load:
            pause(1)
            for replica in served.replicas:
                assert replica.server.process is not None
                replica.server.process.terminate()
                assert replica.server.process.wait(30) == 0
                replica.start()
                pause(1)
    finally:
        over.set()
        balancer.join()
    assert not load.failed(), load.failed()[:5]
    check_no_write_lost(served, load)
    check_no_defects(served)


def test_losing_redis_under_load_fails_no_request(served: Served, redis: Redis) -> None:
    with Load(served, lambda: served.replicas) as load:
        pause(1)
        redis.stop()
        pause(LOADED_S)
        redis.start()
        pause(1)
    assert not load.failed(), load.failed()[:5]
    check_no_write_lost(served, load)
    check_no_defects(served)


def test_losing_the_database_under_load_costs_the_outage_and_no_write_that_was_accepted(served: Served) -> None:
    with Load(served, lambda: served.replicas) as load:
        pause(1)
        lost_at = time.monotonic()
        served.postgres.kill()
        pause(LOADED_S)
        served.postgres.start()
        back_at = time.monotonic()
        until(lambda: all(replica.is_ready() for replica in served.replicas), "they are ready again", 30)
        ready_at = time.monotonic()
        pause(LOADED_S)
    assert {request.status for request in load.failed()} == {503}, "what can't be done now is said so"
    assert all(lost_at <= request.at and request.began <= ready_at + GRACE_S for request in load.failed()), (
        "and only then"
    )
    assert ready_at - back_at < 20
    check_no_write_lost(served, load)
    check_no_defects(served)


def test_a_replica_that_is_killed_under_load_loses_its_own_connections_and_no_write(served: Served) -> None:
    first, second = served.replicas
    with Load(served, lambda: served.replicas) as load:
        pause(1)
        second.server.kill()
        pause(LOADED_S)
        others = [request for request in load.seen[-10:] if request.status == 201]
        second.start()
        back_at = time.monotonic()
        pause(LOADED_S)
    assert others, "the other one goes on"
    # Not connected, or, while it starts, not ready: never an answer that is wrong.
    assert {request.status for request in load.failed()} <= {0, 503}
    assert all(request.began < back_at + GRACE_S for request in load.failed())
    check_no_write_lost(served, load)
    check_no_defects(served)
    assert first.is_ready()


def _took_s(served: Served) -> float:
    started = time.monotonic()
    served.client.get("projects", "default")
    return time.monotonic() - started


def test_idle_connections_and_slow_senders_block_no_other_client(served: Served) -> None:
    replica = served.replicas[0]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = min(4000, hard - 500)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    context = ssl.create_default_context(cadata=served.client.config.ca)
    with contextlib.ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        for _ in range(count):
            idle = stack.enter_context(socket.socket())
            idle.settimeout(10)
            idle.connect(("127.0.0.1", replica.port))
        slow = []
        for _ in range(50):
            raw = stack.enter_context(socket.create_connection(("127.0.0.1", replica.port), 10))
            connection = stack.enter_context(context.wrap_socket(raw, server_hostname="127.0.0.1"))
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Slow: ")
            slow.append(connection)
        assert max(_took_s(served) for _ in range(20)) < HELD_UP_S
        deadline = time.monotonic() + 30
        while slow and time.monotonic() < deadline:  # each sends a byte now and then, and is cut off all the same
            for connection in list(slow):
                try:
                    connection.settimeout(0.001)
                    connection.sendall(b"x")
                    if connection.recv(100) == b"":
                        slow.remove(connection)
                except TimeoutError:
                    pass
                except OSError:
                    slow.remove(connection)
            pause(0.5)
        assert not slow, f"{len(slow)} that send slowly are still connected"
        assert max(_took_s(served) for _ in range(20)) < HELD_UP_S
    check_no_defects(served)


def _memory_mib(replica: Replica) -> float:
    assert replica.server.process is not None
    match = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{replica.server.process.pid}/status").read_text())
    assert match is not None
    return int(match[1]) / 1024


def test_a_follower_that_stops_reading_is_disconnected_and_delays_nobody(served: Served) -> None:
    replica, config = served.replicas[0], served.client.config
    context = ssl.create_default_context(cadata=config.ca)
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            raw = stack.enter_context(socket.create_connection(("127.0.0.1", replica.port), 10))
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf = stack.enter_context(context.wrap_socket(raw, server_hostname="127.0.0.1"))
            deaf.sendall(
                b"GET /api/v1/projects HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n"
                b"Authorization: Bearer " + config.token.encode() + b"\r\n\r\n"
            )
        before = _memory_mib(replica)
        project = served.client.create_project("load-much-said")
        for number in range(300):
            served.client.configure_project("load-much-said", description=f"{number} " + "x" * 150)
        assert max(_took_s(served) for _ in range(20)) < HELD_UP_S
        assert _memory_mib(replica) - before < 60
        served.client.delete("projects", project["name"])
    check_no_defects(served)


def test_a_worker_that_is_killed_is_replaced_and_loses_nothing(served: Served) -> None:
    process = served.replicas[0].server.process
    assert process is not None
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    workers = [int(pid) for pid in children if b"server.workers" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    with Load(served, lambda: served.replicas[:1]) as load:
        pause(1)
        for pid in workers:
            os.kill(pid, signal.SIGKILL)
        pause(LOADED_S)
    assert {request.status for request in load.failed()} <= {0}
    check_no_write_lost(served, load)

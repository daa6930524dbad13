"""Fixtures that several tiers share: a real PostgreSQL, and a real platform on two hosts."""

from __future__ import annotations

import itertools
import json
import logging
import operator
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import hypothesis
import pytest
from xdist.workermanage import WorkerController

from lab import platform as lab_platform
from lab.blocked_loops import DEBUG_MODE, blocked_loops
from lab.copied_postgres import CopiedPostgres
from lab.hosts import Lab, lab, missing
from lab.images import images_dir
from lab.platform import Platform, PlatformOptions, default_cache, open_directory, platform
from novacron.backup.locks import survive_hangups
from novacron.local.postgres import Postgres
from novacron.store.database import Database, migrate
from tests import schedule
from tests.schedule import WholeFiles

pytest.register_assert_rewrite("tests.support")
from tests.support.readable import nobody_reads  # noqa: E402 (its asserts are rewritten, too)

survive_hangups()  # tests hold locks of repositories
_numbers = itertools.count(1)

SLOW_FILES = 20
PATIENCE = 3.0
"""A wait that ends well ends as soon as ever; only what is broken takes longer."""

hypothesis.settings.register_profile(
    "novacron",
    deadline=None,  # a wall clock says more about what else the machine does than about the code
    derandomize="NOVACRON_SEED" not in os.environ,
    print_blob=True,  # a failure says how to reproduce it
)
hypothesis.settings.load_profile("novacron")


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> WholeFiles:
    return WholeFiles(config, log)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):  # one of several processes: they all have the same order
        schedule.in_order(items)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini("blocked_loop_ms_max", "asyncio's debug mode: for how long agents and servers may block a loop")


def pytest_configure(config: pytest.Config) -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what tests have started ends with them
    Platform.new_postgres = CopiedPostgres
    lab_platform.patience = PATIENCE
    if DEBUG_MODE:
        logging.getLogger("asyncio").addHandler(blocked_loops)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Tell the process that prints the summary what blocked event loops; there, fail if that was for too long."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["blocked_loops"] = blocked_loops.reports
    elif _blocked_too_long(session.config) and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _blocked_too_long(config: pytest.Config) -> list[str]:
    return blocked_loops.too_long(float(config.getini("blocked_loop_ms_max"))) if DEBUG_MODE else []


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: WorkerController) -> None:
    for report, seconds in getattr(node, "workeroutput", {}).get("blocked_loops", {}).items():
        blocked_loops.add(report, seconds)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print how long each file took, what tests have recorded as properties, and what blocked event loops."""
    took_s: dict[str, float] = {}
    for report in itertools.chain.from_iterable(terminalreporter.stats.values()):
        if isinstance(report, pytest.TestReport):
            path = report.nodeid.partition("::")[0]
            took_s[path] = took_s.get(path, 0.0) + report.duration
    if took_s:
        terminalreporter.section(f"the {SLOW_FILES} slowest files, with what they set up")
        for path, seconds in sorted(took_s.items(), key=operator.itemgetter(1), reverse=True)[:SLOW_FILES]:
            terminalreporter.write_line(f"{seconds:8.1f} s  {path}")
    for report in itertools.chain(terminalreporter.getreports("passed"), terminalreporter.getreports("failed")):
        for name, text in report.user_properties:
            terminalreporter.section(name)
            terminalreporter.write_line(str(text))
    if DEBUG_MODE:
        terminalreporter.section("callbacks that blocked an event loop")
        for report in blocked_loops.reports:
            terminalreporter.write_line(report)
        for report in _blocked_too_long(terminalreporter.config):
            limit = terminalreporter.config.getini("blocked_loop_ms_max")
            terminalreporter.write_line(f"longer than {limit} ms, which fails the run: {report}", red=True)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Function) -> Iterator[None]:
    """Before what a test has made is removed, let the processes that it has started again find each other."""
    try:
        for argument in item.funcargs.values():
            if isinstance(argument, Platform):
                argument.wait_settled()
    finally:
        yield  # whatever they do: it is removed in any case


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server, with the template ``novacron_test`` of an empty, migrated database."""
    with open_directory("nvpg-") as directory:
        server = Postgres(directory / "pg")
        server.start()
        yield server
        server.stop()


def url_of(server: Postgres, name: str) -> str:
    return server.url.replace("/postgres?", f"/{name}?")


@pytest.fixture(scope="session")
async def template(postgres: Postgres) -> str:
    admin = await asyncpg.connect(postgres.url)
    await admin.execute("CREATE DATABASE novacron_test")
    await admin.close()
    await migrate(url_of(postgres, "novacron_test"))
    return "novacron_test"


@pytest.fixture
async def database(postgres: Postgres, template: str) -> AsyncIterator[Database]:
    """A database of the test's own, empty and migrated."""
    name = f"test_{next(_numbers)}"
    admin = await asyncpg.connect(postgres.url)
    await admin.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
    opened = await Database.open(url_of(postgres, name))
    yield opened
    await opened.close()
    await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    await admin.close()


@pytest.fixture(scope="session")
def images() -> Path:
    return images_dir()


@pytest.fixture(scope="session")
def lacks() -> list[str]:
    """What this machine lacks for network namespaces; empty if nothing."""
    return missing()


@pytest.fixture(scope="session")
def site(images: Path, lacks: list[str]) -> Iterator[Platform]:
    """A platform of two hosts that tests share; each test cleans up after itself."""
    with (
        open_directory("nvs-") as directory,
        lab(f"nvs{os.getpid()}", default_cache(), namespaces=not lacks) as hosts,
        platform(directory / "p", hosts, images, PlatformOptions(server=_catalogue(directory))) as running,
        nobody_reads(running),
    ):
        yield running


def _catalogue(directory: Path) -> tuple[str, ...]:
    """Write a catalogue of images, whose one image is at an address from which no node fetches; return the options."""
    image = {"name": "catalogued", "url": "http://127.0.0.1/disk", "sha256": "ab" * 32, "size_bytes": 1 << 20}
    file = directory / "catalogue"
    file.write_text(json.dumps({"format": "novacron-catalogue-1", "images": [image]}))
    return ("--image-catalogue", str(file))


@pytest.fixture(scope="module")
def wan(lacks: list[str]) -> Iterator[Lab]:
    """Two hosts with a WAN between them, for one module."""
    if lacks:
        pytest.skip("; ".join(lacks))
    with lab(f"nvw{os.getpid()}", default_cache()) as hosts:
        yield hosts


@pytest.fixture(scope="module")
def victim(wan: Lab, images: Path) -> Iterator[Platform]:
    """A platform whose processes tests may kill."""
    with (
        open_directory("nvv-") as directory,
        platform(directory / "p", wan, images) as running,
        nobody_reads(running),
    ):
        yield running

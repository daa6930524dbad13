"""The demo, as a stranger would run it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.hosts import ROOT
from lab.platform import open_directory


@pytest.fixture
def directory(images: Path) -> Iterator[Path]:
    with open_directory("nvd-") as parent:
        yield parent / f"demo{os.getpid()}"
        demo(parent / f"demo{os.getpid()}", "--stop")


def demo(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lab.demo", "--directory", str(directory), *arguments],
        check=False, capture_output=True, text=True, timeout=110, cwd=ROOT,
    )  # fmt: skip


def processes(directory: Path) -> list[str]:
    """Return the command lines that name the demo's directory."""
    pids = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            if f"{directory}/" in line:
                pids.append(line)
    return pids


def test_the_demo_shows_the_main_job_and_cleans_up(directory: Path, lacks: list[str]) -> None:
    if lacks:
        pytest.skip("; ".join(lacks))
    done = demo(directory)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "over the same TCP connection, 0 numbers missing" in done.stdout
    for row in ("total time", "as the guest's TCP client saw it", "bytes on the link", "ratio", "link use"):
        assert row in done.stdout
    assert not processes(directory) and not directory.exists()


@pytest.mark.slow
def test_the_demo_works_without_namespaces_and_can_be_kept(directory: Path) -> None:
    kept = demo(directory, "--loopback", "--keep")
    assert kept.returncode == 0, kept.stdout + kept.stderr
    assert "both agents share this host, without a WAN" in kept.stdout
    assert "it was moved, not started again" in kept.stdout
    assert "script/demo --stop" in kept.stdout
    environment = {**os.environ, "NOVACRON_CONFIG": str(directory / "cli.json")}
    shown = subprocess.run(
        [sys.executable, "-m", "novacron", "vm", "list"], capture_output=True, text=True, check=True, env=environment
    )
    assert "host-b" in shown.stdout
    assert demo(directory, "--stop").stdout == "An earlier demo was ended.\n"
    assert not processes(directory) and not directory.exists()
    assert demo(directory, "--stop").stdout == "No demo is running.\n"


def test_the_demo_never_removes_a_directory_that_it_did_not_create() -> None:
    with open_directory("nvd-") as precious:
        (precious / "file").write_text("data")
        for arguments in ((), ("--stop",)):
            refused = demo(precious, *arguments)
            assert refused.returncode == 2 and "is not a demo's" in refused.stderr
        assert (precious / "file").read_text() == "data"

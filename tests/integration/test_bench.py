"""Every benchmark program runs: with ``--smoke`` it takes the paths of a measurement with a tiny load."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bench import main

BENCHMARKS: dict[str, tuple[str, ...]] = {
    "main": ("--only", "rest", "read", "create"),
    "machines": ("--only", "snapshots", "imports"),
    "dwcp": ("--only", "data-path", "--only", "idle"),
    "fleet": ("--only", "placement", "rebalancing"),
    "api": ("--only", "reads", "mixed", "held", "rights"),
    "scale": (),
    "observability": (),
    "backup": (),
    "prediction": (),
    "recovery": (),
    "rollout": ("--only", "switches", "fleet"),
    "install": ("--only", "12"),
    "web": ("--only", "page", "changes", "memory", "streams"),
    "encryption": ("--only", "reads", "creates"),
}
"""All programs, with what of each takes few guests: the rest of them is in the slow matrix."""
ONLY_SLOW = {"backup", "recovery", "install"}
"""What they do is tested in every run, in test_vm_backups.py and test_database_cluster.py; or it boots hosts."""
TIMEOUT_S, LONG_TIMEOUT_S = 230.0, 900.0
NEEDS_NAMESPACES = ("install", "main", "machines", "dwcp", "fleet", "backup", "web", "encryption")
NEEDS_NO_WRK = ("web", "install")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow, pytest.mark.timeout(LONG_TIMEOUT_S + 10)])
        if name in ONLY_SLOW
        else name
        for name in BENCHMARKS
    ],
)
def test_a_benchmark_runs_and_writes_its_figures(name: str, tmp_path: Path, lacks: list[str]) -> None:
    run(name, BENCHMARKS[name], tmp_path, lacks, LONG_TIMEOUT_S if name in ONLY_SLOW else TIMEOUT_S)


@pytest.mark.slow
@pytest.mark.timeout(LONG_TIMEOUT_S + 10)
@pytest.mark.parametrize("name", [name for name, arguments in BENCHMARKS.items() if arguments])
def test_every_section_of_a_long_benchmark_runs(name: str, tmp_path: Path, lacks: list[str]) -> None:
    run(name, (), tmp_path, lacks, LONG_TIMEOUT_S)


def run(name: str, arguments: tuple[str, ...], tmp_path: Path, lacks: list[str], timeout_s: float = TIMEOUT_S) -> None:
    """Run a benchmark with a tiny load and check the form of its results."""
    if lacks and name in NEEDS_NAMESPACES:
        pytest.skip("; ".join(lacks))
    if name not in NEEDS_NO_WRK and shutil.which("wrk") is None:
        pytest.skip("wrk is not installed: script/setup wrk installs it")
    written = tmp_path / "figures.json"
    done = subprocess.run(
        [sys.executable, "-m", f"bench.{name}", "--smoke", "--json", str(written), *arguments],
        check=False, capture_output=True, text=True, timeout=timeout_s,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads(written.read_text())
    assert (document["bench"], document["smoke"]) == (name, True)
    assert set(document["machine"]) == {"cpu", "cores", "memory_mib", "kernel", "python"}
    assert document["figures"]
    for figure in document["figures"]:
        assert set(figure) == {"name", "value", "unit", "bound", "at_least", "holds", "samples"}
        assert math.isfinite(figure["value"]), figure
        assert figure["bound"] is None and figure["holds"] is None, "a smoke run promises nothing"


def test_refused_requests_give_no_benchmark_figure() -> None:
    with pytest.raises(RuntimeError, match="requests failed"):
        main.parse_wrk("RESULT p95_us=900 rate=12811.8 bad=29223\n")


def test_unanswered_requests_give_no_benchmark_figure() -> None:
    with pytest.raises(RuntimeError, match="requests failed"):
        main.parse_wrk("RESULT p95_us=0 rate=0.000000 bad=0\n")


def test_answered_requests_give_latency_and_rate() -> None:
    assert main.parse_wrk("RESULT p95_us=2500 rate=20000.5 bad=0\n") == (2.5, 20000.5)

"""The client is installed without the server: a wheel in an empty environment, with a handful of packages."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lab.platform import Platform

ROOT = Path(__file__).parents[2]
UV = Path(sys.executable).parent / "uv"
PACKAGES_MAX = 30
PROGRAM = """
import sys
from novacron.client import Client

with Client() as client:
    vm = client.vms.create(name=sys.argv[1], image="tiny", memory_mib=128)
    vm.wait_until(lambda now: now.status.state == "running", timeout_s=120)
    print([other.name for other in client.vms.list()])
    vm.delete()
    vm.wait_until_gone(timeout_s=120)
"""


def run(*command: str | Path, **environment: str) -> str:
    done = subprocess.run(
        command, cwd="/", capture_output=True, text=True, timeout=300, check=False, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """Return an environment that has the wheel and what that needs, from the lock file, and nothing else."""
    python, place = sys.executable, tmp_path / "environment"
    run(UV, "build", "--quiet", "--wheel", "--no-build-isolation", "--python", python, "--out-dir", tmp_path, ROOT)
    run(UV, "export", "--quiet", "--frozen", "--no-default-groups", "--no-emit-project", "--project", ROOT,
        "--output-file", tmp_path / "requirements.txt")  # fmt: skip
    run(UV, "venv", "--quiet", "--python", python, place)
    install = (UV, "pip", "install", "--quiet", "--python", place)
    run(*install, "--require-hashes", "--requirement", tmp_path / "requirements.txt")
    (wheel,) = tmp_path.glob("novacron-*.whl")
    run(*install, "--no-deps", wheel)
    run(UV, "pip", "check", "--quiet", "--python", place)
    return place


@pytest.mark.slow
def test_cli_and_sdk_work_in_an_environment_without_the_server(
    site: Platform, environment: Path, new_name: Callable[[], str]
) -> None:
    settings = {"NOVACRON_CONFIG": str(site.config)}
    installed = run(UV, "pip", "freeze", "--python", environment).split()
    assert not {"litestar", "asyncpg", "structlog", "pyroute2"} & {line.partition("==")[0] for line in installed}
    assert len(installed) <= PACKAGES_MAX, installed

    program = environment / "program.py"
    program.write_text(PROGRAM)
    name = new_name()
    assert name in run(environment / "bin/python", program, name, **settings)
    command = environment / "bin/novacron"
    assert run(command, "--version").startswith("novacron ")
    assert "host-" in run(command, "node", "list", **settings)
    assert "incidents/node-down" in run(command, "runbook", "list")
    assert "platform" in run(command, "doctor", **settings) or "server" in run(command, "doctor", **settings)

    refused = subprocess.run([command, "server"], capture_output=True, text=True, timeout=60, check=False)
    assert refused.returncode == 1
    assert "install novacron[server]" in refused.stderr

"""Programs that the product starts do not get its environment, which may hold secrets."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from novacron import child_environment
from novacron.control import fencing

SRC = Path(__file__).parents[2] / "src" / "novacron"
STARTS = {("subprocess", "Popen"), ("subprocess", "run"), ("subprocess", "check_output"),
          ("asyncio", "create_subprocess_exec")}  # fmt: skip
OWN = "NovaCron itself, or what runs with its rights"
USERS = "a command that its user runs, with what their shell has, such as proxies"
WHOLE = {
    "cli/objects.py": USERS,
    "disk/debian.py": USERS,
    "disk/tiny.py": USERS,
    "local/setup/host.py": USERS,
    "runbooks/programs.py": USERS,
    "local/archiver_process.py": OWN,
    "local/up.py": OWN,
    "rollout/processes.py": OWN,
    "server/workers.py": OWN,
    "store/database.py": OWN,
}
"""Files that start programs with the environment as it is, and why."""


def starts(path: Path) -> list[ast.Call]:
    return [
        node
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and (node.func.value.id, node.func.attr) in STARTS
    ]


def cleans(call: ast.Call) -> bool:
    given = [ast.unparse(keyword.value) for keyword in call.keywords if keyword.arg == "env"]
    return bool(given) and "environ)" not in given[0] and "os.environ" not in given[0]


def test_every_program_is_started_with_an_environment_of_its_own_or_has_a_reason() -> None:
    found = {
        path.relative_to(SRC).as_posix() for path in SRC.rglob("*.py") if any(not cleans(call) for call in starts(path))
    }
    assert found - WHOLE.keys() == set(), "see novacron.child_environment"
    assert WHOLE.keys() - {path.relative_to(SRC).as_posix() for path in SRC.rglob("*.py") if starts(path)} == set()


async def test_the_fence_command_learns_nothing_of_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOVACRON_DATABASE_URL", "postgresql://novacron:secret@db/novacron")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("FENCE_PASSWORD", "of the controllers")
    program, said = tmp_path / "fence", tmp_path / "said"
    program.write_text(f"#!/bin/sh\nenv > {said}\n")
    program.chmod(0o700)
    assert (await fencing.cut_off(program, "host-a")).cut_off
    variables = dict(line.split("=", 1) for line in said.read_text().splitlines() if "=" in line)
    assert variables["FENCE_PASSWORD"] == "of the controllers"
    assert not {"NOVACRON_DATABASE_URL", "AWS_SECRET_ACCESS_KEY"} & variables.keys()


def test_programs_of_postgresql_get_their_own_variables_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGSSLROOTCERT", "/etc/ca.crt")
    monkeypatch.setenv("NOVACRON_TOKEN", "secret")
    environment = child_environment.clean({"PGPASSWORD": "given"}, prefix=child_environment.POSTGRES)
    assert environment.items() >= {("PGSSLROOTCERT", "/etc/ca.crt"), ("PGPASSWORD", "given")}
    assert "NOVACRON_TOKEN" not in environment

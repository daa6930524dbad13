"""Clients that nobody here wrote: made from the OpenAPI document by generators that strangers use, they compile without
a cast, and create, list, watch and delete a VM. The linters that strangers use find nothing in the document."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from lab.platform import Platform

ROOT = Path(__file__).parents[2]
PROGRAMS, TOOLS = ROOT / "tests/foreign", ROOT / ".foreign"
DOCUMENT = ROOT / "docs/reference/openapi.json"
TIMEOUT_S, INSTALL_TIMEOUT_S = 240.0, 480.0
pytestmark = pytest.mark.timeout(600)  # the first test installs what all need, over the network


def run(directory: Path, *command: str, **environment: str) -> str:
    """Run a tool of .foreign in a directory; return what it says."""
    path = f"{TOOLS / '.venv/bin'}:{TOOLS / 'node_modules/.bin'}:{os.environ['PATH']}"
    variables = {"PATH": path, "HOME": str(directory), "REDOCLY_TELEMETRY": "off", **environment}
    done = subprocess.run(
        command, cwd=directory, env=variables, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def tools() -> Path:
    """What generators and linters are installed in: while other processes run other tests."""
    done = subprocess.run(
        [ROOT / "script/foreign-clients"], capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return TOOLS


@pytest.fixture
def directory(tools: Path, tmp_path: Path) -> Path:
    for name in ("client.py", "with_models.py", "client.ts", "tsconfig.json", "package.json"):
        shutil.copy(PROGRAMS / name, tmp_path)
    (tmp_path / "node_modules").symlink_to(tools / "node_modules")
    return tmp_path


def made_by_openapi_python_client(directory: Path) -> tuple[str, ...]:
    run(directory, "openapi-python-client", "generate", "--path", str(DOCUMENT), "--meta", "none",
        "--output-path", "nova_cron_client")  # fmt: skip
    run(directory, "mypy", "--strict", "--follow-imports=silent", "client.py")
    return "python", "client.py"


def made_by_datamodel_code_generator(directory: Path) -> tuple[str, ...]:
    run(directory, "datamodel-codegen", "--input", str(DOCUMENT), "--input-file-type", "openapi", "--output",
        "models.py", "--output-model-type", "pydantic_v2.BaseModel", "--use-annotated", "--disable-warnings",
        "--target-python-version", "3.11")  # fmt: skip
    run(directory, "mypy", "--strict", "--follow-imports=silent", "with_models.py")
    return "python", "with_models.py"


def made_by_openapi_typescript(directory: Path) -> tuple[str, ...]:
    run(directory, "openapi-typescript", str(DOCUMENT), "--output", "api.d.ts")
    run(directory, "tsc", "--project", ".")
    return "node", "made/client.js"


@pytest.mark.parametrize(
    "make", [made_by_openapi_python_client, made_by_datamodel_code_generator, made_by_openapi_typescript],
    ids=lambda make: make.__name__.removeprefix("made_by_"),
)  # fmt: skip
def test_a_generated_client_creates_lists_watches_and_deletes_a_vm(
    site: Platform, directory: Path, new_name: Callable[[], str], make: Callable[[Path], tuple[str, ...]]
) -> None:
    command, config, name = make(directory), site.client.config, new_name()
    authority = directory / "ca.pem"
    authority.write_text(config.ca)
    trusted = (str(authority),) if command[0] == "python" else ()
    said = run(
        directory, *command, config.url, config.token, *trusted, name, NODE_EXTRA_CA_CERTS=str(authority)
    )  # fmt: skip
    assert said.startswith(f"{name} running host-"), said
    site.client.wait("vms", name, lambda vm: vm is None, 60)
    site.until_clean()


@pytest.mark.parametrize(
    "command", [("redocly", "lint"), ("spectral", "lint", "--fail-severity=hint")], ids=lambda command: command[0]
)
def test_linters_find_nothing_in_the_document(directory: Path, command: tuple[str, ...]) -> None:
    for name in ("redocly.yaml", ".spectral.yaml"):
        shutil.copy(PROGRAMS / name, directory)
    said = run(directory, *command, str(DOCUMENT))
    assert "warning" not in said.lower(), said

"""The OpenAPI document is correct: valid and invalid requests that are generated from it get the documented answers."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.replicas import Served, serving

DOCUMENT = Path(__file__).parents[2] / "docs/reference/openapi.json"
NOT_CHECKED = {
    # What is said of values is what can be said in a schema; that a name is taken, or nobody holds an image, is not.
    "positive_data_acceptance",
}
LEFT_OUT = (
    "/api/v1/logout",  # ends the session that asks
    "/api/v1/watch", "/api/v1/console",  # WebSockets
)  # fmt: skip
PARTIAL = "fields"
"""A parameter with which objects lack fields that the document promises, as the document says in words."""


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving("--reads-per-s", "100000", "--writes-per-s", "100000") as platform:
        yield platform


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_generated_requests_find_no_violation_of_the_schema(served: Served, tmp_path: Path) -> None:
    config = served.client.config
    (tmp_path / "ca.pem").write_text(config.ca)
    document = json.loads(DOCUMENT.read_text())
    for operation in (operation for item in document["paths"].values() for operation in item.values()):
        operation["parameters"] = [each for each in operation.get("parameters", []) if each["name"] != PARTIAL]
    (tmp_path / "openapi.json").write_text(json.dumps(document))
    command = [
        sys.executable, "-m", "schemathesis.cli", "run", "openapi.json", "--url", config.url,
        "--tls-verify", str(tmp_path / "ca.pem"),
        "--header", f"Authorization: Bearer {config.token}", "--max-examples", "5", "--workers", "1", "--no-color",
        "--exclude-checks", ",".join(sorted(NOT_CHECKED)), "--phases", "examples,coverage,fuzzing",
        "--request-retries", "1",  # a connection that was idle for ten seconds, while it thought, may be closed
    ]  # fmt: skip
    for path in LEFT_OUT:
        command += ["--exclude-path", path]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=1500, check=False)
    assert done.returncode == 0, done.stdout[-12_000:] + done.stderr[-2000:]
    assert "Traceback" not in served.server.log.read_text()

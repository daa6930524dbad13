"""How a server begins, or says why it can't."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lab.platform import Platform


def start(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "novacron", "server", "--state-dir", str(tmp_path), *arguments],
        check=False, capture_output=True, text=True, timeout=60,
        env={**os.environ, "NOVACRON_CONFIG": str(tmp_path / "cli.json")},
    )  # fmt: skip


def test_the_error_names_a_port_in_use(tmp_path: Path, site: Platform) -> None:
    taken, free = site.ports[0], 0
    for flags, field in ((("--port", str(taken), "--link-port", str(free)), "port"),
                         (("--port", str(free), "--link-port", str(taken)), "link-port")):  # fmt: skip
        done = start(tmp_path, "--database", site.postgres.url, *flags)
        assert done.returncode == 1
        assert f"error: {field}: can't listen on 127.0.0.1:{taken}" in done.stderr
        assert f"--{field}" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("url", ["nonsense", "mysql://localhost/x", "postgresql://localhost:notaport/x"])
def test_an_invalid_database_url_is_refused(tmp_path: Path, url: str) -> None:
    done = start(tmp_path, "--database", url, "--port", "0", "--link-port", "0")
    assert done.returncode == 1, done.stderr
    assert "error: database:" in done.stderr and "Traceback" not in done.stderr

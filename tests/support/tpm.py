"""A TPM 2.0 for tests: swtpm behind a socket, asked as a real one is."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

from lab.platform import are_free, free_ports, until

TRIES = 20


def _two_ports() -> tuple[int, int]:
    """Return a free port whose successor is free, too: that is where the commands look for the TPM's control."""
    for _ in range(TRIES):
        (port,) = free_ports(1)
        if port < 65535 and are_free((port, port + 1)):
            return port, port + 1
    raise AssertionError("no two free ports in a row")


@contextlib.contextmanager
def tpm(state: Path) -> Iterator[str]:
    """Run the TPM of a state folder, and give what TPM2TOOLS_TCTI has to be to reach it."""
    state.mkdir(exist_ok=True)
    port, control = _two_ports()
    command = [
        "swtpm", "socket", "--tpm2", "--tpmstate", f"dir={state}", "--flags", "not-need-init,startup-clear",
        "--server", f"type=tcp,port={port},bindaddr=127.0.0.1", "--ctrl", f"type=tcp,port={control},bindaddr=127.0.0.1",
    ]  # fmt: skip
    with subprocess.Popen(command) as process:
        try:
            until(lambda: process.poll() is None and not are_free((port,)), "the TPM listens")
            yield f"swtpm:host=127.0.0.1,port={port}"
        finally:
            process.terminate()

"""A TPM 2.0 for tests: swtpm behind a socket, asked as a real one is."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

from lab.platform import until
from lab.ports import are_free, free_ports


@contextlib.contextmanager
def tpm(state: Path) -> Iterator[str]:
    """Run the TPM of a state folder, and give what TPM2TOOLS_TCTI has to be to reach it."""
    state.mkdir(exist_ok=True)
    port, control = free_ports(2)  # in a row: that is where the commands look for the TPM's control
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

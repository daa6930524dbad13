# Made of aio/guests.py by script/generate: change that, and run it.
"""Calls that reach into guests, through their guest agents."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from novacron.client import protocol
from novacron.client.protocol import Object, quoted
from novacron.client.sync.connection import Connection


class GuestCalls(Connection):
    """Run programs in guests, and move files in and out: no network of the guest's is needed."""

    def run_in_guest(
        self, vm: str, arguments: Sequence[str], *, environment: Mapping[str, str] | None = None, input: bytes = b"",
        timeout_s: float = 600.0,
    ) -> Object:  # fmt: skip
        """Run a program, without a shell, and return how it ended: ``exit_code`` or ``signal``, and what it printed, as
        bytes: ``stdout`` and ``stderr``, at most 1 MiB of each (``truncated``).

        Raises TimeoutError; the program goes on then.
        """
        body: Object = {"arguments": list(arguments)}
        if environment:
            body["environment"] = [f"{name}={value}" for name, value in environment.items()]
        if input:
            body["input"] = base64.b64encode(input).decode()
        path, until_s = f"/api/v1/vms/{quoted(vm)}/commands", time.monotonic() + timeout_s
        pid = (self._object("POST", path, body))["pid"]
        while True:
            wait_s = min(protocol.LONG_POLL_S, max(0, int(until_s - time.monotonic())))
            command = self._object("GET", f"{path}/{pid}?wait={wait_s}")
            if not command["running"]:
                return {**command, "stdout": _bytes(command["stdout"]), "stderr": _bytes(command["stderr"])}
            if time.monotonic() >= until_s:
                raise TimeoutError(f"process {pid} in {vm} is still running after {timeout_s:.0f} s")

    def push_file(
        self, vm: str, file: Path, guest_path: str, on_progress: Callable[[int], None] = lambda bytes_sent: None
    ) -> int:
        """Write a file into a guest, over what is there, and return its length."""
        sent, size_bytes = 0, file.stat().st_size
        while True:
            count = min(protocol.GUEST_PIECE_BYTES, size_bytes - sent)
            piece = self._transport.run(protocol.read_piece, file, sent, count) if count else b""
            path = f"/api/v1/vms/{quoted(vm)}/file?{protocol.query({'path': guest_path, 'offset': str(sent)})}"
            sent = int((self.request("PUT", path, raw=piece))["size_bytes"])
            on_progress(sent)
            if sent >= size_bytes:
                return sent

    def pull_file(
        self, vm: str, guest_path: str, file: Path, on_progress: Callable[[int], None] = lambda bytes_read: None
    ) -> int:
        """Read a file of a guest into ``file``, which appears once it is complete, and return its length."""
        return self._pull(f"/api/v1/vms/{quoted(vm)}/file", {"path": guest_path}, file, on_progress)


def _bytes(text: str) -> bytes:
    return base64.b64decode(text)

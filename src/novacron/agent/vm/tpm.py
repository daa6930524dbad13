"""A VM's TPM: a process beside its QEMU."""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path

from novacron import private_file
from novacron.agent.vm.directory import VmDirectory
from novacron.model.encryption import DataKey
from novacron.model.node import AcceleratorKind
from novacron.qemu import confine, firmware, process

START_S_MAX, LOOK_S = 10.0, 0.02
PURPOSE = "state of a TPM"
LOG, SAID_CHARS_MAX = "tpm.log", 300


class TpmFailed(Exception):
    """The TPM did not start: says why."""


def _hand(key: DataKey | None, stack: contextlib.ExitStack) -> int | None:
    """Return the key of a TPM's state in a file in memory, open until the stack is left. Raises OSError."""
    if key is None:
        return None
    descriptor = private_file.in_memory("tpm", key.derive(PURPOSE).hex().encode())
    stack.callback(os.close, descriptor)
    return descriptor


class Tpm:
    """The TPM of one VM, if it has one. It ends with its QEMU."""

    def __init__(self, home: VmDirectory) -> None:
        self._home = home
        self._reaper: asyncio.Task[None] | None = None

    async def start(self, uid: int | None, kind: AcceleratorKind, key: DataKey | None) -> None:
        """Start it anew; with a ``key``, what it remembers is encrypted. Raises TpmFailed, OSError."""
        await self.end()
        socket = self._home.path / firmware.TPM_SOCKET
        await asyncio.to_thread(self._prepare, socket)
        with contextlib.ExitStack() as stack:
            await self._spawn(uid, kind, _hand(key, stack))
        assert self._reaper is not None
        for _ in range(int(START_S_MAX / LOOK_S)):
            if socket.exists():
                return
            if self._reaper.done():
                break
            await asyncio.sleep(LOOK_S)
        said = (await asyncio.to_thread((self._home.path / LOG).read_text, errors="replace"))[-SAID_CHARS_MAX:].strip()
        raise TpmFailed(f"the VM's TPM did not start: {said or 'it does not answer'}")

    def _prepare(self, socket: Path) -> None:
        self._home.give_directory(firmware.TPM_STATE)
        socket.unlink(missing_ok=True)

    async def _spawn(self, uid: int | None, kind: AcceleratorKind, key: int | None) -> None:
        arguments = firmware.tpm_command(key)
        if uid is not None:
            arguments = confine.confined(arguments, confine.account(uid, kind))
        try:
            inherited = () if key is None else (key,)
            within = process.Surroundings(LOG, own_pids=uid is not None)
            pid = await asyncio.to_thread(process.spawn, arguments, self._home.path, inherited, within)
        except FileNotFoundError:
            raise TpmFailed("this node has no TPM emulator: apt-get install swtpm") from None
        self._reaper = asyncio.create_task(process.reaped(pid))

    async def end(self) -> None:
        """End it, also one that an earlier agent started."""
        for pid in await asyncio.to_thread(process.companions, self._home.path):
            await process.kill(pid)

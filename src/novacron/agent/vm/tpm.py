"""A VM's TPM: a process beside its QEMU."""

from __future__ import annotations

import asyncio

from novacron.agent.vm.directory import VmDirectory
from novacron.model.node import AcceleratorKind
from novacron.qemu import confine, firmware, process

START_S_MAX, LOOK_S = 10.0, 0.02
LOG, SAID_CHARS_MAX = "tpm.log", 300


class TpmFailed(Exception):
    """The TPM did not start: says why."""


class Tpm:
    """The TPM of one VM, if it has one. It ends with its QEMU."""

    def __init__(self, home: VmDirectory) -> None:
        self._home = home
        self._reaper: asyncio.Task[None] | None = None

    async def start(self, uid: int | None, kind: AcceleratorKind) -> None:
        """Start it anew. Raises TpmFailed, OSError."""
        await self.end()
        self._home.give_directory(firmware.TPM_STATE)
        socket = self._home.path / firmware.TPM_SOCKET
        socket.unlink(missing_ok=True)
        arguments = firmware.tpm_command()
        if uid is not None:
            arguments = confine.confined(arguments, confine.account(uid, kind))
        try:
            pid = await asyncio.to_thread(process.spawn, arguments, self._home.path, log=LOG)
        except FileNotFoundError:
            raise TpmFailed("this node has no TPM for VMs: apt-get install swtpm") from None
        self._reaper = asyncio.create_task(process.reaped(pid))
        for _ in range(int(START_S_MAX / LOOK_S)):
            if socket.exists():
                return
            if self._reaper.done():
                break
            await asyncio.sleep(LOOK_S)
        said = (self._home.path / LOG).read_text(errors="replace")[-SAID_CHARS_MAX:].strip()
        raise TpmFailed(f"the VM's TPM did not start: {said or 'it does not answer'}")

    async def end(self) -> None:
        """End it, also one that an earlier agent started."""
        for pid in await asyncio.to_thread(process.companions, self._home.path):
            await process.kill(pid)

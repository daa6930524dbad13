"""A disk in any layers, encrypted or not, that a program of QEMU's opens and hands on as what the guest would read: so
the content of an encrypted disk is read and written without lying on the host's disk in the clear.

The layers may have been made by a guest that took its QEMU over, so ``qemu-storage-daemon`` runs as its caller chooses,
within limits, and ends with the block, or with this process.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from novacron import child_environment
from novacron.disk import luks
from novacron.disk.qemu_img import Invocation
from novacron.model.encryption import DataKey

DAEMON, EXPORT = "qemu-storage-daemon", "disk"
START_S_MAX, END_S_MAX = 30.0, 30.0
ERROR_BYTES_MAX = 500

Node = Mapping[str, object]
"""Of QEMU's block layer (docs/interop/qemu-storage-daemon-qmp-ref: BlockdevOptions)."""
T = TypeVar("T")


class NotServed(OSError):
    """The disk can't be opened: says why."""


class ServedDisk(NamedTuple):
    """A disk that is to be handed on."""

    node: Node
    keys: Sequence[DataKey] = ()
    """Of its layers that are encrypted."""
    is_writable: bool = False


def file(descriptor: int) -> Node:
    """Return the node of a file that the program inherits."""
    return {"driver": "file", "filename": f"/proc/self/fd/{descriptor}", "locking": "off"}


def raw(descriptor: int, key: DataKey | None) -> Node:
    """Return the node of a raw file that is only read; with a ``key`` it is encrypted."""
    if key is None:
        return {"driver": "raw", "read-only": True, "file": file(descriptor)}
    return {"driver": "luks", "read-only": True, "key-secret": key.id, "file": file(descriptor)}


def qcow2(descriptor: int, below: Node | None, key: DataKey | None, *, is_writable: bool = False) -> Node:
    """Return the node of a layer; what its header says of what is below does not count."""
    node = {"driver": "qcow2", "read-only": not is_writable, "file": file(descriptor), "backing": below}
    return {**node, **luks.layer_options(key)}


@contextlib.asynccontextmanager
async def served(
    disk: ServedDisk, directory: Path, invocation: Invocation, speak: Callable[[socket.socket, str], T]
) -> AsyncIterator[T]:
    """Have a disk open as long as the block runs; yield what ``speak`` makes, in a thread, of the connection and the
    export's name. ``directory`` is one that nobody else can write to. Raises NotServed."""
    with contextlib.ExitStack() as stack:
        listening, connection = await asyncio.to_thread(_connected, directory)
        stack.callback(connection.close)
        with listening:
            given = [stack.enter_context(luks.for_tool(key)) for key in disk.keys]
            command = _command(disk, listening.fileno(), [option for key in given for option in key.options])
            if invocation.limits:
                command = ["prlimit", *invocation.limits, "--", *command]
            descriptors = (listening.fileno(), *invocation.descriptors, *(d for key in given for d in key.descriptors))
            try:
                process = await asyncio.create_subprocess_exec(
                    *invocation.wrap(command), pass_fds=descriptors, cwd=invocation.directory,
                    stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL,
                    stderr=asyncio.subprocess.PIPE, env=child_environment.clean(),
                )  # fmt: skip
            except OSError as error:
                raise NotServed(f"can't run {DAEMON}: {error}; install qemu-system-common") from error
        try:
            async with asyncio.timeout(START_S_MAX):
                spoken = await asyncio.to_thread(speak, connection, EXPORT)
        except (OSError, TimeoutError) as error:
            raise NotServed(f"the disk can't be opened: {await _last_words(process) or error}") from error
        except BaseException:
            await end(process)
            raise
        try:
            yield spoken
        finally:
            connection.close()
            await end(process)


def _connected(directory: Path) -> tuple[socket.socket, socket.socket]:
    """Return a socket that listens, and one that is connected to it, of which nobody else can have the other end."""
    opened = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    listening, connection = (socket.socket(socket.AF_UNIX) for _ in range(2))
    path = Path(f"/proc/self/fd/{opened}/served")  # the name of a socket has 107 bytes at most
    try:
        path.unlink(missing_ok=True)
        listening.bind(str(path))
        listening.listen(1)
        connection.connect(str(path))
        path.unlink()
    except BaseException:
        listening.close()
        connection.close()
        raise
    finally:
        os.close(opened)
    return listening, connection


def _command(disk: ServedDisk, listening: int, secrets: Sequence[str]) -> list[str]:
    writable = "on" if disk.is_writable else "off"
    return [
        *("setpriv", "--pdeathsig", "KILL", "--", DAEMON, *secrets),
        *("--blockdev", json.dumps({**disk.node, "node-name": EXPORT})),
        *("--nbd-server", f"addr.type=fd,addr.str={listening},max-connections=1"),
        *("--export", f"type=nbd,id={EXPORT},node-name={EXPORT},name={EXPORT},writable={writable}"),
    ]


async def _last_words(process: asyncio.subprocess.Process) -> str:
    """End the program, and return what it said."""
    await end(process)
    assert process.stderr is not None
    said = await process.stderr.read(1 << 16)
    return said[-ERROR_BYTES_MAX:].decode(errors="replace").strip()


async def end(process: asyncio.subprocess.Process) -> None:
    """End the program, which has written all that it was told to flush."""
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(END_S_MAX):
            await process.wait()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()

"""Disks that are encrypted with a project's key: LUKS 1, done by QEMU, inside qcow2 layers and around raw volumes.

The key is random, so what makes guesses at a passphrase slow (PBKDF2) is kept short.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from novacron import private_file
from novacron.disk import qemu_img
from novacron.disk.qemu_img import ImgFailed, Invocation, Wrap
from novacron.model.encryption import DataKey

HEADER_BYTES = 2_068_480
"""What LUKS puts before the data of a volume (AES-256 in XTS mode)."""
MAGIC = b"LUKS\xba\xbe"
HEADER_OPTIONS = {"iter-time": 10, "hash-alg": "sha512"}
BENCHMARK_FAILED = "accurate CPU usage"
"""QEMU before 9.2.1 may fail to measure how fast a fast processor derives keys; measured again it succeeds."""
TRIES_MAX = 8


def file_bytes(size_bytes: int, encryption_key: str) -> int:
    """Return how large the file of a raw volume is."""
    return size_bytes + HEADER_BYTES if encryption_key else size_bytes


def layer_options(key: DataKey | None) -> dict[str, object]:
    """Return what ``qemu-img`` needs to open a qcow2 layer; nothing for one that is not encrypted."""
    return {} if key is None else {"encrypt": {"format": "luks", "key-secret": key.id}}


class KeyArguments(NamedTuple):
    """Arguments of ``qemu-img`` that give it a key, and the descriptor of the file with it."""

    options: Sequence[str] = ()
    descriptors: Sequence[int] = ()


@contextlib.contextmanager
def for_tool(key: DataKey | None) -> Iterator[KeyArguments]:
    """Give ``qemu-img`` a key, for as long as the block runs; None: nothing is encrypted."""
    if key is None:
        yield KeyArguments()
        return
    descriptor = private_file.in_memory(key.id, key.passphrase())
    try:
        yield KeyArguments(("--object", f"secret,id={key.id},file=/proc/self/fd/{descriptor}"), (descriptor,))
    finally:
        os.close(descriptor)


def _new_header(key: DataKey, prefix: str) -> str:
    """Return the options with which a header is made."""
    return ",".join(f"{prefix}{name}={value}" for name, value in {"key-secret": key.id, **HEADER_OPTIONS}.items())


def new_layer(key: DataKey | None) -> Sequence[str]:
    """Return the options of ``qemu-img create`` for an encrypted qcow2 layer."""
    return () if key is None else ("-o", f"encrypt.format=luks,{_new_header(key, 'encrypt.')}")


async def run(
    command: str, arguments: Sequence[str], key: DataKey | None, time_s_max: float, wrap: Wrap = qemu_img.unchanged,
    directory: Path | None = None,
) -> bytes:  # fmt: skip
    """Run ``qemu-img`` with a key, if there is one, and return what it printed. Raises ImgFailed."""
    with for_tool(key) as given:
        whole = [command, *given.options, *arguments]
        invocation = Invocation(wrap, descriptors=given.descriptors, directory=directory)
        for attempt in range(1, TRIES_MAX + 1):
            try:
                return await qemu_img.run(whole, time_s_max, invocation)
            except ImgFailed as error:
                if key is None or attempt == TRIES_MAX or BENCHMARK_FAILED not in str(error):
                    raise
    raise AssertionError("unreachable")


async def create_volume(path: Path, size_bytes: int, key: DataKey, time_s_max: float) -> None:
    """Make an encrypted raw volume without data. Raises ImgFailed, OSError."""
    arguments = ["-q", "-f", "luks", "-o", _new_header(key, ""), path.name, str(size_bytes)]
    await run("create", arguments, key, time_s_max, directory=path.parent)
    has = (await asyncio.to_thread(path.stat)).st_size
    if has != size_bytes + HEADER_BYTES:
        raise ImgFailed(f"an encrypted volume of {size_bytes} bytes takes {has} bytes, not {size_bytes + HEADER_BYTES}")


async def encrypt(source: Path, target: Path, key: DataKey, time_s_max: float) -> None:
    """Make an encrypted file of what a raw one holds. Raises ImgFailed."""
    arguments = ["-q", "-f", "raw", "-O", "luks", "-o", _new_header(key, ""), str(source), str(target)]
    await run("convert", arguments, key, time_s_max)


async def decrypt(source: Path, target: Path, key: DataKey, time_s_max: float) -> None:
    """Write what an encrypted file holds to ``target``. Raises ImgFailed."""
    await run("convert", ["-q", "--image-opts", _opened(source, key), "-O", "raw", str(target)], key, time_s_max)


def _opened(path: Path, key: DataKey) -> str:
    """Return how ``qemu-img`` opens an encrypted file (--image-opts)."""
    return f"driver=luks,key-secret={key.id},file.driver=file,file.filename={str(path).replace(',', ',,')}"


def is_encrypted(path: Path) -> bool:
    """Say whether a file begins as LUKS does. Raises OSError."""
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


async def fill_volume(
    path: Path, source: Path, key: DataKey, time_s_max: float, *, source_is_encrypted: bool = False
) -> None:
    """Write a disk, raw or encrypted with the same key, to the beginning of an encrypted volume that is empty.

    Raises ImgFailed.
    """
    target = _opened(Path(path.name), key)
    disk = f"driver=raw,file.driver=file,file.filename={str(source).replace(',', ',,')}"
    if source_is_encrypted:
        disk = _opened(source, key)
    arguments = ["-q", "-n", "-W", "--image-opts", "--target-image-opts", disk, target]
    await run("convert", arguments, key, time_s_max, directory=path.parent)

"""What a guest printed on its serial line, within limits.

QEMU appends it to a file. That of a VM whose disk is encrypted is in memory: QEMU and the agent hold it open, and every
few seconds the agent moves what is in it to an encrypted file (``EncryptedLog``).
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from novacron.model.encryption import DataKey
from novacron.qemu.command import console_log_path

OLDER, ENCRYPTED, OLDER_ENCRYPTED = "console.log.1", "console.log.encrypted", "console.log.1.encrypted"
BYTES_MAX, KEPT_BYTES = 4 << 20, 1 << 20
MEMORY_LINK = "/memfd:{} (deleted)"
"""What the kernel says of the name of a file in memory (memfd_create(2))."""
MAGIC, SALT_BYTES, NONCE_BYTES, TAG_BYTES = b"NVCLOG1\n", 16, 12, 16
HEAD_BYTES = len(MAGIC) + SALT_BYTES
FRAME = struct.Struct(">I12s")
"""Before each frame: how long what was encrypted is, and its nonce."""
DAMAGED = b"\r\n[a part of this log is damaged]\r\n"


def bound(directory: Path) -> None:
    """Where the guest of a VM's directory has written too much, keep the end of it apart and begin anew.

    Raises OSError.
    """
    path = console_log_path(directory)
    if not path.exists() or path.stat().st_size <= BYTES_MAX:
        return
    with path.open("r+b") as file:
        file.seek(-KEPT_BYTES, os.SEEK_END)
        (directory / OLDER).write_bytes(file.read(KEPT_BYTES))
        file.truncate(0)


def read(directory: Path, bytes_max: int) -> bytes:
    """Return the end of what the guest printed into a file that is not encrypted. Raises OSError."""
    text = b""
    for name in (console_log_path(directory).name, OLDER):
        path = directory / name
        if path.exists() and len(text) < bytes_max:
            with path.open("rb") as file:
                file.seek(-min(path.stat().st_size, bytes_max - len(text)), os.SEEK_END)
                text = file.read(bytes_max) + text
    return text[-bytes_max:]


class EncryptedLog:
    """A file with what one guest printed, in frames of AES-256-GCM, and the one before it.

    A frame is bound to its VM, its file and its place there: none can be moved. A key derived from the project's is
    used for nothing else.
    """

    def __init__(self, directory: Path, vm: str) -> None:
        self._path, self._older = directory / ENCRYPTED, directory / OLDER_ENCRYPTED
        self._purpose = f"console log of {vm}"
        self._is_whole = False
        """No frame at the end of the file was cut off by a crash."""

    def exists(self) -> bool:
        return self._path.exists() or self._older.exists()

    def append(self, key: DataKey, text: bytes) -> None:
        """Add a frame, whole or not at all. Raises OSError."""
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(self._path, flags, 0o600), "r+b", buffering=0) as file:
            salt = self._salt(file)
            if not self._is_whole:
                file.truncate(max((end for _, end in _frames(file)), default=HEAD_BYTES))
                self._is_whole = True
            at, nonce = file.seek(0, os.SEEK_END), secrets.token_bytes(NONCE_BYTES)
            sealed = AESGCM(key.derive(self._purpose)).encrypt(nonce, text, salt + at.to_bytes(8, "big"))
            frame = FRAME.pack(len(sealed), nonce) + sealed
            if file.write(frame) != len(frame):
                file.truncate(at)
                raise OSError(f"the file system of {self._path.parent} stored only a part of a console log")
        if at + len(frame) > BYTES_MAX:
            self._path.replace(self._older)

    def read(self, key: DataKey, bytes_max: int) -> bytes:
        """Return the end of it. Raises OSError."""
        text = b""
        for path in (self._path, self._older):
            if path.exists() and len(text) < bytes_max:
                with path.open("rb") as file:
                    text = b"".join(self._opened(file, key)) + text
        return text[-bytes_max:]

    def _opened(self, file: BinaryIO, key: DataKey) -> Iterator[bytes]:
        aead, salt = AESGCM(key.derive(self._purpose)), self._salt(file)
        for at, end in list(_frames(file)):
            file.seek(at)
            _, nonce = FRAME.unpack(file.read(FRAME.size))
            try:
                yield aead.decrypt(nonce, file.read(end - at - FRAME.size), salt + at.to_bytes(8, "big"))
            except InvalidTag:
                yield DAMAGED

    def _salt(self, file: BinaryIO) -> bytes:
        """Return what tells this file from others; one without it is begun anew."""
        file.seek(0)
        head = file.read(HEAD_BYTES)
        if len(head) == HEAD_BYTES and head.startswith(MAGIC):
            return head[len(MAGIC) :]
        salt = secrets.token_bytes(SALT_BYTES)
        if file.writable():
            file.truncate(0)
            file.seek(0)
            file.write(MAGIC + salt)
        return salt


def _frames(file: BinaryIO) -> Iterator[tuple[int, int]]:
    """Return where each whole frame begins and ends."""
    size, at = file.seek(0, os.SEEK_END), HEAD_BYTES
    while at + FRAME.size <= size:
        file.seek(at)
        length, _ = FRAME.unpack(file.read(FRAME.size))
        end = at + FRAME.size + length
        if end > size or length <= TAG_BYTES:
            return
        yield at, end
        at = end


class ConsoleLog:
    """What the guest of one VM printed. Its methods are called in threads."""

    def __init__(self, directory: Path, vm: str) -> None:
        self._directory = directory
        self._encrypted = EncryptedLog(directory, vm)
        self._name = f"console log of {vm}"
        self._memory: int | None = None
        """The file in memory to which QEMU appends, if it does; kept when QEMU has ended."""
        self._taken = b""
        """What was taken from there and is not on the disk yet."""
        self._key: DataKey | None = None
        self._lock = threading.Lock()

    def begin(self, key: DataKey | None) -> int | None:
        """Return a file in memory, open to be appended to, if the log is to be encrypted; QEMU appends to a file on the
        disk otherwise. Raises OSError."""
        with self._lock:
            self._key = key
            if key is None:
                return None
            self._encrypt_former(key)
            if self._memory is None:
                self._memory = os.memfd_create(self._name, os.MFD_CLOEXEC)
            return os.open(f"/proc/self/fd/{self._memory}", os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)

    def _encrypt_former(self, key: DataKey) -> None:
        """Earlier agents had QEMU write to the disk as it was."""
        if text := read(self._directory, BYTES_MAX + KEPT_BYTES):
            self._encrypted.append(key, text)
        for name in (console_log_path(self._directory).name, OLDER):
            (self._directory / name).unlink(missing_ok=True)

    def adopt(self, pid: int) -> None:
        """Take over what the QEMU that an earlier agent started appends to."""
        with self._lock, contextlib.suppress(OSError):  # it ends at this moment
            for entry in Path(f"/proc/{pid}/fd").iterdir():
                if str(entry.readlink()) == MEMORY_LINK.format(self._name):
                    self._take_over(os.open(entry, os.O_RDWR | os.O_CLOEXEC))
                    return

    def _take_over(self, memory: int) -> None:
        if not stat.S_ISREG(os.fstat(memory).st_mode) or os.fstat(memory).st_nlink:
            os.close(memory)
            return
        if self._memory is not None:
            os.close(self._memory)
        self._memory = memory

    def keep(self, key: DataKey | None) -> None:
        """Keep the log within limits; encrypt what the guest has printed, if its ``key`` is here. Raises OSError."""
        with self._lock:
            self._key = key or self._key
            if self._memory is None:
                bound(self._directory)
            else:
                self._move(self._memory)

    def drop(self) -> None:
        """The VM's directory goes: let go of what is in memory."""
        with self._lock:
            self._taken = b""
            if self._memory is not None:
                os.close(self._memory)
                self._memory = None

    def _move(self, memory: int) -> None:
        """Encrypt what is in memory. Without the key it stays there, as long as it is not too much."""
        size = os.fstat(memory).st_size
        if size and (self._key is not None or size > BYTES_MAX):
            taken = os.pread(memory, BYTES_MAX, max(0, size - BYTES_MAX))
            os.ftruncate(memory, 0)
            self._taken = (self._taken + taken)[-BYTES_MAX:]
        if self._taken and self._key is not None:
            self._encrypted.append(self._key, self._taken)
            self._taken = b""

    def read(self, bytes_max: int, key: DataKey | None) -> bytes:
        """Return the end of what the guest printed. Raises OSError; its text says so if the key is not here."""
        with self._lock:
            if self._memory is None and not self._encrypted.exists():
                return read(self._directory, bytes_max)
            if key is None:
                raise OSError("its console log is encrypted, and its node does not have the key now")
            text = self._taken
            if self._memory is not None:
                size = os.fstat(self._memory).st_size
                text += os.pread(self._memory, BYTES_MAX, max(0, size - BYTES_MAX))
            if len(text) < bytes_max:
                text = self._encrypted.read(key, bytes_max - len(text)) + text
            return text[-bytes_max:]

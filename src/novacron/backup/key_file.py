"""Key files: a repository's key, sealed with a key that is made of a password."""

from __future__ import annotations

import hashlib
import os
import socket
from datetime import UTC, datetime
from typing import Annotated, NamedTuple

import msgspec

from novacron.backup.crypto import Key
from novacron.backup.errors import Damaged, WrongKey


class ScryptCost(NamedTuple):
    """What a guess costs: scrypt's numbers (RFC 7914)."""

    n: int
    r: int
    p: int


COST = ScryptCost(1 << 15, 8, 4)
"""32 MiB of memory, and about a quarter of a second."""
SALT_BYTES = 64


class _Mac(msgspec.Struct):
    k: bytes
    r: bytes


class _SealedKey(msgspec.Struct):
    """What is sealed in a key file; bytes are base64."""

    mac: _Mac
    encrypt: bytes


class RepositoryKeyFile(msgspec.Struct):
    """A key file. Its numbers come from the storage, which may be hostile: limits keep a guess affordable."""

    created: str
    username: str
    hostname: str
    kdf: str
    N: Annotated[int, msgspec.Meta(ge=1 << 10, le=1 << 20)]
    r: Annotated[int, msgspec.Meta(ge=1, le=16)]
    p: Annotated[int, msgspec.Meta(ge=1, le=32)]
    salt: bytes
    data: bytes


def _derived(password: bytes, file: RepositoryKeyFile) -> Key:
    memory = 128 * file.N * file.r + (1 << 20)
    return Key.of_bytes(hashlib.scrypt(
        password, salt=file.salt, n=file.N, r=file.r, p=file.p, maxmem=2 * memory, dklen=64
    ))  # fmt: skip


def make(key: Key, password: bytes, cost: ScryptCost = COST) -> tuple[str, bytes]:
    """Return a new key file that opens with ``password``: its name and content."""
    sealed = _SealedKey(_Mac(key.mac_k, key.mac_r), key.encrypt)
    file = RepositoryKeyFile(
        datetime.now(UTC).isoformat(), "novacron", socket.gethostname(), "scrypt", *cost,
        os.urandom(SALT_BYTES), b"",
    )  # fmt: skip
    file.data = _derived(password, file).seal(msgspec.json.encode(sealed))
    content = msgspec.json.encode(file)
    return hashlib.sha256(content).hexdigest(), content


def key_of(name: str, content: bytes, password: bytes) -> Key:
    """Return the key in a key file. Raises Damaged; WrongKey if the password is another one's."""
    try:
        file = msgspec.json.decode(content, type=RepositoryKeyFile)
    except msgspec.MsgspecError as error:
        raise Damaged(f"key file {name} is damaged: {error}") from None
    if file.kdf != "scrypt":
        raise Damaged(f"key file {name} uses {file.kdf!r}, which is not supported")
    try:
        plain = _derived(password, file).open(file.data, f"key file {name}")
    except Damaged:
        raise WrongKey(f"key file {name} can't be opened with this password") from None
    try:
        sealed = msgspec.json.decode(plain, type=_SealedKey)
        return Key.of_bytes(sealed.encrypt + sealed.mac.k + sealed.mac.r)
    except (msgspec.MsgspecError, ValueError) as error:
        raise Damaged(f"key file {name} contains no key: {error}") from None

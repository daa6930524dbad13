"""Signed heads: whoever keeps one can tell later whether the log up to there is still what it was."""

from __future__ import annotations

import hashlib
from datetime import datetime
from pathlib import Path

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from novacron import private_file
from novacron.audit_chain.entries import microseconds


class SignedHead(msgspec.Struct, frozen=True, kw_only=True):
    """What the chain was at a moment: the number and hash of its last entry, signed (Ed25519)."""

    chain: str
    seq: int
    hash: str
    at: datetime
    key: str
    """Id of the key: the first 16 hexadecimal digits of the public key's SHA-256."""
    signature: str


class PublicKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key that signs heads. ``public_key``: 32 bytes in hexadecimal."""

    id: str
    public_key: str
    server: str
    created_at: datetime


def key_id(public_key: str) -> str:
    return hashlib.sha256(bytes.fromhex(public_key)).hexdigest()[:16]


def _statement(chain: str, seq: int, hash: str, at: datetime) -> bytes:
    return b"novacron audit head 1\n" + msgspec.json.encode([chain, seq, hash, microseconds(at)])


class SigningKey:
    """The key with which a server signs heads."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public_key = key.public_key().public_bytes_raw().hex()
        self.id = key_id(self.public_key)

    @classmethod
    def open(cls, path: Path) -> SigningKey:
        """Load the key in a PEM file, which is made if it is not there. Raises OSError, ValueError."""
        if not path.exists():
            key = Ed25519PrivateKey.generate()
            private_file.write(path, key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            ))  # fmt: skip
        loaded = serialization.load_pem_private_key(path.read_bytes(), None)
        if not isinstance(loaded, Ed25519PrivateKey):
            raise ValueError(f"{path} holds no Ed25519 key")
        return cls(loaded)

    def sign(self, chain: str, seq: int, hash: str, at: datetime) -> SignedHead:
        signature = self._key.sign(_statement(chain, seq, hash, at)).hex()
        return SignedHead(chain=chain, seq=seq, hash=hash, at=at, key=self.id, signature=signature)


def is_signed(head: SignedHead, public_key: str) -> bool:
    """Say whether a key has signed a head, and is the one that the head names."""
    try:
        if key_id(public_key) != head.key:
            return False
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_key))
        key.verify(bytes.fromhex(head.signature), _statement(head.chain, head.seq, head.hash, head.at))
    except (InvalidSignature, ValueError):
        return False
    return True

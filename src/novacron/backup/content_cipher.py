"""Content that is encrypted with a project's key before a repository gets it: whoever can open the repository reads no
more of it than its size, and once the project's key is erased nobody reads it.

Blocks of disks are encrypted with AES-256 in XTS mode (NIST SP 800-38E), each as one data unit whose number is that of
the block. So a block at its place has one ciphertext: what did not change is not stored again. A block of zeros stays
what it is. Small files are encrypted with AES-256-GCM (NIST SP 800-38D). The repository itself detects changes by
others; whoever has its key could change what is in it.
"""

from __future__ import annotations

import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import XTS

from novacron.backup.errors import Damaged
from novacron.model.encryption import DataKey

DATA, TWEAK, SMALL = "backup disk data", "backup disk tweak", "backup files"
"""For which purposes keys are derived from the project's."""
TWEAK_BYTES, NONCE_BYTES = 16, 12


class ContentCipher:
    """Encrypts and decrypts with one project's key. Any thread may use it."""

    def __init__(self, key: DataKey) -> None:
        self.key_id = key.id
        self._disk_key = key.derive(DATA) + key.derive(TWEAK)
        self._small = AESGCM(key.derive(SMALL))

    def seal(self, number: int, block: bytes) -> bytes:
        """Return the block with this number of a disk, encrypted."""
        if _is_zeros(block):
            return block
        encryptor = self._cipher(number).encryptor()
        return encryptor.update(block) + encryptor.finalize()

    def open(self, number: int, sealed: bytes) -> bytes:
        """Return the block with this number of a disk."""
        if _is_zeros(sealed):
            return sealed
        decryptor = self._cipher(number).decryptor()
        return decryptor.update(sealed) + decryptor.finalize()

    def _cipher(self, number: int) -> Cipher[XTS]:
        return Cipher(AES(self._disk_key), XTS(number.to_bytes(TWEAK_BYTES, "little")))

    def seal_file(self, name: str, content: bytes) -> bytes:
        """Return a small file, encrypted."""
        nonce = os.urandom(NONCE_BYTES)
        return nonce + self._small.encrypt(nonce, content, self._about(name))

    def open_file(self, name: str, sealed: bytes) -> bytes:
        """Return a small file. Raises Damaged."""
        nonce, encrypted = sealed[:NONCE_BYTES], sealed[NONCE_BYTES:]
        try:
            return self._small.decrypt(nonce, encrypted, self._about(name))
        except (InvalidTag, ValueError):  # ValueError: too short for a nonce
            raise Damaged(f"{name} can't be decrypted with {self.key_id}") from None

    def _about(self, name: str) -> bytes:
        return f"{self.key_id} {name}".encode()


def _is_zeros(block: bytes) -> bool:
    return not block.strip(b"\0") if block[:1] == b"\0" else False

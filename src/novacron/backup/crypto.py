"""Encryption of everything in a repository: AES-256 in counter mode, then Poly1305-AES.

Format: restic's design, "Keys, Encryption and MAC"; D. J. Bernstein, "The Poly1305-AES message-authentication code",
2005.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.poly1305 import Poly1305

from novacron.backup.errors import Damaged

NONCE_BYTES, MAC_BYTES = 16, 16
OVERHEAD_BYTES = NONCE_BYTES + MAC_BYTES
"""By how much what is sealed is longer."""
ENCRYPT_BYTES, MAC_KEY_BYTES = 32, 16


class Key(NamedTuple):
    """A key: 32 bytes to encrypt with, and twice 16 to authenticate with."""

    encrypt: bytes
    mac_k: bytes
    mac_r: bytes

    @classmethod
    def random(cls) -> Key:
        return cls(os.urandom(ENCRYPT_BYTES), os.urandom(MAC_KEY_BYTES), os.urandom(MAC_KEY_BYTES))

    @classmethod
    def derived(cls, secret: bytes, purpose: str) -> Key:
        """Return the key that belongs to a random secret of at least 32 bytes, always the same (HKDF, RFC 5869)."""
        return cls.of_bytes(
            HKDF(hashes.SHA512(), ENCRYPT_BYTES + 2 * MAC_KEY_BYTES, None, purpose.encode()).derive(secret)
        )

    @classmethod
    def of_bytes(cls, key: bytes) -> Key:
        """Return the key that 64 bytes stand for. Raises ValueError."""
        if len(key) != ENCRYPT_BYTES + 2 * MAC_KEY_BYTES:
            raise ValueError(f"a key has 64 bytes, not {len(key)}")
        return cls(key[:32], key[32:48], key[48:])

    def seal(self, plain: bytes | memoryview) -> bytes:
        """Encrypt: nonce, ciphertext, MAC."""
        nonce = os.urandom(NONCE_BYTES)
        sealed = self._crypt(nonce, plain)
        return b"".join((nonce, sealed, self._mac(nonce, sealed).finalize()))

    def open(self, sealed: bytes | memoryview, what: str) -> bytes:
        """Decrypt what ``seal`` made. Raises Damaged, naming ``what``."""
        view = memoryview(sealed)
        if len(view) < OVERHEAD_BYTES:
            raise Damaged(f"{what} is too short")
        nonce, text = bytes(view[:NONCE_BYTES]), view[NONCE_BYTES:-MAC_BYTES]
        try:
            self._mac(nonce, text).verify(bytes(view[-MAC_BYTES:]))
        except InvalidSignature:
            raise Damaged(f"{what} is damaged, or was written with a different key") from None
        return self._crypt(nonce, text)

    def _crypt(self, nonce: bytes, data: bytes | memoryview) -> bytes:
        return Cipher(algorithms.AES(self.encrypt), modes.CTR(nonce)).encryptor().update(data)

    def _mac(self, nonce: bytes, text: bytes | memoryview) -> Poly1305:
        """Return the MAC of a text; its one-time key is r and the nonce, encrypted with k."""
        once = Cipher(algorithms.AES(self.mac_k), modes.ECB()).encryptor().update(nonce)  # noqa: S305 # nosec B305 - one block
        mac = Poly1305(self.mac_r + once)
        mac.update(text)
        return mac

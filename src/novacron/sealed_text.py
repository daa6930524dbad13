"""Texts that the database keeps encrypted with a project's key (AES-256-GCM, NIST SP 800-38D): once that is erased,
nobody can read them any more, in no backup of the database either."""

from __future__ import annotations

import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from novacron.model.encryption import DataKey, SealedText

NONCE_BYTES = 12
PURPOSE = "first-boot data"


def seal(key: DataKey, text: str) -> SealedText:
    """Return a text, encrypted."""
    nonce = os.urandom(NONCE_BYTES)
    return SealedText(key.id, nonce + AESGCM(key.derive(PURPOSE)).encrypt(nonce, text.encode(), key.id.encode()))


def unseal(key: DataKey, sealed: SealedText) -> str:
    """Return the text. Raises ValueError if it was encrypted with another key, or is damaged."""
    nonce, encrypted = sealed.data[:NONCE_BYTES], sealed.data[NONCE_BYTES:]
    try:
        return AESGCM(key.derive(PURPOSE)).decrypt(nonce, encrypted, key.id.encode()).decode()
    except (InvalidTag, ValueError):  # ValueError: too short for a nonce
        raise ValueError(f"what was encrypted with key {sealed.key} can't be decrypted") from None

"""A security key in software, as browsers show it: W3C Web Authentication, ES256, without attestation."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from typing import Any

import cbor2
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

Json = dict[str, Any]
USER_PRESENT, ATTESTED = 0x01, 0x40


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


class Authenticator:
    """One security key in a browser that shows a page of ``origin``."""

    def __init__(self, origin: str) -> None:
        self.origin = origin
        self.counter = 0
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._id = os.urandom(16)

    def _client_data(self, kind: str, challenge: str) -> bytes:
        return json.dumps({"type": kind, "challenge": challenge, "origin": self.origin}).encode()

    def _data(self, rp_id: str, flags: int, more: bytes = b"") -> bytes:
        self.counter += 1
        return hashlib.sha256(rp_id.encode()).digest() + bytes([flags]) + self.counter.to_bytes(4, "big") + more

    def create(self, options: Json) -> Json:
        """Answer as ``navigator.credentials.create`` does."""
        numbers = self._key.public_key().public_numbers()
        cose = {1: 2, 3: -7, -1: 1, -2: numbers.x.to_bytes(32, "big"), -3: numbers.y.to_bytes(32, "big")}
        attested = bytes(16) + len(self._id).to_bytes(2, "big") + self._id + cbor2.dumps(cose)
        data = self._data(options["rp"]["id"], USER_PRESENT | ATTESTED, attested)
        return self._answer({
            "clientDataJSON": _text(self._client_data("webauthn.create", options["challenge"])),
            "attestationObject": _text(cbor2.dumps({"fmt": "none", "attStmt": {}, "authData": data})),
        })  # fmt: skip

    def get(self, options: Json) -> Json:
        """Answer as ``navigator.credentials.get`` does."""
        data = self._data(options["rpId"], USER_PRESENT)
        client_data = self._client_data("webauthn.get", options["challenge"])
        signature = self._key.sign(data + hashlib.sha256(client_data).digest(), ec.ECDSA(hashes.SHA256()))
        return self._answer({
            "clientDataJSON": _text(client_data), "authenticatorData": _text(data), "signature": _text(signature),
        })  # fmt: skip

    def _answer(self, response: Json) -> Json:
        id = _text(self._id)
        return {"id": id, "rawId": id, "type": "public-key", "response": response, "clientExtensionResults": {}}

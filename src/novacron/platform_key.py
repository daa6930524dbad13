"""The platform key, which encrypts ("wraps") the keys of projects: in a file, sealed by a TPM, or in a key management
service that a command speaks to."""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import hashlib
import json
import os
import secrets
import shlex
from pathlib import Path
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from novacron import child_environment, tpm_sealing
from novacron.model.encryption import SECRET_BYTES, DataKey, WrappedKey
from novacron.model.errors import Conflict, InvalidInput, NovaError, Unavailable

NONCE_BYTES = 12
COMMAND_S_MAX = 10.0
ANSWER_BYTES_MAX = 64 * 1024
ID_LENGTH_MAX = 200
ERROR_CHARS_MAX = 300
MAKE = "make one: (umask 077; head -c 32 /dev/urandom | base64 > FILE)"
FORMS = (
    "write it like file:/etc/novacron/platform.key, tpm:/etc/novacron/platform.tpm or"
    " command:/usr/local/bin/kms --key novacron"
)
SEAL = "seal one: novacron server seal-platform-key FILE INTO"


class KeyProvider(Protocol):
    """Where a platform key is."""

    async def id(self) -> str:
        """Return what tells the platform key from others. Raises Unavailable."""

    async def wrap(self, key: DataKey) -> WrappedKey:
        """Encrypt a project's key. Raises Unavailable."""

    async def unwrap(self, wrapped: WrappedKey) -> DataKey:
        """Decrypt a project's key. Raises Unavailable."""


def provider(text: str, field: str = "platform-key") -> KeyProvider:
    """Return the provider that an option names. Raises InvalidInput."""
    kind, _, rest = text.partition(":")
    if kind in LOCAL and Path(rest).is_absolute():
        local = LOCAL[kind](Path(rest))
        try:
            local.read()
        except Unavailable as error:
            raise InvalidInput(str(error.detail), field=field, hint=error.hint) from None
        return local
    try:
        arguments = shlex.split(rest)
    except ValueError:
        arguments = []
    if kind == "command" and arguments:
        return KeyCommand(arguments)
    raise InvalidInput(f"{text!r} names no platform key", field=field, hint=FORMS)


def new_key() -> DataKey:
    return DataKey(f"key-{secrets.token_hex(8)}", secrets.token_bytes(SECRET_BYTES))


class LocalKey:
    """A platform key of 32 bytes that this process reads, and wraps with: AES-256-GCM."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> bytes:
        """Return the key. Raises Unavailable."""
        raise NotImplementedError

    async def id(self) -> str:
        return _file_id(await asyncio.to_thread(self.read))

    async def wrap(self, key: DataKey) -> WrappedKey:
        platform_key, nonce = await asyncio.to_thread(self.read), secrets.token_bytes(NONCE_BYTES)
        sealed = AESGCM(platform_key).encrypt(nonce, key.secret, key.id.encode())
        return WrappedKey(key.id, nonce + sealed, _file_id(platform_key))

    async def unwrap(self, wrapped: WrappedKey) -> DataKey:
        platform_key = await asyncio.to_thread(self.read)
        nonce, sealed = wrapped.wrapped[:NONCE_BYTES], wrapped.wrapped[NONCE_BYTES:]
        try:
            return DataKey(wrapped.id, AESGCM(platform_key).decrypt(nonce, sealed, wrapped.id.encode()))
        except (InvalidTag, ValueError):
            raise _not_by(wrapped, _file_id(platform_key)) from None


class KeyFile(LocalKey):
    """A platform key, base64, in a file that only its owner may read."""

    def read(self) -> bytes:
        try:
            descriptor = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            with os.fdopen(descriptor, "rb") as file:
                mode = os.fstat(descriptor).st_mode
                content = file.read(ANSWER_BYTES_MAX)
        except OSError as error:
            raise Unavailable(
                f"the platform key {self._path} can't be read: {error.strerror}",
                hint=MAKE,
            ) from None
        if mode & 0o077:
            raise Unavailable(
                f"the platform key {self._path} can be read by others: its mode is {mode & 0o777:04o}",
                hint=f"chmod 600 {self._path}; if others may have read it, rotate it",
            )
        try:
            key = base64.b64decode(content.strip(), validate=True)
        except binascii.Error:
            key = b""
        if len(key) != SECRET_BYTES:
            raise Unavailable(
                f"{self._path} holds no platform key: {SECRET_BYTES} bytes in base64",
                hint=MAKE,
            )
        return key


class SealedKey(LocalKey):
    """A platform key in a file that only this host's TPM can open. It is unsealed once: what it wraps is in memory for
    as long as VMs use it, too."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._key: bytes | None = None

    def read(self) -> bytes:
        if self._key is None:
            try:
                key = tpm_sealing.unseal(self._path.read_bytes())
            except OSError as error:
                raise Unavailable(f"the platform key {self._path} can't be read: {error.strerror}", hint=SEAL) from None
            except ValueError as error:
                raise Unavailable(f"{self._path} holds no platform key: {error}", hint=SEAL) from None
            if len(key) != SECRET_BYTES:
                raise Unavailable(f"{self._path} holds no platform key, but {len(key)} bytes", hint=SEAL)
            self._key = key
        return self._key


LOCAL: dict[str, type[LocalKey]] = {"file": KeyFile, "tpm": SealedKey}


def _file_id(key: bytes) -> str:
    return f"file-{hashlib.sha256(b'novacron platform key' + key).hexdigest()[:16]}"


def _not_by(wrapped: WrappedKey, id: str) -> Unavailable:
    return Unavailable(
        f"{wrapped.id} was wrapped by platform key {wrapped.wrapped_by}, which {id} is not",
        hint="name that one, too: --former-platform-key",
    )


class KeyCommand:
    """A platform key that never leaves a key management service. The command gets a JSON object on its standard input
    and answers with one: ``{"wrap": base64, "context": id}`` with ``{"wrapped": base64, "key": id}``, ``{"unwrap":
    base64, "context": id}`` with ``{"secret": base64}``, ``{"id": true}`` with ``{"key": id}``."""

    def __init__(self, arguments: list[str]) -> None:
        self._arguments = arguments

    async def id(self) -> str:
        return self._text(await self._ask({"id": True}), "key")

    async def wrap(self, key: DataKey) -> WrappedKey:
        answer = await self._ask({"wrap": base64.b64encode(key.secret).decode(), "context": key.id})
        wrapped = WrappedKey(key.id, self._bytes(answer, "wrapped"), self._text(answer, "key"))
        if key.secret in wrapped.wrapped:
            raise Unavailable(f"{self._arguments[0]} has not encrypted a key that it was to wrap")
        return wrapped

    async def unwrap(self, wrapped: WrappedKey) -> DataKey:
        answer = await self._ask({"unwrap": base64.b64encode(wrapped.wrapped).decode(), "context": wrapped.id})
        secret = self._bytes(answer, "secret")
        if len(secret) != SECRET_BYTES:
            raise Unavailable(f"{self._arguments[0]} has unwrapped {len(secret)} bytes, not {SECRET_BYTES}")
        return DataKey(wrapped.id, secret)

    def _text(self, answer: dict[str, object], field: str) -> str:
        value = answer.get(field)
        if not isinstance(value, str) or not 0 < len(value) <= ID_LENGTH_MAX or not value.isprintable():
            raise Unavailable(f"the answer of {self._arguments[0]} has no usable field {field!r}")
        return value

    def _bytes(self, answer: dict[str, object], field: str) -> bytes:
        try:
            return base64.b64decode(str(answer.get(field, "")), validate=True) or _nothing()
        except ValueError:
            raise Unavailable(f"the answer of {self._arguments[0]} has no usable field {field!r}") from None

    async def _ask(self, question: dict[str, object]) -> dict[str, object]:
        """Run the command, once. Raises Unavailable."""
        name = self._arguments[0]
        try:
            process = await asyncio.create_subprocess_exec(
                *self._arguments, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE, env=child_environment.clean(),
            )  # fmt: skip
        except OSError as error:
            raise Unavailable(f"the platform key's command {name} can't be run: {error.strerror}") from None
        try:
            async with asyncio.timeout(COMMAND_S_MAX):
                output, errors = await process.communicate(json.dumps(question).encode())
        except TimeoutError:
            raise Unavailable(f"the platform key's command {name} took longer than {COMMAND_S_MAX:.0f} s") from None
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        if process.returncode:
            message = errors.decode(errors="replace").strip()[-ERROR_CHARS_MAX:]
            raise Unavailable(f"the platform key's command {name} ended with {process.returncode}: {message}")
        try:
            answer = json.loads(output[:ANSWER_BYTES_MAX])
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise Unavailable(f"the platform key's command {name} did not answer with a JSON object")
        return answer


def _nothing() -> bytes:
    raise ValueError("nothing")


class PlatformKeys:
    """The platform key of this installation, and the one before it, which only unwraps; or neither."""

    def __init__(self, current: KeyProvider | None, former: KeyProvider | None = None) -> None:
        self._current, self._former = current, former

    @classmethod
    def of(cls, current: str | None, former: str | None) -> PlatformKeys:
        """Return what two options name. Raises InvalidInput."""
        if current is None and former is not None:
            raise InvalidInput("there is a former platform key and no present one", field="platform-key", hint=FORMS)
        return cls(
            None if current is None else provider(current),
            None if former is None else provider(former, "former-platform-key"),
        )

    def _required(self) -> KeyProvider:
        if self._current is None:
            raise Conflict(
                "this server has no platform key, so it can't encrypt or decrypt what projects have",
                hint="start it with --platform-key; see docs/how-to/encryption.md",
            )
        return self._current

    async def id(self) -> str:
        """Return the present key's id. Raises Conflict, Unavailable."""
        return await self._required().id()

    async def new(self) -> WrappedKey:
        """Make a key for a project. Raises Conflict, Unavailable."""
        return await self.wrap(new_key())

    async def wrap(self, key: DataKey) -> WrappedKey:
        """Raises Conflict, Unavailable."""
        wrapped = await self._required().wrap(key)
        if await self._required().unwrap(wrapped) != key:  # before anything is encrypted with it
            raise Unavailable("the platform key does not unwrap what it has wrapped: nothing was changed")
        return wrapped

    async def unwrap(self, wrapped: WrappedKey) -> DataKey:
        """Raises Conflict, Unavailable."""
        try:
            return await self._required().unwrap(wrapped)
        except NovaError:
            if self._former is None:
                raise
            return await self._former.unwrap(wrapped)

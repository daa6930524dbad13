"""The platform's keys as one process has them: the generations of each, and the secrets that are derived from them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import msgspec
from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from novacron import pki
from novacron.model.errors import MALFORMED, InvalidInput
from novacron.model.key import KeyName

DERIVED_MAX = 10_000
"""Derived secrets that are remembered: of projects and purposes."""
SECRET_BYTES = 32
SEAL_FILE = "seal.key"
SEAL_PURPOSE = "seal of the keys in the database"

Secrets = Callable[[], Sequence[bytes]]
"""Gives the secrets that are accepted for one purpose, the one in use first."""


def new_secret() -> bytes:
    return os.urandom(SECRET_BYTES)


class Generation(NamedTuple):
    """One generation of a key."""

    number: int
    secret: bytes
    used_from: datetime | None
    """From when on it is used; None: not yet known."""
    in_use: bool
    """That moment is over, by the database's clock."""


class KeyRing:
    """The generations of each key but the CA's. The newest that is in use makes secrets; all are accepted."""

    def __init__(self, generations: Mapping[KeyName, Sequence[Generation]]) -> None:
        self._generations: dict[KeyName, list[Generation]] = {}
        self._derived: dict[tuple[bytes, str], bytes] = {}
        self.replace(generations)

    @classmethod
    def first(cls, root: bytes) -> KeyRing:
        """Return the ring of an installation that has rotated nothing: everything is derived from one ``root``."""
        first = [Generation(1, root, None, in_use=True)]
        return cls({name: first for name in KeyName if name is not KeyName.CA})

    def replace(self, generations: Mapping[KeyName, Sequence[Generation]]) -> bool:
        """Let these be all generations; say whether others are in use, or accepted, than before."""
        new = {
            name: sorted(of, key=lambda generation: generation.number, reverse=True) for name, of in generations.items()
        }
        changed = new != self._generations
        if changed:
            self._generations, self._derived = new, {}
        return changed

    def derive(self, name: KeyName, purpose: str) -> bytes:
        """Return the secret of 32 bytes that is used for a purpose now."""
        return self._expand(self._current(name), purpose)

    def accepted(self, name: KeyName, purpose: str) -> list[bytes]:
        """Return all secrets that are accepted for a purpose, the one in use first."""
        current = self._current(name)
        others = [generation for generation in self._generations[name] if generation is not current]
        return [self._expand(generation, purpose) for generation in (current, *others)]

    def at(self, name: KeyName, purpose: str, moment: datetime) -> bytes:
        """Return the secret that was used for a purpose at a moment: for what has to keep to one secret."""
        generations = self._generations[name]
        used = (g for g in generations if g.used_from is not None and g.used_from <= moment)
        return self._expand(next(used, generations[-1]), purpose)

    def page_keys(self, project: str, began: datetime | None) -> list[bytes]:
        """Return the keys of a project's pages: first the one to use, now or in a migration that ``began`` then; after
        it those with which pages may have been kept."""
        purpose = f"pages of project {project}"
        accepted = self.accepted(KeyName.PAGE, purpose)
        first = accepted[0] if began is None else self.at(KeyName.PAGE, purpose, began)
        return [first, *(key for key in accepted if key != first)]

    def _current(self, name: KeyName) -> Generation:
        generations = self._generations[name]
        return next((generation for generation in generations if generation.in_use), generations[-1])

    def _expand(self, generation: Generation, purpose: str) -> bytes:
        derived = self._derived.get((generation.secret, purpose))
        if derived is None:
            derived = pki.expand(generation.secret, purpose)
            if len(self._derived) < DERIVED_MAX:
                self._derived[generation.secret, purpose] = derived
        return derived


class _Sealed(msgspec.Struct, frozen=True):
    """What is sealed: of which key and generation it is can't be changed in the database."""

    name: str
    generation: int
    secret: bytes


class KeySeal:
    """Seals the keys that the database has, so that it alone, or its backup, gives none of them away.

    The key for that is in a file of each server's folder, the newest first where there are two. Until the CA is rotated
    for the first time it is derived from the CA's key, so that servers which have that one need no other file.
    """

    def __init__(self, path: Path, derived: bytes) -> None:
        """``derived`` is used where there is no file. Raises OSError, InvalidInput."""
        self._path = path
        self._derived = pki.fernet_key(derived)
        self.reload()

    def reload(self) -> None:
        """Read the file again. Raises OSError, InvalidInput."""
        try:
            self._keys = self._path.read_bytes().split()
        except FileNotFoundError:
            self._keys = [self._derived]
        try:
            self._fernet = MultiFernet([Fernet(key) for key in self._keys])
        except ValueError as error:
            raise InvalidInput(
                f"{self._path} is damaged: {error}", field="state-dir", hint="copy it from another server or a backup"
            ) from None

    def seal(self, name: str, generation: int, secret: bytes) -> bytes:
        return self._fernet.encrypt(msgspec.json.encode(_Sealed(name, generation, secret)))

    def unseal(self, name: str, generation: int, sealed: bytes) -> bytes:
        """Return a secret. Raises InvalidInput for what was sealed with another key, or is of another generation."""
        try:
            opened = msgspec.json.decode(self._fernet.decrypt(sealed), type=_Sealed)
        except (InvalidToken, *MALFORMED):
            opened = None
        if opened is None or (opened.name, opened.generation) != (name, generation):
            raise self._no_key(f"the key {name}, generation {generation},")
        return opened.secret

    def _no_key(self, what: str) -> InvalidInput:
        return InvalidInput(
            f"{what} in the database can't be opened with {self._path}", field="state-dir",
            hint=f"copy {SEAL_FILE}, ca.key and ca.crt from another server of this installation, or from a backup of"
            " its state directory; if they are lost: --new-keys",
        )  # fmt: skip

    @property
    def mark(self) -> str:
        """Return what tells the newest key from others."""
        return _mark(self._keys[0])

    @property
    def has_others(self) -> bool:
        return len(self._keys) > 1

    def next_key(self) -> tuple[str, bytes]:
        """Return another key to seal with: its mark, and it, sealed with the present one."""
        key = Fernet.generate_key()
        return _mark(key), self._fernet.encrypt(key)

    def keep(self) -> None:
        """Put the key into its file, if it is not there. Raises OSError."""
        if not self._path.exists():
            self._write(self._keys)

    def take_next(self, sealed: bytes) -> None:
        """Seal with the next key from now on, and go on opening what was sealed. Raises OSError, InvalidInput."""
        try:
            self.add(self._fernet.decrypt(sealed))
        except InvalidToken:
            raise self._no_key("the next seal") from None

    def seal_anew(self, name: str, generation: int, sealed: bytes) -> bytes:
        """Return a secret as it is sealed with the newest key. Raises InvalidInput."""
        return self.seal(name, generation, self.unseal(name, generation, sealed))

    def add(self, key: bytes) -> None:
        """Seal with another key from now on, and go on opening what was sealed before. Raises OSError."""
        if key not in self._keys:
            self._write([key, *self._keys])

    def forget_others(self) -> None:
        """Keep the newest key only. Raises OSError."""
        if len(self._keys) > 1:
            self._write(self._keys[:1])

    def _write(self, keys: Sequence[bytes]) -> None:
        pki.write_secret(self._path, b"".join(key + b"\n" for key in keys))
        self.reload()


def _mark(key: bytes) -> str:
    return hashlib.sha256(key).hexdigest()[:16]

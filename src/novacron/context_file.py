"""The CLI's settings: one file with several named contexts, each an API and who calls it.

A context may hold the only copy of an administrator's token. So nothing here replaces one that it was not asked to
replace, writers wait for each other, and the file is replaced whole, with mode 0600.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from novacron import private_file

CONTEXTS_MAX = 100
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
FIELDS = ("url", "token", "ca", "project", "authorities")
OF_BEFORE = "default"
"""Name of the context that is made of a file of an earlier version, which had one without a name."""


class SettingsError(Exception):
    """The file can't be read, or does not have what is asked for: says what to do."""


class Context(NamedTuple):
    """Where an API is, who calls, whom to trust (PEM), and in which project."""

    url: str
    token: str
    ca: str = ""
    project: str = ""
    authorities: str = ""
    """Which authorities those are, as the server says it."""


class Contexts:
    """The contexts of a file, by name, and the one that is used if none is named: empty if there is none."""

    def __init__(self, path: Path, current: str = "", named: dict[str, Context] | None = None) -> None:
        self.path = path
        self.current = current
        self._named = named or {}

    def names(self) -> list[str]:
        return sorted(self._named)

    def get(self, name: str) -> Context:
        """Return a context. Raises SettingsError."""
        if name not in self._named:
            known = ", ".join(self.names()) or "none"
            raise SettingsError(f"there is no context {name!r} in {self.path}; there are: {known}")
        return self._named[name]

    def use(self, name: str) -> None:
        """Make a context the current one. Raises SettingsError."""
        self.get(name)
        self.current = name

    def add(self, name: str, context: Context) -> None:
        """Add a context; the first one becomes the current one. Raises SettingsError if there is one of this name."""
        if not NAME.fullmatch(name):
            raise SettingsError(f"{name!r} is no name of a context: use up to 63 letters, digits, dots, - and _")
        if name in self._named:
            raise SettingsError(f"context {name} exists in {self.path}: choose another name, or --replace it")
        if len(self._named) >= CONTEXTS_MAX:
            raise SettingsError(f"{self.path} has {CONTEXTS_MAX} contexts: remove some with novacron context remove")
        self._named[name] = context
        self.current = self.current or name

    def add_beside(self, name: str, context: Context) -> str:
        """Add a context under this name, or under ``NAME-2`` and so on if that is another's; return its name."""
        taken = (f"{name}-{number}" for number in range(2, CONTEXTS_MAX + 2))
        free = name if name not in self._named else next(other for other in taken if other not in self._named)
        self.add(free, context)
        return free

    def replace(self, name: str, context: Context) -> None:
        """Change a context. Raises SettingsError if there is none of this name."""
        self.get(name)
        self._named[name] = context

    def remove(self, name: str) -> None:
        """Remove a context. Raises SettingsError."""
        self.get(name)
        del self._named[name]
        if self.current == name:
            self.current = ""

    def rename(self, name: str, new: str) -> None:
        """Give a context another name. Raises SettingsError."""
        context, was_current = self.get(name), self.current == name
        if new == name:
            return
        self.add(new, context)
        del self._named[name]
        self.current = new if was_current else self.current

    def name_of(self, url: str, token: str) -> str | None:
        """Return the name of the context that has these."""
        return next((name for name, has in self._named.items() if (has.url, has.token) == (url, token)), None)

    def encode(self) -> bytes:
        """Return the file's content."""
        named = {name: {key: value for key, value in self._named[name]._asdict().items() if value}
                 for name in self.names()}  # fmt: skip
        return json.dumps({"current": self.current, "contexts": named}, indent=2).encode() + b"\n"


def read(path: Path) -> Contexts:
    """Return the contexts of a file, none if there is no file. Raises SettingsError."""
    try:
        return _decode(path, json.loads(path.read_bytes()))
    except FileNotFoundError:
        return Contexts(path)
    except (OSError, ValueError, TypeError) as error:
        raise SettingsError(f"can't read the settings in {path}: {error}; mend the file, or move it away") from None


def _decode(path: Path, document: object) -> Contexts:
    if not isinstance(document, dict):
        raise ValueError("it is no JSON object")
    if "contexts" not in document:
        return Contexts(path, OF_BEFORE, {OF_BEFORE: _context(document)}) if document else Contexts(path)
    named, current = document["contexts"], document.get("current", "")
    if not isinstance(named, dict) or not isinstance(current, str):
        raise ValueError("contexts is no JSON object, or current no text")
    return Contexts(path, current, {str(name): _context(fields) for name, fields in named.items()})


def _context(fields: object) -> Context:
    if not isinstance(fields, dict):
        raise ValueError("a context is no JSON object")
    values = [fields.get(field, "") for field in FIELDS]
    if not all(isinstance(value, str) for value in values):
        raise ValueError(f"{', '.join(FIELDS)} are texts")
    return Context(*values)


@contextlib.contextmanager
def changing(path: Path) -> Iterator[Contexts]:
    """Yield the contexts of a file to change, and store them at the end of the block, unless it raises.

    Other writers wait meanwhile. Raises SettingsError, OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        contexts = read(path)
        yield contexts
        private_file.write(path.resolve(), contexts.encode())  # a link to a file elsewhere stays one
    finally:
        os.close(descriptor)

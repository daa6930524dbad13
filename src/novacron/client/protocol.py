"""What both clients share, without input or output: limits, paths, retries, answers and event streams."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote, urlencode

from novacron.client.config import Config
from novacron.client.errors import Unreachable, refusal

if TYPE_CHECKING:
    import ssl

CONNECT_TIMEOUT_S = 5.0
LONG_POLL_S = 20
READ_TIMEOUT_S = 30.0 + LONG_POLL_S
PROBE_TIMEOUT_S = 10.0
STREAM_TIMEOUT_S = 60.0
"""The server sends something at least every 15 s while an event stream is open."""
ATTEMPTS = 3
PAGE_SIZE = 500
PAGES_MAX = 10_000
COPY_POLL_S = 1.0
PIECE_BYTES = 1 << 20
GUEST_PIECE_BYTES = 512 << 10
UNPAGED = ("images", "tokens", "sites", "pools", "invitations", "api-log", "keys")
"""Kinds that the API lists whole, without ``limit``; a VM's snapshots are another."""

Object = dict[str, Any]
"""An object of the API, decoded from JSON: it may have fields that this version does not know."""


AUTHORITIES = "novacron-authorities"
"""Header of every answer: which authorities the server wants to be trusted."""
served_authorities: dict[str, str] = {}
"""That header's value, by URL, as each server said it last."""
AGE = "age"
"""Header of an answer from memory while the server's database is away: how old it may be, in seconds."""
answer_ages: dict[str, int] = {}
"""That header's value, by URL, as each server said it last; 0: the answer was current."""


class HttpReply(NamedTuple):
    status: int
    body: bytes
    authorities: str = ""
    cookies: tuple[str, ...] = ()
    """Values of ``Set-Cookie``."""
    age_s: int = 0


def age_s(value: str | None) -> int:
    """Return the age that an answer's header says; a wrong one counts as none."""
    return int(value) if value is not None and value.isascii() and value.isdecimal() else 0


def retry_delay_s(attempt: int, status: int | None) -> float | None:
    """Return how long to wait before the next attempt; None: the answer stands.

    ``attempt`` counts from 1; ``status`` is None if there was no answer. Requests are safe to repeat: every POST
    carries an idempotency key.
    """
    if attempt >= ATTEMPTS:
        return None
    if status is None:
        return 0.2 * attempt
    return 0.5 * attempt if status == 503 else None


def decode(answer: HttpReply, url: str) -> Any:  # noqa: ANN401 - JSON
    """Return what an answer's JSON says. Raises ApiError for a refusal, Unreachable if it is not JSON."""
    try:
        document = json.loads(answer.body) if answer.body else None
    except ValueError:
        raise Unreachable(f"{url} answered {answer.status} with something other than JSON") from None
    if answer.status >= 400:
        raise refusal(document if isinstance(document, dict) else {"status": answer.status})
    return document


def authorization(config: Config) -> dict[str, str]:
    return {"Authorization": f"Bearer {config.token}"}


def in_project(path: str, project: str) -> str:
    """Return the path with the caller's project, unless it names one already."""
    if not project or re.search(r"[?&]project=", path):
        return path
    return path + ("&" if "?" in path else "?") + query({"project": project})


def quoted(ref: str) -> str:
    """Return an id or a name as one segment of a path."""
    return quote(ref, safe="")


def is_paged(kind: str) -> bool:
    """Say whether the API lists a kind page by page."""
    return kind not in UNPAGED and not kind.endswith("/snapshots")


def query(values: Mapping[str, str]) -> str:
    return urlencode(values)


def without_none(fields: Mapping[str, object]) -> Object:
    return {field: value for field, value in fields.items() if value is not None}


def tls(config: Config) -> ssl.SSLContext:
    import ssl  # the command line often ends before it needs this

    context = ssl.create_default_context(cadata=config.ca or None)
    context.verify_flags |= ssl.VERIFY_X509_STRICT  # Python's default from 3.13 on
    return context


def sha256_of(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def read_piece(file: Path, offset: int, count: int) -> bytes:
    """Return up to ``count`` bytes of a file that is uploaded. Raises Unreachable if it ends before ``offset``."""
    with file.open("rb") as opened:
        opened.seek(offset)
        piece = opened.read(count)
    if not piece:
        raise Unreachable(f"{file} became shorter while it was sent")
    return piece


def waits_for(current: Object | None) -> str:
    """Return how an object is and what keeps it from being otherwise, as its status says: of VMs, drains, and all that
    has a phase and an error."""
    if current is None:
        return ""
    status = current.get("status") or {}
    state = status.get("state") or current.get("phase")
    whys = [status.get("reason") or current.get("error") or current.get("reason") or current.get("waits_for")]
    whys += [f"{vm['vm_name']} stays: {vm['why']}" for vm in current.get("stays") or ()]
    why = "; ".join(filter(None, whys))
    return "" if state is None else f": it is {state}" + (f": {why}" if why else "")


class EventParser:
    """Parses a stream of server-sent events (WHATWG HTML, 9.2), chunk by chunk."""

    def __init__(self, after: int | None) -> None:
        self.last_id = after
        """Revision from which to resume."""
        self._rest = b""
        self._kind, self._data = "", ""

    def reset(self) -> None:
        """Forget an event that was cut off with its connection."""
        self._rest, self._kind, self._data = b"", "", ""

    def feed(self, chunk: bytes) -> Iterator[tuple[str, Object]]:
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            yield from self._line(line.decode())

    def _line(self, line: str) -> Iterator[tuple[str, Object]]:
        if line.startswith("event: "):
            self._kind = line[7:]
        elif line.startswith("data: "):
            self._data = line[6:]
        elif line.startswith("id: "):
            self.last_id = int(line[4:])
        elif not line and self._data:
            kind, data = self._kind, self._data
            self._kind, self._data = "", ""
            if kind != "interrupted":
                yield kind, json.loads(data)

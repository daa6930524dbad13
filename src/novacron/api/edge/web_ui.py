"""The web UI: the files that ``script/web`` has built, answered from memory, before the routes.

Only the names of files that were there at the start are known, so no path leads anywhere else.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from novacron.api.edge.refusals import Header, Refusal, refuse
from novacron.api.edge.request_body import Receive, Scope, Send
from novacron.api.read_model.response_cache import coding_of

App = Callable[[Any, Any, Any], Awaitable[None]]

BUILT = Path(__file__).resolve().parents[1] / "ui"
"""Where ``script/web`` puts the files; part of the wheel."""
HOME = "/ui/"
PAGE = re.compile(r"/ui(/[a-z0-9-]{1,63}){0,4}/?\Z")
"""Addresses of the UI's pages: all are answered with the one page, which shows what its address says."""
ASSETS = "/ui/assets/"
"""Their names contain a digest of what is in them."""
SETTINGS = "/ui/settings.json"
ROUTE = "/ui/{file}"
CODINGS = {b"br": ".br", b"gzip": ".gz"}
"""By preference, with the endings of the files that were compressed when the UI was built."""
TYPES = {
    ".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8",
    ".json": "application/json", ".svg": "image/svg+xml", ".png": "image/png", ".woff2": "font/woff2",
    ".txt": "text/plain; charset=utf-8",
}  # fmt: skip
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; font-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
"""Only the server's own files run. Pictures may be data: the pointer that a display's guest shows is one."""
SHOWN: list[Header] = [
    (b"content-security-policy", POLICY.encode()),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"vary", b"accept-encoding"),
]
FOR_EVER, ASK_AGAIN = b"public, max-age=31536000, immutable", b"no-cache"
NO_SUCH_FILE = Refusal(404, "not-found", "Not found", "the web UI has no such file")
NOT_BUILT = Refusal(404, "not-found", "Not found", "the web UI has not been built", "build it with: script/web")
ONLY_READ = Refusal(405, "method-not-allowed", "Method not allowed", "the web UI's files can only be read")


class _File(msgspec.Struct, frozen=True):
    """A file in each coding that there is; b"": as it is."""

    headers: list[Header]
    bodies: dict[bytes, bytes]
    etag: bytes


class WebUi:
    """An ASGI application around another, which answers what is not the UI's."""

    def __init__(self, app: App, settings: Mapping[str, object], built: Path = BUILT) -> None:
        """``settings``: what pages know before anybody has logged in."""
        self._app = app
        self._files = _read(built)
        self._files[SETTINGS] = _file(SETTINGS, {b"": msgspec.json.encode(settings)})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope["path"]
        if scope["type"] != "http" or not (path in ("/", "/ui") or path.startswith(HOME)):
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        if path == "/" and b"text/html" not in headers.get(b"accept", b""):
            await self._app(scope, receive, send)
            return
        scope["path_template"] = ROUTE  # how it is counted
        if scope["method"] not in ("GET", "HEAD"):
            await refuse(send, ONLY_READ, [(b"allow", b"GET, HEAD")])
        elif path in ("/", "/ui"):
            await _answer(send, 303, [(b"location", HOME.encode()), (b"cache-control", b"no-store")])
        elif (file := self._file_at(path)) is None:
            await refuse(send, NO_SUCH_FILE if f"{HOME}index.html" in self._files else NOT_BUILT)
        else:
            await _show(send, file, headers, whole=scope["method"] == "GET")

    def _file_at(self, path: str) -> _File | None:
        file = self._files.get(path)
        if file is None and PAGE.match(path) and not f"{path}/".startswith(ASSETS):
            return self._files.get(f"{HOME}index.html")
        return file


async def _show(send: Send, file: _File, headers: dict[bytes, bytes], *, whole: bool) -> None:
    if headers.get(b"if-none-match") == file.etag:
        await _answer(send, 304, file.headers)
        return
    among = [coding for coding in CODINGS if coding in file.bodies]
    coding = coding_of(headers.get(b"accept-encoding", b""), among)
    body = file.bodies[coding]
    coded = [(b"content-encoding", coding)] if coding else []
    size = (b"content-length", str(len(body)).encode())
    await _answer(send, 200, [*file.headers, *coded, size], body if whole else b"")


async def _answer(send: Send, status: int, headers: list[Header], body: bytes = b"") -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _read(built: Path) -> dict[str, _File]:
    """Return all files by their path in the URL."""
    files: dict[str, _File] = {}
    for path in sorted(built.rglob("*")):
        if path.suffix not in TYPES or not path.is_file():
            continue
        bodies = {b"": path.read_bytes()}
        for coding, ending in CODINGS.items():
            packed = path.with_name(path.name + ending)
            if packed.exists():
                bodies[coding] = packed.read_bytes()
        name = HOME + path.relative_to(built).as_posix()
        files[name] = _file(name, bodies)
    if f"{HOME}index.html" in files:
        files[HOME] = files[f"{HOME}index.html"]
    return files


def _file(name: str, bodies: dict[bytes, bytes]) -> _File:
    etag = b'W/"%s"' % hashlib.sha256(bodies[b""]).hexdigest()[:32].encode()
    kept = FOR_EVER if name.startswith(ASSETS) else ASK_AGAIN
    type_ = TYPES[Path(name).suffix].encode()
    return _File([(b"content-type", type_), (b"cache-control", kept), (b"etag", etag), *SHOWN], bodies, etag)

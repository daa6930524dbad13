"""What all calls are made of: a request, lists page by page, waiting for a change, the stream of changes."""

from __future__ import annotations

import base64
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from novacron import private_file
from novacron.client import protocol
from novacron.client.config import Config
from novacron.client.errors import ApiError, Unreachable
from novacron.client.protocol import EventParser, HttpReply, Object, quoted

if TYPE_CHECKING:
    from novacron.client.aio.transport import AsyncTransport

T = TypeVar("T")


class AsyncConnection:
    """Requests to one API, and what holds for every kind of object."""

    config: Config
    _transport: AsyncTransport

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._transport.close()

    @property
    def age_s(self) -> int:
        """How many seconds old the last answer may be; 0: current. While its database is away, a server answers reads
        from memory for a while; send ``min_revision`` where that will not do."""
        return protocol.answer_ages.get(self.config.url, 0)

    async def request(
        self, method: str, path: str, body: Object | None = None, raw: bytes | None = None, **headers: str
    ) -> Any:  # noqa: ANN401 - JSON
        """Send a request, with an object or ``raw`` bytes, and return the decoded answer. Raises ApiError, Unreachable.

        A POST carries an Idempotency-Key, so trying it again after a lost connection is harmless.
        """
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if body is not None or raw is not None:
            sent.setdefault("Content-Type", "application/json" if raw is None else "application/octet-stream")
        if method == "POST":
            sent.setdefault("Idempotency-Key", str(uuid.uuid4()))
        content = raw if body is None else json.dumps(body).encode()
        answer = await self._send(method, protocol.in_project(path, self.config.project), sent, content)
        return protocol.decode(answer, self.config.url)

    async def fetch(self, path: str) -> bytes:
        """Return an answer that is not JSON, as bytes. Raises ApiError, Unreachable."""
        answer = await self._send("GET", path, {}, None)
        if answer.status != 200:
            protocol.decode(answer, self.config.url)
        return answer.body

    async def _pull(
        self, path: str, query: Mapping[str, str], file: Path, on_progress: Callable[[int], None]
    ) -> int:  # fmt: skip
        """Fetch a file piece by piece into ``file``, which appears once it is complete, and return its length."""
        partial, read = file.with_name(f".{file.name}.part"), 0
        try:
            with private_file.opened(partial) as opened:
                while True:
                    at = protocol.query({**query, "offset": str(read)})
                    piece = await self._object("GET", f"{path}?{at}")
                    data = base64.b64decode(piece["data"])
                    await self._transport.run(opened.write, data)
                    read += len(data)
                    on_progress(read)
                    if piece["end"]:
                        break
            partial.replace(file)
        finally:
            partial.unlink(missing_ok=True)
        return read

    async def _send(self, method: str, path: str, headers: dict[str, str], content: bytes | None) -> HttpReply:
        headers = {**protocol.authorization(self.config), **headers}
        attempt = 1
        while True:
            answer: HttpReply | None = None
            try:
                answer = await self._transport.send(method, path, headers, content)
            except Unreachable:
                delay_s = protocol.retry_delay_s(attempt, None)
                if delay_s is None:
                    raise
            else:
                protocol.served_authorities[self.config.url] = answer.authorities
                protocol.answer_ages[self.config.url] = answer.age_s
                delay_s = protocol.retry_delay_s(attempt, answer.status)
                if delay_s is None:
                    return answer
            await self._transport.pause(delay_s)
            attempt += 1

    async def _object(self, method: str, path: str, body: Mapping[str, object] | None = None) -> Object:
        answered: Object = await self.request(method, path, None if body is None else dict(body))
        return answered

    async def list(self, kind: str, limit: int | None = None, **filters: str) -> AsyncIterator[Object]:
        """Yield the objects of a kind, for example ``vms``, ``nodes``, ``migrations``, ``links`` or ``events``."""
        query, remaining = dict(filters), limit
        for _ in range(protocol.PAGES_MAX):
            if protocol.is_paged(kind):
                query["limit"] = str(min(limit or protocol.PAGE_SIZE, protocol.PAGE_SIZE))
            page = await self._object("GET", f"/api/v1/{kind}?{protocol.query(query)}")
            for item in page["items"][:remaining]:
                yield item
            if remaining is not None:
                remaining -= len(page["items"])
            if page.get("next") is None or (remaining is not None and remaining <= 0):
                return
            query["cursor"] = page["next"]

    async def get(self, kind: str, ref: str) -> Object:
        """Return one object by id or name."""
        return await self._object("GET", f"/api/v1/{kind}/{quoted(ref)}")

    async def one(self, type_: type[T], ref: str) -> T:
        """Return one object by id or name as a value of its type, for example of ``novacron.model.vm.Vm``.

        Raises TypeError for a type of which the API has no objects.
        """
        from novacron.client import typed

        return typed.read(type_, await self.get(typed.kind_of(type_), ref))

    async def every(self, type_: type[T], limit: int | None = None, **filters: str) -> AsyncIterator[T]:
        """Yield the objects of a type as values of it, for example ``every(Vm, state="running")``."""
        from novacron.client import typed

        async for item in self.list(typed.kind_of(type_), limit, **filters):
            yield typed.read(type_, item)

    async def act(self, kind: str, ref: str, action: str, body: Object | None = None) -> Object:
        """Do an action, for example ``act("vms", "web", "stop", {"timeout_s": 5})``."""
        return await self._object("POST", f"/api/v1/{kind}/{quoted(ref)}/actions/{action}", body)

    async def delete(self, kind: str, ref: str) -> None:
        """Delete an object, for example ``delete("vms", "web")``."""
        await self.request("DELETE", f"/api/v1/{kind}/{quoted(ref)}")

    async def wait(
        self, kind: str, ref: str, until: Callable[[Object | None], bool], timeout_s: float,
        poll_s: float = protocol.LONG_POLL_S,
    ) -> Object | None:  # fmt: skip
        """Wait until ``until(object)`` is true and return the object; None stands for one that is gone.

        Waits on the server, so a change is seen within milliseconds. Raises TimeoutError.
        """
        deadline = time.monotonic() + timeout_s
        revision, current = 0, None
        while True:
            remaining_s = deadline - time.monotonic()
            if remaining_s <= 0:
                raise TimeoutError(f"{kind} {ref}: not there after {timeout_s:.0f} s{protocol.waits_for(current)}")
            current = await self._newer(kind, ref, revision, max(1, int(min(remaining_s, poll_s))))
            if until(current):
                return current
            if current is None:
                raise TimeoutError(f"{kind} {ref} is gone")
            revision = current["revision"]

    async def _newer(self, kind: str, ref: str, revision: int, timeout_s: int) -> Object | None:
        """Return an object, after its next change if it is not newer than a revision; None: it is gone."""
        query = protocol.query({"newer_than": str(revision), "timeout_s": str(timeout_s)})
        try:
            return await self._object("GET", f"/api/v1/{kind}/{quoted(ref)}?{query}")
        except ApiError as error:
            if error.status != 404:
                raise
            return None

    async def stream(self, after: int | None = None, kinds: str | None = None) -> AsyncIterator[tuple[str, Object]]:
        """Yield ``(kind, object)`` for every change from now on, or after a revision; resumes when cut off.

        Raises ApiError; Unreachable when it can't be resumed.
        """
        parser, failures = EventParser(after), 0
        path = "/api/v1/events?" + protocol.query({"kinds": kinds} if kinds else {})
        while True:
            headers = {**protocol.authorization(self.config), "Accept": "text/event-stream"}
            if parser.last_id is not None:
                headers["Last-Event-ID"] = str(parser.last_id)
            parser.reset()
            try:
                async for chunk in self._transport.stream(path, headers):
                    failures = 0
                    for change in parser.feed(chunk):
                        yield change
            except Unreachable:
                failures += 1
                if failures > protocol.ATTEMPTS:
                    raise
                await self._transport.pause(failures)

"""When the SDK retries a request, and what it sends then."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from novacron.client import ApiError, AsyncClient, Client, Config, Unreachable
from novacron.client.protocol import EventParser, HttpReply
from novacron.client.sync.transport import Transport

CONFIG = Config("https://api.invalid", "token", "", "blue")


class FakeTransport(Transport):
    """Gives its prepared answers in order; None stands for no answer."""

    def __init__(self, *answers: HttpReply | None, streams: tuple[bytes | None, ...] = ()) -> None:
        self.answers, self.streams = list(answers), list(streams)
        self.sent: list[tuple[str, str, dict[str, str], bytes | None]] = []
        self.paused_s: list[float] = []

    def send(
        self, method: str, path: str, headers: dict[str, str], body: bytes | None = None, timeout_s: float = 0
    ) -> HttpReply:
        self.sent.append((method, path, headers, body))
        answer = self.answers.pop(0)
        if answer is None:
            raise Unreachable("no answer")
        return answer

    def stream(self, path: str, headers: dict[str, str]) -> Iterator[bytes]:
        self.sent.append(("GET", path, headers, None))
        while (chunk := self.streams.pop(0)) is not None:
            yield chunk
        raise Unreachable("cut off")

    def pause(self, seconds: float) -> None:
        self.paused_s.append(seconds)


def client(transport: FakeTransport) -> Client:
    sync_client = Client(CONFIG)
    sync_client._transport = transport
    return sync_client


BUSY, DONE = HttpReply(503, b'{"status": 503, "detail": "starting"}'), HttpReply(201, b'{"id": "vm-1"}')


def test_a_request_is_retried_with_the_same_idempotency_key() -> None:
    transport = FakeTransport(None, BUSY, DONE)
    assert client(transport).create_vm(name="web", node=None) == {"id": "vm-1"}
    keys = {headers["Idempotency-Key"] for _, _, headers, _ in transport.sent}
    assert len(keys) == 1 and transport.paused_s == [0.2, 1.0]
    assert {(path, body) for _, path, _, body in transport.sent} == {("/api/v1/vms?project=blue", b'{"name": "web"}')}


def test_a_failed_download_is_retried_like_any_other_request() -> None:
    assert client(FakeTransport(None, BUSY, HttpReply(200, b"PNG"))).screenshot("web") == b"PNG"


def test_the_third_failure_is_raised_to_the_caller() -> None:
    with pytest.raises(Unreachable):
        client(FakeTransport(None, None, None)).me()
    with pytest.raises(ApiError, match="starting"):
        client(FakeTransport(BUSY, BUSY, BUSY)).me()


def test_a_refused_request_is_not_retried() -> None:
    transport = FakeTransport(HttpReply(409, b'{"status": 409, "detail": "exists"}'))
    with pytest.raises(ApiError, match="exists"):
        client(transport).create_vm(name="web")
    assert len(transport.sent) == 1


def test_a_stream_of_changes_resumes_after_the_last_complete_change() -> None:
    whole = b'event: vm\nid: 7\ndata: {"name": "web"}\n\n'
    cut = b'event: vm\ndata: {"na'
    transport = FakeTransport(streams=(whole + cut, None, whole.replace(b"7", b"8"), None, None, None, None))
    stream = client(transport).stream(kinds="vm")
    assert [next(stream), next(stream)] == [("vm", {"name": "web"})] * 2
    with pytest.raises(Unreachable):
        next(stream)
    assert [headers.get("Last-Event-ID") for _, _, headers, _ in transport.sent][:3] == [None, "7", "8"]
    assert transport.paused_s == [1, 1, 2, 3]


def test_events_are_parsed_however_the_stream_is_split() -> None:
    text = b'event: vm\nid: 7\ndata: {"a": 1}\n\nevent: interrupted\ndata: {}\n\nid: 9\ndata: {"b": 2}\n\n'
    for size in (1, 3, len(text)):
        parser = EventParser(None)
        pieces = [text[at : at + size] for at in range(0, len(text), size)]
        assert [change for piece in pieces for change in parser.feed(piece)] == [("vm", {"a": 1}), ("", {"b": 2})]
        assert parser.last_id == 9


async def test_the_asynchronous_client_reports_an_unreachable_server() -> None:
    async with AsyncClient(Config("https://127.0.0.1:1", "token", "")) as asynchronous:
        with pytest.raises(Unreachable, match=r"no answer from https://127\.0\.0\.1:1"):
            await asynchronous.me()

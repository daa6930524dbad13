"""When the SDK retries a request, and what it sends then."""

from __future__ import annotations

import http.server
import ssl
import threading
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


@pytest.mark.parametrize("ends_with", [ConnectionResetError(), ssl.SSLEOFError(), ssl.SSLZeroReturnError()])
def test_a_kept_connection_that_the_server_has_closed_is_replaced(
    monkeypatch: pytest.MonkeyPatch, ends_with: Exception
) -> None:
    transport, asked = Transport(CONFIG), list[object]()

    def answer(_: Transport, connection: object, *request: object) -> HttpReply:
        asked.append(connection)
        if connection == "kept":
            raise ends_with
        return DONE

    monkeypatch.setattr(Transport, "_answer", answer)
    monkeypatch.setattr(Transport, "_connect", lambda self: "new")
    monkeypatch.setattr(transport, "_idle", ["kept"])
    assert transport.send("PATCH", "/api/v1/vms/web", {}, b"{}") == DONE
    assert asked == ["kept", "new"]


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


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers with what its path says."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = b'{"from": %d}' % self.client_address[1]
        self.send_response(200)
        if self.path == "/stream":
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for piece in (b"first", b"second"):
                self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                self.wfile.flush()
            self.wfile.write(b"0\r\n\r\n")
            return
        cut = self.path == "/cut"
        self.send_header("Content-Length", str(len(body) + cut))
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = cut or self.path == "/last"

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def served() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_connection_is_kept_and_replaced_once_the_server_has_closed_it(served: str) -> None:
    transport = Transport(Config(served, "", ""))
    ports = [transport.send("GET", path, {}).body for path in ("/", "/", "/last", "/", "/")]
    transport.close()
    assert len(set(ports[:3])) == 1 and len(set(ports[3:])) == 1 and ports[0] != ports[4]


def test_the_path_of_an_api_comes_before_all_others(served: str) -> None:
    transport = Transport(Config(f"{served}/cut/", "", ""))
    assert transport.send("GET", "/x", {}).status == 200
    transport.close()


def test_an_answer_that_is_cut_off_is_no_answer(served: str) -> None:
    with pytest.raises(Unreachable, match="no answer from"):
        Transport(Config(served, "", "")).send("GET", "/cut", {})


def test_a_stream_comes_in_pieces(served: str) -> None:
    assert list(Transport(Config(served, "", "")).stream("/stream", {})) == [b"first", b"second"]


@pytest.mark.parametrize(
    "url", ["http://", "server:7443", "ftp://server", "https://[", "https://a:b", "https://a:99999", "x"]
)
def test_what_is_no_url_is_said_with_how_to_write_one(url: str) -> None:
    with pytest.raises(Unreachable, match=r"write it like https://"):
        Client(Config(url, "token", "")).me()


def test_a_token_that_no_header_can_hold_is_said() -> None:
    with pytest.raises(Unreachable):
        Client(Config("http://127.0.0.1:9", "a\nb", "")).me()

"""A login with a password: its cookies, second factor and end, with answers that a server gives."""

from __future__ import annotations

import json

import pytest

from novacron.client import ApiError, session
from novacron.client.protocol import HttpReply
from novacron.client.session import Session

OPENED = HttpReply(200, b'{"csrf": "c", "must_enrol": false}', cookies=("sid=1; Path=/; HttpOnly", "seen=2; Secure"))


class Answers:
    """Stands for the server."""

    def __init__(self, *replies: HttpReply) -> None:
        self.replies = list(replies)
        self.asked: list[tuple[str, dict[str, str], object]] = []
        self.closed = False

    def send(self, method: str, path: str, headers: dict[str, str], body: bytes | None = None) -> HttpReply:
        self.asked.append((path, headers, None if body is None else json.loads(body)))
        return self.replies.pop(0)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Answers:
    answers = Answers()
    monkeypatch.setattr(session, "Transport", lambda config: answers)
    return answers


def test_a_login_makes_a_token_and_ends(server: Answers) -> None:
    server.replies = [OPENED, HttpReply(201, b'{"secret": "nvc_x"}'), HttpReply(204, b"")]
    with Session("https://s", "") as opened:
        assert opened.log_in("ann", "p") is None
        assert opened.create_token("here", 60) == "nvc_x"
    (_, first, sent), (path, headers, token), (end, _, nothing) = server.asked
    assert "Cookie" not in first and sent == {"user": "ann", "password": "p"}
    assert path == "/api/v1/tokens" and token == {"name": "here", "expires_in_s": 60}
    assert headers["Cookie"] == "sid=1; seen=2" and headers["X-CSRF-Token"] == "c"
    assert end == "/api/v1/logout" and nothing is None and server.closed


def test_a_second_factor_completes_a_login(server: Answers) -> None:
    half = HttpReply(202, b'{"step": "s", "factors": ["totp"]}')
    server.replies = [half, OPENED, HttpReply(204, b"")]
    with Session("https://s", "") as opened:
        step = opened.log_in("ann", "p")
        assert step is not None
        opened.complete(step["step"], {"code": "123456"})
    assert server.asked[1][2] == {"step": "s", "code": "123456"}


def test_a_login_that_was_refused_has_nothing_to_end(server: Answers) -> None:
    server.replies = [HttpReply(401, b'{"status": 401, "detail": "wrong"}')]
    with pytest.raises(ApiError), Session("https://s", "") as opened:
        opened.log_in("ann", "p")
    assert len(server.asked) == 1 and server.closed


def test_a_user_who_has_to_add_a_second_factor_gets_no_token_and_is_logged_out(server: Answers) -> None:
    server.replies = [HttpReply(200, b'{"csrf": "c", "must_enrol": true}'), HttpReply(204, b"")]
    with pytest.raises(ApiError, match="second factor"), Session("https://s", "") as opened:
        opened.log_in("ann", "p")
    assert [path for path, *_ in server.asked] == ["/api/v1/login", "/api/v1/logout"]

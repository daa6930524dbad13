"""The audit of dependencies: it never passes without an answer from its database."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from typing import Any

import pytest
import urllib3

from lab import audit, sbom

ONCE = urllib3.Retry(total=0)
PURLS = ["pkg:npm/left-pad@1.3.0", "pkg:pypi/httpx@0.28.1"]
Answer = Callable[[list[Any]], Any]
"""Takes the questions and returns the results, or bytes to answer instead."""


def knows(*vulnerable: str) -> Answer:
    def answer(questions: list[Any]) -> list[Any]:
        return [
            {"vulns": [{"id": "GHSA-1"}]} if question["package"]["purl"] in {*audit.KNOWN, *vulnerable} else {}
            for question in questions
        ]

    return answer


@contextmanager
def database(answer: Answer, status: int = 200) -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            results = answer(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["queries"])
            body = results if isinstance(results, bytes) else json.dumps({"results": results}).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_the_audit_names_what_is_vulnerable() -> None:
    with database(knows(PURLS[0])) as url:
        assert audit.audit(PURLS, url, ONCE) == {PURLS[0]: ["GHSA-1"]}
    with database(knows()) as url:
        assert audit.audit(PURLS, url, ONCE) == {}


def test_answers_in_several_pages_are_read_to_their_end() -> None:
    def answer(questions: list[Any]) -> list[Any]:
        return [
            {"vulns": [{"id": "GHSA-2"}]} if "page_token" in question
            else {"vulns": [{"id": "GHSA-1"}], "next_page_token": "2"}
            for question in questions
        ]  # fmt: skip

    with database(answer) as url:
        assert audit.audit(PURLS, url, ONCE) == {purl: ["GHSA-1", "GHSA-2"] for purl in PURLS}
    with (
        database(lambda questions: [{"next_page_token": "1"}] * len(questions)) as url,
        pytest.raises(audit.NotAuditedError, match="pages"),
    ):
        audit.audit(PURLS, url, ONCE)


def nothing(questions: list[Any]) -> list[Any]:
    return [{}] * len(questions)


@pytest.mark.parametrize(
    ("answer", "status", "why"),
    [
        (nothing, 200, "its answers prove nothing"),
        (lambda questions: nothing(questions)[1:], 200, "answered 3 of 4 questions"),
        (lambda _: b"<html>proxy</html>", 200, "something else"),
        (lambda _: b"[]", 200, "something else"),
        (lambda _: [None] * 4, 200, "something else"),
        (nothing, 403, "403"),
        (nothing, 503, "503"),
    ],
)
def test_the_audit_fails_without_a_proper_answer(answer: Answer, status: int, why: str) -> None:
    with database(answer, status) as url, pytest.raises(audit.NotAuditedError, match=why):
        audit.audit(PURLS, url, ONCE)


def test_the_audit_fails_when_nobody_answers() -> None:
    with database(nothing) as url:
        pass
    with pytest.raises(audit.NotAuditedError, match="can't reach"):
        audit.audit(PURLS, url, ONCE)


def test_the_audit_fails_when_there_is_nothing_to_ask() -> None:
    with pytest.raises(audit.NotAuditedError, match="no package"):
        audit.audit([])


def test_the_command_says_that_it_could_not_audit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sbom, "document", lambda **_: json.dumps({"components": [{"purl": purl} for purl in PURLS]}))
    with database(nothing) as url:
        monkeypatch.setattr("sys.argv", ["audit", "--database", url])
        with pytest.raises(SystemExit) as ended:
            audit.main()
    assert ended.value.code == audit.NOT_AUDITED
    assert "not audited" in capsys.readouterr().err


def test_a_vulnerability_is_accepted_for_one_package_and_a_while() -> None:
    found = {"pkg:pypi/httpx@0.28.1": ["GHSA-1", "GHSA-2"], "pkg:npm/left-pad@1.3.0": ["GHSA-1"]}
    entry = audit.Accepted("GHSA-1", "httpx", "not called", date(2027, 1, 31))
    assert audit.remaining(found, [entry], date(2027, 1, 31)) == [
        "pkg:npm/left-pad@1.3.0: GHSA-1", "pkg:pypi/httpx@0.28.1: GHSA-2",
    ]  # fmt: skip
    assert "pkg:pypi/httpx@0.28.1: GHSA-1 (was accepted until 2027-01-31)" in audit.remaining(
        found, [entry], date(2027, 2, 1)
    )
    assert all(entry.reason for entry in audit.accepted())

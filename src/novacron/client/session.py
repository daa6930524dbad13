"""A login with a password and a second factor, for as long as it takes to make an API token."""

from __future__ import annotations

import json
from types import TracebackType
from typing import Any, Self

from novacron.client import protocol
from novacron.client.config import Config
from novacron.client.errors import ApiError
from novacron.client.protocol import Object
from novacron.client.sync.transport import Transport


class Session:
    """What a browser has after a login. Logs out at the end of a ``with`` block. Raises ApiError, Unreachable."""

    def __init__(self, url: str, ca: str) -> None:
        self._url = url
        self._transport = Transport(Config(url, "", ca))
        self._cookies: dict[str, str] = {}
        self._csrf = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._csrf:
                self._send("/logout")
        finally:
            self._transport.close()

    def log_in(self, user: str, password: str) -> Object | None:
        """Return the step that a second factor has to complete; None: the login is complete."""
        return self._opened(self._send("/login", {"user": user, "password": password}))

    def complete(self, step: str, proof: dict[str, str]) -> None:
        """Complete a login with ``{"code": ...}`` or ``{"recovery_code": ...}``."""
        self._opened(self._send("/login/second-factor", {"step": step, **proof}))

    def create_token(self, name: str, expires_in_s: int | None) -> str:
        """Return the secret of a new token."""
        body: Object = {"name": name}
        if expires_in_s is not None:
            body["expires_in_s"] = expires_in_s
        return str(self._send("/tokens", body)["secret"])

    def _opened(self, answer: Object) -> Object | None:
        if "step" in answer:
            return answer
        self._csrf = str(answer["csrf"])
        if answer.get("must_enrol"):
            raise ApiError(
                {
                    "status": 403, "detail": "logins of this user need a second factor, and the user has none",
                    "hint": "add one with the API, or let an administrator make a token: novacron token create",
                }
            )  # fmt: skip
        return None

    def _send(self, path: str, body: Object | None = None) -> Any:  # noqa: ANN401 - JSON
        headers = {"Content-Type": "application/json"}
        if self._cookies:
            headers["Cookie"] = "; ".join(f"{name}={value}" for name, value in self._cookies.items())
        if self._csrf:
            headers["X-CSRF-Token"] = self._csrf
        content = None if body is None else json.dumps(body).encode()
        answer = self._transport.send("POST", f"/api/v1{path}", headers, content)
        for cookie in answer.cookies:
            name, _, value = cookie.partition(";")[0].partition("=")
            self._cookies[name.strip()] = value.strip()
        return protocol.decode(answer, self._url)

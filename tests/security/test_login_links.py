"""Links that log a user in to the web UI, as whoever finds, repeats or steals one tries them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any

import asyncpg
import pyotp
import pytest

from lab.replicas import Served
from novacron.api.access.authentication import COOKIE
from novacron.model.token import hash_secret
from tests.integration.conftest import Answer, Api
from tests.waiting import until

PASSWORD = "correct horse battery staple"
_numbers = itertools.count(1)


class Person:
    """A user, and an API token of theirs that lives for an hour."""

    def __init__(self, api: Api, **fields: Any) -> None:
        self.api, self.name = api, f"ll-{next(_numbers)}"
        self.id = api("POST", "/api/v1/users", {"name": self.name, **fields}).body["id"]
        self.token, self.token_id = self.new_token(expires_in_s=3600)

    def new_token(self, **fields: Any) -> tuple[str, str]:
        made = self.api("POST", "/api/v1/tokens", {"name": "t", "user": self.name, **fields})
        assert made.status == 201, made.body
        return made.body["secret"], made.body["id"]

    def link(self) -> str:
        made = self.api("POST", "/api/v1/login-links", token=self.token)
        assert made.status == 201, made.body
        path, secret = made.body["path"].split("#login=")
        assert path == "/ui/" and made.headers["cache-control"] == "no-store"
        return str(secret)

    def use(self, secret: str) -> Answer:
        return self.api("POST", "/api/v1/login/link", {"secret": secret}, token=None)

    def disable(self) -> None:
        assert self.api("PATCH", f"/api/v1/users/{self.id}", {"disabled": True}).status == 200

    def revoke(self) -> None:
        assert self.api("DELETE", f"/api/v1/tokens/{self.token_id}").status == 204

    def delete(self) -> None:
        assert self.api("DELETE", f"/api/v1/users/{self.id}").status == 200


@pytest.fixture
def person(api: Api, served: Served) -> Iterator[Person]:
    one = Person(api, password=PASSWORD)
    yield one
    if any(user["id"] == one.id for user in served.client.list("users")):
        one.delete()


def test_a_link_opens_one_session_which_ends_with_its_token(api: Api, person: Person) -> None:
    secret = person.link()
    done = person.use(secret)
    assert done.status == 201 and done.body["user"] == person.name
    cookie = next(part for part in done.headers.getlist("set-cookie") if part.startswith(COOKIE)).partition(";")[0]
    assert api("GET", "/api/v1/me", token=None, Cookie=cookie).body["user"] == person.name
    token = next(t for t in api("GET", "/api/v1/tokens").body["items"] if t["id"] == person.token_id)
    ends, at_most = (datetime.fromisoformat(at) for at in (done.body["expires_at"], token["expires_at"]))
    assert ends <= at_most + timedelta(seconds=1)
    again = person.use(secret)
    assert again.status == 401 and "the link was used or has ended" in again.problem["detail"]


def test_only_the_newest_link_of_a_token_works(person: Person) -> None:
    first, second = person.link(), person.link()
    assert person.use(first).status == 401
    assert person.use(second).status == 201


@pytest.mark.parametrize("lose", [Person.disable, Person.revoke, Person.delete])
def test_a_link_ends_with_its_users_right(person: Person, lose: Callable[[Person], None]) -> None:
    secret = person.link()
    lose(person)
    assert person.use(secret).status == 401


async def test_a_link_ends_after_a_while(served: Served, person: Person) -> None:
    secret = person.link()
    connection = await asyncpg.connect(served.postgres.url)
    try:
        changed = await connection.execute(
            "UPDATE login_links SET expires_at = now() - interval '1 s' WHERE hash = $1", hash_secret(secret)
        )
        assert changed == "UPDATE 1", "a hash is stored, never the secret"
    finally:
        await connection.close()
    assert person.use(secret).status == 401


def test_a_restricted_token_makes_no_link(api: Api, person: Person) -> None:
    for fields in ({"scopes": ["read"]}, {"project": "default"}):
        api("POST", "/api/v1/grants", {"user": person.name, "role": "viewer", "project": "default"})
        token, _ = person.new_token(**fields)
        until(lambda token=token: api("GET", "/api/v1/me", token=token).status == 200, "the token is known")  # type: ignore[misc]
        refused = api("POST", "/api/v1/login-links", token=token)
        assert refused.status == 403 and "a restricted token cannot create a login link" in refused.problem["detail"]


def test_a_service_makes_no_link(api: Api) -> None:
    service = Person(api, kind="service")
    try:
        refused = api("POST", "/api/v1/login-links", token=service.token)
        assert refused.status == 409 and "is a service" in refused.problem["detail"]
    finally:
        service.delete()


def test_a_link_is_no_second_factor(api: Api, person: Person) -> None:
    begun = api("POST", "/api/v1/me/second-factors", {"kind": "totp", "name": "phone", "password": PASSWORD},
                token=person.token)  # fmt: skip
    app = pyotp.TOTP(begun.body["secret"])
    confirmed = api("POST", f"/api/v1/me/second-factors/{begun.body['id']}/actions/confirm", {"code": app.now()},
                    token=person.token)  # fmt: skip
    assert confirmed.status in (200, 201), confirmed.body
    step = person.use(person.link())
    assert step.status == 202 and step.body["factors"] == ["totp"]
    assert not any(part.startswith(COOKIE) for part in step.headers.getlist("set-cookie"))
    proof = {"step": step.body["step"], "recovery_code": confirmed.body["recovery_codes"][0]}
    assert api("POST", "/api/v1/login/second-factor", proof, token=None).status == 201


def test_a_links_secret_is_in_no_log(served: Served, api: Api, person: Person) -> None:
    secret = person.link()
    assert person.use(secret).status == 201
    until(
        lambda: [r for r in served.client.list("audit", limit=50) if r["action"] == "login_with_link"],
        "the login is in the audit log",
    )
    assert secret not in str(served.client.list("audit", limit=200)) + str(
        list(served.client.list("events", limit=200))
    )

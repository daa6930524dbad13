"""Logins with second factors, as users, administrators and whoever knows a password try them."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import asyncpg
import pyotp
import pytest

from lab.replicas import Served
from novacron.api.access.second_factors import SecondFactorChecks
from novacron.client import Client, Config
from novacron.model.access import Role
from novacron.model.second_factor import FactorKind
from novacron.model.user import UserKind
from novacron.server.second_factors import seal_anew
from novacron.store import second_factors, users
from novacron.store.database import Database
from tests.integration.conftest import Answer, Api
from tests.support.authenticator import Authenticator
from tests.waiting import until

PASSWORD = "correct horse battery staple"

_numbers = itertools.count(1)


class Person(NamedTuple):
    """A user with a password, and a client with an API token of theirs."""

    id: str
    name: str
    client: Client


@pytest.fixture
def person(served: Served) -> Iterator[Person]:
    name = f"sf-{next(_numbers)}"
    user = served.client.create_user(name, password=PASSWORD)
    token = served.client.create_token("t", user=user["id"])["secret"]
    config = served.client.config
    yield Person(user["id"], name, Client(Config(config.url, token, config.ca)))
    served.client.delete("users", user["id"])


def login(api: Api, person: Person, **body: Any) -> Answer:
    return api("POST", "/api/v1/login", {"user": person.name, "password": PASSWORD, **body}, token=None)


def second(api: Api, step: Answer, **proof: Any) -> Answer:
    return api("POST", "/api/v1/login/second-factor", {"step": step.body["step"], **proof}, token=None)


def cookie_of(answer: Answer) -> str:
    for part in answer.headers.getlist("set-cookie"):
        if "-session=" in part:
            return str(part).partition(";")[0]
    raise AssertionError("no session")


def in_a_step() -> float:
    """Return a time that is not about to leave a step of codes."""
    until(lambda: time.time() % 30 < 27, "a step of codes has some time left", 30)
    return time.time()


def with_app(person: Person) -> tuple[pyotp.TOTP, list[str]]:
    """Add an app; its code of the step before is used up by that."""
    begun = person.client.begin_second_factor("totp", "phone", PASSWORD)
    app, now_s = pyotp.TOTP(begun["secret"]), in_a_step()
    done = person.client.confirm_second_factor(begun["id"], code=app.at(int(now_s) - 30))
    return app, done["recovery_codes"]


def test_a_login_asks_for_the_code_of_an_app_and_takes_each_code_once(served: Served, api: Api, person: Person) -> None:
    app, codes = with_app(person)
    assert len(codes) == 10
    step = login(api, person)
    assert step.status == 202 and step.body["factors"] == ["totp"] and step.body["webauthn"] is None
    assert not step.headers.getlist("set-cookie") and "csrf" not in step.body
    assert second(api, step, code="12345").status == 401 and second(api, step).status == 401
    code = app.at(int(in_a_step()))
    done = second(api, step, code=code)
    assert done.status == 201 and done.body["user"] == person.name and not done.body["must_enrol"]
    me = api("GET", "/api/v1/me", token=None, Cookie=cookie_of(done))
    assert me.status == 200 and me.body["user"] == person.name
    assert second(api, step, code=app.at(int(time.time()) + 30)).status == 401, "this login has ended"
    assert second(api, login(api, person), code=code).status == 401, "a code is good once"
    assert second(api, login(api, person), recovery_code=codes[0]).status == 201
    assert second(api, login(api, person), recovery_code=codes[0]).status == 401, "so is a recovery code"
    assert person.client.second_factors()["recovery_codes"] == 9
    assert person.client.me()["user"] == person.name, "API tokens go on"
    until(lambda: {record["action"] for record in served.client.list("audit", object=person.name, outcome="refused")}
          >= {"login_second_factor"}, "wrong second factors are in the audit log, with the name")  # fmt: skip


@pytest.mark.slow
def test_a_login_may_be_tried_only_a_few_times(api: Api, person: Person) -> None:
    app, _ = with_app(person)
    step = login(api, person)
    assert [second(api, step, code="000000").status for _ in range(5)] == [401] * 5
    refused = second(api, step, code=app.at(int(in_a_step())))
    assert refused.status == 401 and "log in again" in refused.problem["hint"]
    step = login(api, person)
    assert [second(api, step, code="000000").status for _ in range(5)] == [401] * 5
    assert login(api, person).status == 429, "wrong codes count as wrong passwords do"
    assert second(api, step._replace(body={"step": "no such step"}), code="1").status == 401


def test_a_security_key_is_added_and_logs_in(served: Served, api: Api, person: Person) -> None:
    key = Authenticator(served.client.config.url)
    begun = person.client.begin_second_factor("webauthn", "key", PASSWORD)
    done = person.client.confirm_second_factor(begun["id"], credential=key.create(begun["options"]))
    assert [factor["kind"] for factor in done["factors"]["items"]] == ["webauthn"] and len(done["recovery_codes"]) == 10
    step, other = login(api, person), login(api, person)
    answer = key.get(step.body["webauthn"])
    assert second(api, other, credential=answer).status == 401, "it answers another login's challenge"
    assert second(api, step, credential=answer).status == 201
    assert second(api, step, credential=answer).status == 401
    again = api("POST", "/api/v1/me/second-factors", {"kind": "webauthn", "name": "key", "password": PASSWORD},
                token=person.client.config.token)  # fmt: skip
    assert again.status == 409 and again.problem["field"] == "name"


def test_changing_second_factors_takes_the_password_and_an_unrestricted_token(
    served: Served, api: Api, person: Person
) -> None:
    own = person.client.config.token
    body = {"kind": "totp", "name": "phone", "password": "wrong"}
    assert api("POST", "/api/v1/me/second-factors", body, token=own).problem["field"] == "password"
    scoped = person.client.create_token("scoped", scopes=["read"])["secret"]
    assert api("POST", "/api/v1/me/second-factors", {**body, "password": PASSWORD}, token=scoped).status == 403
    with_app(person)
    remove = "/api/v1/me/second-factors/phone/actions/remove"
    assert api("POST", remove, {"password": "wrong"}, token=own).status == 401
    assert api("POST", "/api/v1/me/recovery-codes", {"password": "wrong"}, token=own).status == 401
    assert len(person.client.renew_recovery_codes(PASSWORD)["recovery_codes"]) == 10
    person.client.remove_second_factor("phone", PASSWORD)
    assert login(api, person).status == 201
    assert api("GET", f"/api/v1/users/{person.id}/second-factors", token=own).status == 403
    assert api("DELETE", f"/api/v1/users/{person.id}/second-factors", token=own).status == 403


def test_who_must_have_a_second_factor_has_no_rights_before(served: Served, api: Api, person: Person) -> None:
    served.client.grant(person.id, "administrator", None)
    before = login(api, person)
    served.client.require_second_factor(person.name, required=True)
    assert api("GET", "/api/v1/me", token=None, Cookie=cookie_of(before)).status == 401, "sessions of before have ended"
    done = login(api, person)
    assert done.status == 201 and done.body["must_enrol"]
    session = {"Cookie": cookie_of(done), "X_CSRF_Token": done.body["csrf"]}
    assert api("GET", "/api/v1/nodes", token=None, **session).status == 403
    assert api("POST", "/api/v1/tokens", {"name": "way-out"}, token=None, **session).status == 403
    begun = api("POST", "/api/v1/me/second-factors", {"kind": "totp", "name": "phone", "password": PASSWORD},
                token=None, **session)  # fmt: skip
    code = pyotp.TOTP(begun.body["secret"]).at(int(in_a_step()))
    path = f"/api/v1/me/second-factors/{begun.body['id']}/actions/confirm"
    assert api("POST", path, {"code": "12345"}, token=None, **session).status == 401
    confirmed = api("POST", path, {"code": code}, token=None, **session)
    assert confirmed.status == 200 and len(confirmed.body["recovery_codes"]) == 10
    assert api("GET", "/api/v1/nodes", token=None, **session).status == 200
    kept = api("POST", "/api/v1/me/second-factors/phone/actions/remove", {"password": PASSWORD}, token=None, **session)
    assert kept.status == 409 and "add another one first" in kept.problem["hint"]


def test_an_administrator_resets_second_factors(served: Served, api: Api, person: Person) -> None:
    _, codes = with_app(person)
    session = cookie_of(second(api, login(api, person), recovery_code=codes[0]))
    served.client.reset_second_factors(person.name)
    assert api("GET", "/api/v1/me", token=None, Cookie=session).status == 401
    assert login(api, person).status == 201
    assert served.client.second_factors(person.name)["items"] == []
    reasons = {event["reason"] for event in served.client.list("events", object=person.id)}
    assert reasons >= {"SecondFactorAdded", "SecondFactorsReset", "RecoveryCodesMade"}


@pytest.mark.slow
def test_codes_of_apps_are_refused_after_many_wrong_ones_in_a_row(served: Served, api: Api, person: Person) -> None:
    app, codes = with_app(person)

    async def many() -> None:
        connection = await asyncpg.connect(served.postgres.url)
        await connection.execute('INSERT INTO second_factor_failures ("user", count) VALUES ($1, 100)', person.id)
        await connection.close()

    asyncio.run(many())
    refused = second(api, login(api, person), code=app.at(int(in_a_step())))
    assert refused.status == 401 and "recovery code" in refused.problem["hint"]
    assert person.client.second_factors()["locked"]
    assert second(api, login(api, person), recovery_code=codes[3]).status == 201
    assert not person.client.second_factors()["locked"]
    assert second(api, login(api, person), code=app.at(int(in_a_step()))).status == 201


async def test_roles_require_a_second_factor_of_whoever_has_them(database: Database) -> None:
    async with database.transaction() as connection:
        ann = await users.create(connection, "ann", UserKind.PERSON, None, "t")
        bob = await users.create(connection, "bob", UserKind.PERSON, None, "t")
        await users.grant(connection, ann.id, None, Role.ADMINISTRATOR, "t")
        await users.grant(connection, bob.id, "default", Role.OPERATOR, "t")
        required = second_factors.is_required
        assert not await required(connection, ann.id, frozenset())
        assert await required(connection, ann.id, frozenset({Role.ADMINISTRATOR}))
        assert not await required(connection, bob.id, frozenset({Role.ADMINISTRATOR}))
        assert await required(connection, bob.id, frozenset({Role.OPERATOR})), "in a project, too"
        await users.require_second_factor(connection, bob.id, True, "t")
        assert await required(connection, bob.id, frozenset())


async def test_apps_are_sealed_anew_while_the_key_is_rotated(database: Database) -> None:
    old, new = bytes(32), bytes([1]) * 32
    before = SecondFactorChecks(lambda: [old], "https://cloud.example.net")
    sealed, secret, _ = before.new_app("factor-1", "ann")
    async with database.transaction() as connection:
        ann = await users.create(connection, "ann", UserKind.PERSON, None, "t")
        begun = second_factors.NewFactor("factor-1", FactorKind.TOTP, "phone", sealed)
        await second_factors.begin(connection, ann, begun)
    rotating = SecondFactorChecks(lambda: [new, old], "https://cloud.example.net")
    assert await seal_anew(rotating, database) == 1 and await seal_anew(rotating, database) == 0
    async with database.connection() as connection:
        stored = await second_factors.get(connection, ann.id, "phone")
    after = SecondFactorChecks(lambda: [new], "https://cloud.example.net")
    assert after.step_of(stored, pyotp.TOTP(secret).now()) is not None

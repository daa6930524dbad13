"""Second factors: codes of apps, security keys and recovery codes, right and wrong."""

from __future__ import annotations

import asyncio
import dataclasses
import re
from collections.abc import Callable
from typing import Any

import msgspec
import pyotp
import pytest

from novacron.api.access.passwords import Passwords
from novacron.api.access.second_factors import SecondFactorChecks, new_challenge
from novacron.api.access.shared_counters import Shared
from novacron.model import second_factor as model
from novacron.model.errors import InvalidInput, TooManyRequests, Unavailable
from novacron.model.second_factor import FactorKind
from novacron.store.second_factors import StoredFactor
from tests.support.authenticator import Authenticator

ORIGIN = "https://cloud.example.net:7443"
NOW_S = 1_795_766_400.0
KEY, NEW_KEY = bytes(32), bytes([1]) * 32


@dataclasses.dataclass
class Clock:
    now_s: float = NOW_S

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def checks(clock: Clock) -> SecondFactorChecks:
    return SecondFactorChecks(lambda: [KEY], ORIGIN, clock=clock)


def factor(secret: bytes, kind: FactorKind = FactorKind.TOTP, **fields: Any) -> StoredFactor:
    known = {"id": "factor-1", "user": "user-1", "name": "phone", "credential": None, "counter": 0, "confirmed": True}
    return StoredFactor(**{**known, "kind": kind, "secret": secret, **fields})


def test_a_code_of_an_app_is_right_while_it_is_shown_and_a_step_before_and_after(
    checks: SecondFactorChecks, clock: Clock
) -> None:
    sealed, secret, uri = checks.new_app("factor-1", "ann@example.org")
    assert uri.startswith("otpauth://totp/NovaCron%20cloud.example.net:ann%40example.org?secret=" + secret)
    app, step = pyotp.TOTP(secret), int(NOW_S // 30)
    code, right = app.at(int(NOW_S)), {}
    for after_s in (-31, -30, 0, 29, 30, 59, 60, 90):
        clock.now_s = NOW_S + after_s
        right[after_s] = checks.step_of(factor(sealed), code)
    assert right == {-31: None, -30: step, 0: step, 29: step, 30: step, 59: step, 60: None, 90: None}
    clock.now_s = NOW_S
    assert checks.step_of(factor(sealed), f"{code[:3]} {code[3:]}") == step, "as people write it"
    for wrong in ("", "000000" if code != "000000" else "000001", code[:5], code + "0", "ä" * 6, "\ud800"):
        assert checks.step_of(factor(sealed), wrong) is None


def test_the_secret_of_an_app_is_sealed_for_one_factor(checks: SecondFactorChecks) -> None:
    sealed, secret, _ = checks.new_app("factor-1", "ann")
    assert secret.encode() not in sealed
    checks.step_of(factor(sealed), "123456")  # its own opens it, whatever the code
    with pytest.raises(Unavailable, match="can't be opened"):
        checks.step_of(factor(sealed, id="factor-2"), "123456")
    with pytest.raises(Unavailable):
        SecondFactorChecks(lambda: [NEW_KEY], ORIGIN).step_of(factor(sealed), "123456")


def test_the_secret_of_an_app_outlives_the_key_that_sealed_it(checks: SecondFactorChecks, clock: Clock) -> None:
    sealed, secret, _ = checks.new_app("factor-1", "ann")
    assert not checks.rotating and checks.sealed_anew(factor(sealed)) is None
    rotating = SecondFactorChecks(lambda: [NEW_KEY, KEY], ORIGIN, clock=clock)
    code = pyotp.TOTP(secret).at(int(NOW_S))
    assert rotating.rotating and rotating.step_of(factor(sealed), code) is not None
    anew = rotating.sealed_anew(factor(sealed))
    assert anew is not None and rotating.sealed_anew(factor(anew)) is None
    retired = SecondFactorChecks(lambda: [NEW_KEY], ORIGIN, clock=clock)
    assert retired.step_of(factor(anew), code) is not None


def registered(checks: SecondFactorChecks, authenticator: Authenticator) -> StoredFactor:
    challenge = new_challenge()
    key = checks.register(challenge, authenticator.create(checks.registration(challenge, "user-1", "ann", [])))
    return factor(key.public_key, FactorKind.WEBAUTHN, credential=key.credential, counter=key.counter)


def test_a_security_key_is_registered_and_answers_the_challenge_of_a_login(checks: SecondFactorChecks) -> None:
    authenticator = Authenticator(ORIGIN)
    key = registered(checks, authenticator)
    challenge = new_challenge()
    options = checks.login(challenge, [key])
    assert options is not None and options["rpId"] == "cloud.example.net"
    assert checks.counter_of(key, challenge, authenticator.get(options)) == 2
    assert checks.login(challenge, [factor(b"")]) is None, "there is no security key"


def _another_origin(answer: dict[str, Any], authenticator: Authenticator, options: dict[str, Any]) -> dict[str, Any]:
    authenticator.origin = "https://cloud.example.org"
    return authenticator.get(options)


def _another_key(answer: dict[str, Any], authenticator: Authenticator, options: dict[str, Any]) -> dict[str, Any]:
    return Authenticator(ORIGIN).get(options)


def _another_challenge(answer: dict[str, Any], authenticator: Authenticator, options: dict[str, Any]) -> dict[str, Any]:
    return authenticator.get({**options, "challenge": "AAAA"})


def _counter_back(answer: dict[str, Any], authenticator: Authenticator, options: dict[str, Any]) -> dict[str, Any]:
    authenticator.counter = 0
    return authenticator.get(options)


def _garbage(answer: dict[str, Any], authenticator: Authenticator, options: dict[str, Any]) -> dict[str, Any]:
    return {"id": "x", "rawId": 7, "response": {"clientDataJSON": "ä"}}


@pytest.mark.parametrize("attack", [_another_origin, _another_key, _another_challenge, _counter_back, _garbage])
def test_an_answer_that_is_not_this_keys_to_this_challenge_is_wrong(
    checks: SecondFactorChecks, attack: Callable[..., dict[str, Any]]
) -> None:
    authenticator, challenge = Authenticator(ORIGIN), new_challenge()
    key = registered(checks, authenticator)
    options = checks.login(challenge, [key])
    assert options is not None
    assert checks.counter_of(key, challenge, attack({}, authenticator, options)) is None


def test_what_is_no_registration_is_refused(checks: SecondFactorChecks) -> None:
    challenge = new_challenge()
    answer = Authenticator("https://elsewhere.example").create(checks.registration(challenge, "user-1", "ann", []))
    for wrong in (answer, {}, {"id": 1}, {**answer, "response": {}}):
        with pytest.raises(InvalidInput) as refused:
            checks.register(challenge, wrong)
        assert refused.value.field == "credential"


def test_recovery_codes_are_long_and_known_however_they_are_written() -> None:
    codes = {model.new_recovery_code() for _ in range(100)}
    assert len(codes) == 100 and all(re.fullmatch(r"(?:[0-9a-f]{5}-){3}[0-9a-f]{5}", code) for code in codes)
    code = codes.pop()
    assert model.recovery_hash(code) == model.recovery_hash(f" {code.replace('-', '').upper()} ")
    assert model.recovery_hash(code) != model.recovery_hash(codes.pop())


async def test_wrong_codes_are_counted_for_a_user_from_wherever() -> None:
    """Other than with passwords: whoever is there knows the password, and a code has only six digits."""
    passwords = Passwords(Shared(None))

    async def wrong() -> bool:
        return False

    async def guess(address: str, device: str | None = None) -> str:
        try:
            await passwords.counted(passwords.limits_of_factor("ann", address, device), wrong)
        except TooManyRequests:
            return "refused"
        return "wrong"

    answers = await asyncio.gather(*(guess(f"192.0.2.{n}") for n in range(30)))
    assert answers.count("wrong") == 10
    assert await guess("192.0.2.99", "a browser in which ann has logged in") == "wrong"


def test_a_stored_factor_is_read_as_it_was_written() -> None:
    stored = factor(b"x", FactorKind.WEBAUTHN, credential=b"y")
    assert msgspec.convert(msgspec.structs.asdict(stored), StoredFactor) == stored

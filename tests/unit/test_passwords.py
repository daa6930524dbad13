"""Passwords that are easy to guess are refused; guesses are counted, and nobody locks a user out by guessing."""

from __future__ import annotations

import asyncio
import threading

import pytest
from argon2.exceptions import VerifyMismatchError

from novacron.api.access import passwords
from novacron.api.access.passwords import KnownBrowsers, Passwords, check_strength
from novacron.api.access.shared_counters import Shared
from novacron.model.errors import InvalidInput, TooManyRequests


class Checked:
    """Stands in for the hash, which is slow on purpose: the right password is its own hash."""

    def __init__(self) -> None:
        self.count = 0
        self._lock = threading.Lock()

    def __call__(self, hash: str, password: str) -> bool:
        with self._lock:
            self.count += 1
        return hash == password


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> Checked:
    checked = Checked()
    monkeypatch.setattr(passwords, "_matches", checked)
    return checked


async def guess(on: Passwords, name: str, address: str, password: str = "", device: str | None = None) -> str:
    try:
        return "right" if await on.verify(name, address, "secret", password, device) else "wrong"
    except TooManyRequests:
        return "refused"


async def test_many_guesses_at_once_are_no_more_than_many_in_turn(checked: Checked) -> None:
    on = Passwords(Shared(None))
    answers = await asyncio.gather(*(guess(on, "ann", "192.0.2.1") for _ in range(30)))
    assert answers.count("wrong") == checked.count == 10
    assert await guess(on, "ann", "192.0.2.1", "secret") == "refused", "whoever guesses learns nothing now"


async def test_guesses_from_elsewhere_lock_nobody_out(checked: Checked) -> None:
    """Neither a user at another address, nor one at the same proxy who has logged in there before."""
    on = Passwords(Shared(None))
    for _ in range(20):
        await guess(on, "ann", "192.0.2.1")
    assert await guess(on, "ann", "192.0.2.2", "secret") == "right"
    assert await guess(on, "ann", "192.0.2.1", "secret", "device") == "right"
    assert await guess(on, "bob", "192.0.2.1", "secret") == "right", "another user at that address"
    for number in range(200):
        await guess(on, "ann", f"198.51.100.{number}")
    assert await guess(on, "ann", "192.0.2.2", "secret") == "refused", "guesses from many addresses are slowed down"
    assert await guess(on, "ann", "192.0.2.2", "secret", "device") == "right"
    assert [await guess(on, "ann", "192.0.2.2", device="device") for _ in range(11)].count("wrong") == 10


async def test_right_passwords_do_not_count(checked: Checked) -> None:
    on = Passwords(Shared(None))
    assert {await guess(on, "ann", "192.0.2.1", "secret") for _ in range(150)} == {"right"}


def test_a_browser_is_known_to_one_user_only() -> None:
    devices = KnownBrowsers(lambda: [b"key"])
    mark = devices.mark("user-a")
    assert devices.browser_of("user-a", mark) == mark.partition(".")[0]
    assert (
        devices.browser_of("user-b", mark) is None
        and KnownBrowsers(lambda: [b"other"]).browser_of("user-a", mark) is None
    )
    for forged in ("", ".", mark[:-1], "x" + mark, "\ud800.\xe9", mark.partition(".")[0]):
        assert devices.browser_of("user-a", forged) is None


@pytest.mark.parametrize(
    "password",
    ["aaaaaaaaaa", "password12345", "qwertyuiop", "0123456789", "abcabcabcabc", "administrator1", "ann.example-ann",
     "x" * 1024, "P@ssw0rd2024"],
)  # fmt: skip
def test_passwords_that_are_easy_to_guess_are_refused(password: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        check_strength(password, ["ann.example"])
    assert caught.value.field == "password"


@pytest.mark.parametrize(
    "password", ["a long enough password", "correct horse battery", "kT9#vQ2xLp7w", "日本語のパスワードです"]
)
def test_passwords_that_are_hard_to_guess_are_taken(password: str) -> None:
    check_strength(password, ["ann"])


def test_a_login_of_nobody_costs_as_much_as_that_of_a_user() -> None:
    """Else the time that a refusal takes would tell which users there are."""
    assert not passwords._hasher.check_needs_rehash(passwords._NOBODYS), "the same cost as new passwords"
    assert not passwords._matches(passwords._NOBODYS, "")
    with pytest.raises(VerifyMismatchError):  # not InvalidHashError, which would be raised at once
        passwords._hasher.verify(passwords._NOBODYS, "any password")

"""The CLI's console goes on when its server goes away and comes back."""

from __future__ import annotations

from typing import cast

import pytest

from novacron.cli import console as consoles
from novacron.cli.console import Line
from novacron.client.console import GONE, Console, ConsoleEnded
from novacron.client.errors import Unreachable


class Fake:
    """A console that ends after a message, for a reason."""

    def __init__(self, says: list[bytes], reason: str) -> None:
        self._says, self._reason = says, reason
        self.got: list[bytes] = []

    def recv(self) -> bytes:
        if not self._says:
            raise ConsoleEnded(self._reason)
        return self._says.pop(0)

    def send(self, data: bytes) -> None:
        if not self._says:
            raise ConsoleEnded(self._reason)
        self.got.append(data)


def line(*answers: Fake | Unreachable, first: Fake) -> Line:
    """Return a console whose further attempts to open it have these outcomes."""
    following = iter(answers)

    def reopen() -> Console:
        answer = next(following)
        if isinstance(answer, Unreachable):
            raise answer
        return cast(Console, answer)

    return Line(cast(Console, first), reopen)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consoles, "REOPEN_PAUSES_S", (0, 0, 0))


def test_a_console_is_opened_again_when_its_server_has_gone() -> None:
    again = Fake([b"two", b"three"], "the VM's console ended")
    on = line(Unreachable("not yet"), again, first=Fake([b"one"], GONE))
    assert on.recv() == b"one"
    assert on.recv() == b"two", "of the console that was opened again"
    on.send(b"typed")
    assert again.got == [b"typed"] and on.recv() == b"three"
    with pytest.raises(ConsoleEnded, match="the VM's console ended"):  # the guest's end is an end
        on.recv()


def test_what_is_typed_while_the_server_is_away_reaches_the_console_that_is_opened_again() -> None:
    again = Fake([b"more"], GONE)
    on = line(again, first=Fake([], GONE))
    on.send(b"typed")
    assert again.got == [b"typed"]


def test_a_console_whose_server_does_not_come_back_ends() -> None:
    on = line(*(Unreachable("away") for _ in range(3)), first=Fake([], GONE))
    with pytest.raises(ConsoleEnded, match=GONE):
        on.recv()

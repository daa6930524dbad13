"""The messages that carry questions (``wire/questions.py``) and their answers."""

from __future__ import annotations

import msgspec

from novacron.wire.base import Reply, Request


class Ask(Request, frozen=True):
    """A question (``wire/questions.py``), answered once, by ``Answered``."""

    ask: int
    question: msgspec.Raw
    """Decoded apart, so that a question which this agent does not know is answered, too."""

    @property
    def reply_key(self) -> str:
        return str(self.ask)


class Answered(Reply, frozen=True):
    """What came of a question: a value, whose form follows from the question, or what was wrong."""

    ask: int
    value: msgspec.Raw = msgspec.Raw(b"\xc0")
    field: str | None = None

    @property
    def replies_to(self) -> tuple[str, ...]:
        return (str(self.ask),)

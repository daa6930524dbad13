"""The base of all messages of the agent link, and which messages reply to which."""

from __future__ import annotations

from typing import Annotated

import msgspec

REFUSED = 4001
"""Code with which the server closes the connection of an agent that it does not serve, with the reason: the agent tries
again, but not soon."""


Proof = Annotated[str, msgspec.Meta(max_length=64)]
"""What a server gives with an order, and nobody else can make."""


class Message(msgspec.Struct, frozen=True, tag_field="type", tag=str.lower, kw_only=True, omit_defaults=True):
    """Base of all messages."""

    trace: str = ""
    """To which trace belongs what is said (W3C Trace Context: traceparent)."""


class Request(Message, frozen=True):
    """Base of the server's messages that a node replies to."""

    @property
    def reply_key(self) -> str:
        """What tells the reply from others."""
        raise NotImplementedError


class Reply(Message, frozen=True, kw_only=True):
    """Base of a node's messages that reply to a request. ``error`` says why there is no result."""

    error: str = ""

    @property
    def replies_to(self) -> tuple[str, ...]:
        """The keys of the requests that this settles."""
        raise NotImplementedError


def ready_key(exchange: str) -> str:
    return f"{exchange} is ready"


def over_key(exchange: str) -> str:
    return f"{exchange} is over"


def settled_keys(exchange: str, error: str) -> tuple[str, ...]:
    """Return what the end of an exchange settles: a node that failed will not become ready either."""
    return (ready_key(exchange), over_key(exchange)) if error else (over_key(exchange),)

"""No message of the agent link carries a number that is infinite or none."""

from __future__ import annotations

import math
from collections.abc import Iterator

import msgspec
import pytest
from msgspec import inspect

from novacron.model.finite import FINITE_MAX
from novacron.model.migration import Progress
from novacron.wire import codec, questions
from novacron.wire import messages as wire


def floats(found: inspect.Type, where: str, seen: set[type]) -> Iterator[tuple[str, inspect.FloatType]]:
    """Yield every float in a type, with the field that has it."""
    match found:
        case inspect.FloatType():
            yield where, found
        case inspect.StructType(cls=cls, fields=fields) if cls not in seen:
            seen.add(cls)
            for field in fields:
                yield from floats(field.type, f"{cls.__name__}.{field.name}", seen)
        case inspect.DictType(key_type=key, value_type=value):
            yield from floats(key, where, seen)
            yield from floats(value, where, seen)
        case inspect.UnionType(types=types) | inspect.TupleType(item_types=types):
            for member in types:
                yield from floats(member, where, seen)
        case inspect.CollectionType(item_type=item):
            yield from floats(item, where, seen)


SAID: list[tuple[str, object]] = [("agent", wire.FromAgent), ("server", wire.FromServer)]
SAID += [(question.__name__, questions.answer_type(question)) for question in questions.ALL]


@pytest.mark.parametrize(("who", "said"), SAID)
def test_every_float_of_every_message_has_bounds(who: str, said: object) -> None:
    found = list(floats(inspect.type_info(said), who, set()))
    assert found or who not in ("agent", "server")
    unbounded = [where for where, number in found if number.ge is None or number.le is None]
    assert not unbounded, "use Finite, or narrower bounds"


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, 10 * FINITE_MAX])
def test_a_message_with_an_infinite_number_or_none_cant_be_decoded(number: float) -> None:
    for message in (
        wire.Measured((("vm-1", number),)),
        wire.Heartbeat(1, 0, 0.0, (), clock=number),
        wire.Heartbeat(1, 0, number, ()),
        wire.Progressed("mig-1", Progress(elapsed_s=number)),
        wire.Progressed("mig-1", Progress(downtime_ms=number)),
    ):
        with pytest.raises(codec.Undecodable):
            codec.decode_from_agent(codec.encode(message))


def test_other_numbers_pass() -> None:
    message = wire.Progressed("mig-1", Progress(elapsed_s=1.5, downtime_ms=-0.1))
    assert codec.decode_from_agent(codec.encode(message)) == message
    raw = msgspec.msgpack.encode({"type": "heartbeat", "number": 1, "acknowledged": 0, "steady_s": 5, "voters": []})
    assert isinstance(codec.decode_from_agent(raw), wire.Heartbeat)

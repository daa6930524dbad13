"""Messages that can't be understood cost themselves, and of some only the part that can't."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from novacron.model.ownership import Order, OrderKind
from novacron.model.volume import VolumePhase
from novacron.wire import codec
from novacron.wire import messages as wire


def encoded(message: wire.Message) -> dict[str, Any]:
    document: dict[str, Any] = msgspec.msgpack.decode(codec.encode(message))
    return document


@pytest.mark.parametrize(
    ("raw", "kind"),
    [
        (b"\xc1\xff\x00", "garbage"),
        (b"", "garbage"),
        (msgspec.msgpack.encode(["a", "list"]), "garbage"),
        (msgspec.msgpack.encode({"type": "fromthefuture", "vm": "vm-1"}), "fromthefuture"),
        (msgspec.msgpack.encode({"type": "x" * 1000}), "x" * codec.KIND_LENGTH_MAX),
        (msgspec.msgpack.encode({"type": "removed", "vm": 7}), "removed"),
    ],
)
def test_a_decoding_error_names_the_message_kind(raw: bytes, kind: str) -> None:
    with pytest.raises(codec.Undecodable) as raised:
        codec.decode_from_agent(raw)
    assert raised.value.kind == kind
    with pytest.raises(codec.Undecodable) as raised:
        codec.decode_from_server(raw)
    assert raised.value.kind == kind


def test_a_statement_with_an_unknown_enum_value_costs_no_other_vm_its_statement() -> None:
    good = wire.Statement("vm-good", Order(OrderKind.GONE, 3))
    desired = encoded(wire.Desired((good, wire.Statement("vm-new", Order(OrderKind.GONE, 1))), whole=False))
    desired["statements"][1]["order"]["kind"] = "teleport"
    message, left_out = codec.decode_from_server(msgspec.msgpack.encode(desired))
    assert message == wire.Desired((good,), whole=False)
    assert [part.kind for part in left_out] == ["part of desired"]


def test_a_volume_in_an_unknown_phase_hides_no_other_volume() -> None:
    good = wire.VolumeWanted("volume-1", "local", 10, VolumePhase.CREATING)
    volumes = encoded(wire.Volumes((good, wire.VolumeWanted("volume-2", "local", 10, VolumePhase.CREATING))))
    volumes["volumes"][1]["phase"] = "melting"
    message, left_out = codec.decode_from_server(msgspec.msgpack.encode(volumes))
    assert message == wire.Volumes((good,))
    assert len(left_out) == 1


@pytest.mark.parametrize("kind", ["imports", "exports", "backups", "networks"])
def test_a_complete_list_is_decoded_whole_or_not_at_all(kind: str) -> None:
    with pytest.raises(codec.Undecodable):
        codec.decode_from_server(msgspec.msgpack.encode({"type": kind, kind: [{"id": 7}]}))

"""Rounds that come in side by side do not take the same room twice."""

from __future__ import annotations

import os
from pathlib import Path

from novacron.agent.replicas.reservations import Reservations

MIB = 1 << 20


def test_room_that_another_round_has_yet_to_write_is_not_free(tmp_path: Path) -> None:
    free_bytes = 100 * MIB
    rooms = Reservations(lambda _: free_bytes)
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    assert rooms.reserve(first, 60 * MIB, 10 * MIB) is None
    assert rooms.reserve(second, 40 * MIB, 10 * MIB) == 40 * MIB, "of 100 the first takes 60"
    with (first / "0").open("wb") as file:
        file.write(os.urandom(20 * MIB))
        os.fsync(file.fileno())
    free_bytes = 80 * MIB
    assert rooms.reserve(second, 40 * MIB, 10 * MIB) == 40 * MIB, "what it has written is not counted twice"
    assert rooms.reserve(second, 30 * MIB, 10 * MIB) is None
    rooms.release(first)
    rooms.release(first)
    assert rooms.reserve(second, 70 * MIB, 10 * MIB) is None, "a round that begins anew has only what it asks for"
    assert rooms.reserve(first, 1, 10 * MIB) == 10 * MIB

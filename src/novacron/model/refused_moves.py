"""Moves that rebalancing chose and could not begin: each rests before it is chosen again. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec

from novacron.model.rebalance import VmLoad

REST_S_MIN, REST_S_MAX = 600.0, 12 * 3600.0
"""How long a move rests after its first refusal; twice as long after each further one."""
FORGOTTEN_S = 24 * 3600.0
"""A move that was not refused again for so long after its rest begins anew."""
MOVES_MAX = 4096
"""Moves that are remembered; beyond that the one that was refused longest ago is forgotten."""
TARGETS_OF_VM_MAX = 3
"""A VM that was refused at so many nodes rests itself: the cause is likely the VM's."""
NAMED_MAX = 3
WHY_LENGTH_MAX = 160


class RefusedMove(msgspec.Struct, frozen=True):
    """Times are in seconds since 1970."""

    vm_name: str
    why: str
    tries: int
    retry_at_s: float


class PlannedMove(NamedTuple):
    vm: str
    vm_name: str
    target: str


class RefusedMoves:
    """Remembers a limited number of moves that were refused, oldest first."""

    def __init__(self) -> None:
        self._moves: dict[tuple[str, str], RefusedMove] = {}

    def refuse(self, move: PlannedMove, why: str, now_s: float) -> None:
        before = self._moves.pop((move.vm, move.target), None)
        tries = 1 if before is None else before.tries + 1
        rest_s = min(REST_S_MAX, REST_S_MIN * 2.0 ** min(tries - 1, 16))
        self._moves[move.vm, move.target] = RefusedMove(move.vm_name, why, tries, now_s + rest_s)
        while len(self._moves) > MOVES_MAX:
            del self._moves[next(iter(self._moves))]

    def forget(self, vm: str) -> None:
        """Forget what was refused of a VM: it moves."""
        for key in [key for key in self._moves if key[0] == vm]:
            del self._moves[key]

    def without(self, vms: Iterable[VmLoad], now_s: float) -> list[VmLoad]:
        """Return the VMs, each barred from the nodes to which its move rests."""
        barred: dict[str, set[str]] = {}
        for (vm, target), move in list(self._moves.items()):
            if move.retry_at_s > now_s:
                barred.setdefault(vm, set()).add(target)
            elif move.retry_at_s + FORGOTTEN_S <= now_s:
                del self._moves[vm, target]
        return [_barred(load, barred[load.wish.id]) if load.wish.id in barred else load for load in vms]

    def words(self, now_s: float) -> str:
        """Return what rests and why, the latest first; nothing if nothing rests."""
        rests = [(target, move) for (_, target), move in self._moves.items() if move.retry_at_s > now_s]
        if not rests:
            return ""
        return f"; refused: {_named(rests[: -NAMED_MAX - 1 : -1])}{_more(len(rests))}"


def _barred(load: VmLoad, nodes: set[str]) -> VmLoad:
    movable = load.movable and len(nodes) < TARGETS_OF_VM_MAX
    return msgspec.structs.replace(load, movable=movable, barred=frozenset(nodes))


def _named(rests: Sequence[tuple[str, RefusedMove]]) -> str:
    return "; ".join(f"{move.vm_name} to {target} ({move.why[:WHY_LENGTH_MAX]})" for target, move in rests)


def _more(count: int) -> str:
    return "" if count <= NAMED_MAX else f"; and {count - NAMED_MAX} more"

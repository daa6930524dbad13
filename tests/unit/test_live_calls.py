"""Calls end when their callers lose a right that they had, and only then."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from novacron.api.access.live_calls import GRACE_S, LiveCalls
from novacron.api.read_model.principals import Callers
from novacron.model.access import Access, Right
from novacron.model.errors import Forbidden, Unauthenticated

TOKEN = {"id": "tok-a", "hash": "hash", "revoked": False, "user": "user-a", "kind": "api", "scopes": None,
         "project": None, "expires_at": "2026-01-01T00:00:00+00:00"}  # fmt: skip
USER = {"id": "user-a", "name": "ann", "disabled": False, "project": None}
GRANT = {"id": "g", "user": "user-a", "project": "web", "role": "member"}
BEFORE_S, AFTER_S = 1_767_225_599.0, 1_767_225_600.0
"""The token's end, and a second before."""
LOSSES: dict[str, tuple[str, str, dict[str, Any] | None]] = {
    "revoked": ("token", "tok-a", {**TOKEN, "revoked": True}),
    "forgotten": ("token", "tok-a", None),
    "user disabled": ("user", "user-a", {**USER, "disabled": True}),
    "user deleted": ("user", "user-a", None),
    "role taken": ("grant", "g", None),
    "lesser role": ("grant", "g", {**GRANT, "role": "viewer"}),
    "other project": ("grant", "g", {**GRANT, "project": "other"}),
}


@pytest.fixture
def callers() -> Callers:
    callers = Callers()
    for kind, key, body in (("user", "user-a", USER), ("token", "tok-a", TOKEN), ("grant", "g", GRANT)):
        callers.change(kind, key, body)
    return callers


async def _check(
    callers: Callers, change: tuple[str, str, dict[str, Any] | None] | None, wall_s: float, *,
    needs: Access | None = None, grace_s: float = 0.0, later_s: float = 0.0,
) -> Exception | None:  # fmt: skip
    """Return why a call ended that was in progress when a change came."""
    live, loop = LiveCalls(callers), asyncio.get_running_loop()
    caller = callers.by_id("tok-a")
    assert caller is not None
    call, is_cut = None, False
    try:
        async with asyncio.timeout(None) as limit:
            with live.watched(caller, limit, needs=needs, grace_s=grace_s) as call:
                live.check(BEFORE_S, loop.time())
                assert call.ended is None
                if change is not None:
                    callers.change(*change)
                began_s = loop.time()
                live.check(wall_s, began_s)
                live.check(wall_s, began_s + later_s)
                await asyncio.sleep(0)
                await asyncio.sleep(0)
    except TimeoutError:
        is_cut = True
    assert len(live) == 0 and call is not None
    assert is_cut == (call.ended is not None) or later_s, "whoever waits in it is told at once"
    return call.ended


@pytest.mark.parametrize("loss", LOSSES)
async def test_a_call_ends_when_its_caller_loses_a_right(callers: Callers, loss: str) -> None:
    ended = await _check(callers, LOSSES[loss], BEFORE_S)
    assert isinstance(ended, Forbidden if "role" in loss or "project" in loss else Unauthenticated)


async def test_a_call_ends_when_its_token_expires(callers: Callers) -> None:
    assert isinstance(await _check(callers, None, AFTER_S), Unauthenticated)


async def test_a_call_goes_on_when_its_caller_gets_rights_or_keeps_what_it_needs(callers: Callers) -> None:
    more = {"id": "h", "user": "user-a", "project": "more", "role": "viewer"}
    assert await _check(callers, ("grant", "h", more), BEFORE_S) is None
    needs = Access(projects={"web": frozenset({Right.READ})})
    assert await _check(callers, LOSSES["lesser role"], BEFORE_S, needs=needs) is None


async def test_a_request_that_ends_its_own_token_still_has_a_moment_for_its_answer(callers: Callers) -> None:
    assert await _check(callers, LOSSES["revoked"], BEFORE_S, grace_s=GRACE_S, later_s=GRACE_S / 2) is None
    callers.change("token", "tok-a", TOKEN)
    assert await _check(callers, LOSSES["revoked"], BEFORE_S, grace_s=GRACE_S, later_s=GRACE_S) is not None

"""The watch cache: names, tokens, followers, and resuming without a gap."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from novacron.api.read_model import watch_cache
from novacron.api.read_model.watch_cache import Cache, Delivery
from novacron.model.access import Right
from novacron.model.errors import Gone, Unavailable
from novacron.store.feed import Batch, Change, FeedSnapshot


def vm(revision: int, name: str = "web", id: str = "vm-a") -> Change:
    body = {"id": id, "name": name, "project": "default", "revision": revision}
    return Change(revision, "vm", id, body, "default")


def token(revision: int, revoked: bool) -> Change:
    body = {
        "id": "tok-a", "name": "t", "hash": "h", "revoked": revoked, "user": "user-a", "kind": "api", "scopes": None,
        "project": None, "expires_at": None,
    }  # fmt: skip
    return Change(revision, "token", "tok-a", body)


def user(revision: int, *, disabled: bool = False) -> Change:
    return Change(revision, "user", "user-a", {"id": "user-a", "name": "ann", "disabled": disabled, "project": None})


def grant(revision: int, role: str | None, project: str | None = None) -> Change:
    body = None if role is None else {"id": "grant-a", "user": "user-a", "project": project, "role": role}
    return Change(revision, "grant", "grant-a", body)


async def started(*history: Change, after: int = 0) -> Cache:
    cache = Cache()
    revision = history[-1].revision if history else after
    await cache.reset(FeedSnapshot(Batch(revision, []), list(history), after))
    return cache


async def take(cache: Cache, after: int | None, count: int) -> list[Delivery]:
    changes = []
    async for delivery in cache.follow(after):
        changes.append(delivery)
        if len(changes) == count:
            break
    return changes


async def test_a_vm_is_found_by_id_and_by_its_present_name() -> None:
    cache = await started()
    await cache.apply(Batch(1, [vm(1)]))
    await cache.apply(Batch(2, [vm(2, name="db")]))
    assert not cache.named("vm", "web")
    (match,) = cache.named("vm", "db")
    assert json.loads(match.json)["id"] == "vm-a" and cache.get("vm", "vm-a") is match
    await cache.apply(Batch(3, [Change(3, "vm", "vm-a", None)]))
    assert not cache.named("vm", "db") and cache.get("vm", "vm-a") is None


async def test_a_name_is_resolved_within_its_project() -> None:
    cache = await started()
    other = {"id": "vm-b", "name": "web", "project": "other", "revision": 1}
    await cache.apply(Batch(1, [vm(1), Change(1, "vm", "vm-b", other, "other")]))
    assert {entry.body["id"] for entry in cache.named("vm", "web")} == {"vm-a", "vm-b"}
    await cache.apply(Batch(2, [Change(2, "vm", "vm-a", None, "default")]))
    assert [entry.body["id"] for entry in cache.named("vm", "web")] == ["vm-b"]


async def test_a_revoked_token_is_refused_from_then_on() -> None:
    cache = await started()
    await cache.apply(Batch(1, [user(1), token(1, revoked=False)]))
    caller = cache.callers.get("h")
    assert caller is not None and (caller.id, caller.name) == ("tok-a", "ann")
    await cache.apply(Batch(2, [token(2, revoked=True)]))
    assert cache.callers.get("h") is None


async def test_changed_rights_of_a_user_apply_at_once() -> None:
    cache = await started()
    await cache.apply(Batch(1, [user(1), token(1, revoked=False), grant(1, "viewer", "web")]))

    def may(right: Right, project: str | None) -> bool:
        caller = cache.callers.get("h")
        return caller is not None and caller.access.allows(right, project)

    assert may(Right.READ, "web") and not may(Right.WRITE, "web") and not may(Right.READ, "other")
    await cache.apply(Batch(2, [grant(2, "member", "web")]))
    assert may(Right.WRITE, "web") and not may(Right.MANAGE, "web") and not may(Right.READ, None)
    await cache.apply(Batch(3, [grant(3, None)]))
    assert not may(Right.READ, "web") and cache.callers.get("h") is not None
    await cache.apply(Batch(4, [user(4, disabled=True)]))
    assert cache.callers.get("h") is None


async def test_tokens_are_never_delivered_to_followers() -> None:
    cache = await started()
    await cache.apply(Batch(2, [token(1, revoked=False), vm(2)]))
    assert [d.kind for d in await take(cache, 0, 1)] == ["vm"]


async def test_a_follower_resumes_without_gap_or_repetition() -> None:
    cache = await started()
    for revision in range(1, 6):
        await cache.apply(Batch(revision, [vm(revision)]))
    assert [d.revision for d in await take(cache, 2, 3)] == [3, 4, 5]


async def test_a_follower_resumes_over_a_restart_of_the_server() -> None:
    cache = await started(vm(7), vm(9), after=5)
    await cache.apply(Batch(12, [vm(12)]))
    assert [d.revision for d in await take(cache, 7, 2)] == [9, 12]


async def test_resuming_before_the_kept_history_is_refused() -> None:
    cache = await started(vm(9), after=5)
    with pytest.raises(Gone) as caught:
        await take(cache, 4, 1)
    assert caught.value.field == "Last-Event-ID"


async def test_only_the_last_change_of_a_transaction_can_be_resumed_after() -> None:
    cache = await started()
    await cache.apply(Batch(1, [vm(1), vm(1, "b", "vm-b"), token(1, revoked=False)]))
    assert [d.last for d in await take(cache, 0, 2)] == [False, True]


async def test_followers_are_disconnected_when_the_feed_restarts() -> None:
    cache = await started()
    follower = cache.follow(None)
    waiting = anext(follower)
    task = asyncio.ensure_future(waiting)
    await asyncio.sleep(0)
    await cache.reset(FeedSnapshot(Batch(9, []), [], 9))
    with pytest.raises(Unavailable):
        await task


async def test_a_reader_can_wait_for_its_own_write() -> None:
    cache = await started()
    assert not await cache.reached(3, 0.01)
    await cache.apply(Batch(3, []))
    assert await cache.reached(3, 0.01)


async def test_an_older_change_never_overwrites_a_newer_one() -> None:
    cache = await started()
    await cache.apply(Batch(5, [vm(5, "new")]))
    await cache.apply(Batch(6, [vm(4, "old")]))
    current: Any = cache.get("vm", "vm-a")
    assert current.body["name"] == "new"


async def test_kinds_of_objects_that_only_a_newer_server_knows_are_left_out() -> None:
    cache = await started()
    for revision in (1, 2):
        await cache.apply(Batch(revision, [Change(revision, "spaceship", "s", {"id": "s"}), vm(revision)]))
    await cache.apply(Batch(3, [Change(3, "spaceship", "s", None)]))
    await cache.reset(FeedSnapshot(Batch(4, [Change(4, "spaceship", "s", {"id": "s"}), vm(4)]), [], 0))
    assert cache.ready and cache.revision == 4 and [entry.revision for entry in cache.named("vm", "web")] == [4]
    with pytest.raises(KeyError):
        cache.all("spaceship")


async def test_an_object_that_cant_be_taken_in_counts_as_gone_and_stops_no_other() -> None:
    cache = await started()
    await cache.apply(Batch(1, [vm(1), vm(1, "db", "vm-b"), user(1), grant(1, "operator"), token(1, revoked=False)]))
    assert cache.callers.get("h") is not None
    bad_vm, bad_grant = Change(2, "vm", "vm-a", {"id": "vm-a"}), Change(2, "grant", "grant-a", {"id": "grant-a"})
    await cache.apply(Batch(2, [bad_vm, bad_grant, vm(2, "db", "vm-b")]))
    assert cache.get("vm", "vm-a") is None and not cache.named("vm", "web")
    assert [entry.revision for entry in cache.named("vm", "db")] == [2]
    assert not cache.callers.access_of("user-a").everywhere, "nobody keeps a right that can't be read"
    await cache.apply(Batch(3, [vm(3)]))
    assert [entry.revision for entry in cache.named("vm", "web")] == [3]


async def test_a_change_is_encoded_once_and_one_that_cant_be_stops_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    cache, encoded = await started(), list[str]()

    def encode(kind: str, body: dict[str, Any]) -> bytes:
        encoded.append(f"{kind} {body['id']}")
        if body["id"] == "vm-bad":
            raise TypeError("it can't be encoded")
        return json.dumps(body).encode()

    monkeypatch.setattr(watch_cache, "encoded", encode)
    await cache.apply(Batch(1, [vm(1), vm(1, "bad", "vm-bad"), vm(1, "db", "vm-b")]))
    assert encoded == ["vm vm-a", "vm vm-bad", "vm vm-b"]
    assert [delivery.key for delivery in await take(cache, 0, 2)] == ["vm-a", "vm-b"]
    assert cache.get("vm", "vm-bad") is None

"""Lists from the indexes are what a scan of all objects gives, and cached answers are what a route would answer."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import inspect

from novacron.api.read_model import indexes, paging, response_cache
from novacron.api.read_model.indexes import Condition, ListPart, matches, place_of
from novacron.api.read_model.paging import Paging, Query
from novacron.api.read_model.principals import NEVER_S, Caller
from novacron.api.read_model.response_cache import ResponseCache
from novacron.api.read_model.watch_cache import Cache
from novacron.model.access import Access, Right
from novacron.model.backup import Backup, BackupRepository
from novacron.model.backup_policy import BackupPolicy
from novacron.model.drain import Drain
from novacron.model.drill import DrillRun
from novacron.model.errors import InvalidInput
from novacron.model.export import Export
from novacron.model.image import Import
from novacron.model.migration import Migration
from novacron.model.node import Node
from novacron.model.token import TokenKind
from novacron.model.vm import Vm
from novacron.model.volume import Volume
from novacron.store.feed import Batch, Change, FeedSnapshot

PROJECTS, NODES, STATES, IMAGES = ("p", "q", "r"), ("a", "b", None), ("running", "stopped"), ("tiny", "big")
TAGS = ("production", "web")
CALLER = Caller("tok", "ann", "user", TokenKind.API, Access(frozenset({Right.READ})), "p", NEVER_S, "*")

ids = st.sampled_from([f"vm-{n}" for n in range(12)])
bodies = st.builds(
    lambda id, name, project, node, state, image, tags: {
        "id": id, "name": name, "project": project, "node": node, "status": {"state": state}, "spec": {"image": image},
        "created_at": "2026-01-01", "tags": tags,
    },
    ids, st.sampled_from(["web", "web-1", "web-2", "db", "w"]), st.sampled_from(PROJECTS), st.sampled_from(NODES),
    st.sampled_from(STATES), st.sampled_from(IMAGES), st.lists(st.sampled_from(TAGS), unique=True),
)  # fmt: skip
changes = st.lists(st.one_of(bodies, ids), max_size=60)
"""A body: the VM is that now; an id: it is deleted."""


def pair(field: str, values: tuple[object, ...]) -> st.SearchStrategy[tuple[str, object]]:
    return st.sampled_from(values).map(lambda value: (field, value))


pairs = st.one_of(
    pair("project", PROJECTS), pair("node", NODES), pair("status.state", STATES), pair("spec.image", IMAGES),
    pair("tags", TAGS), pair("name", ("web", "db")), pair("id", ("vm-1", "vm-2")),
)  # fmt: skip
conditions = st.lists(st.lists(pairs, max_size=3).map(tuple), max_size=3).map(tuple)
queries = st.builds(
    Query, st.just("vm"), conditions, st.sampled_from(["", "w", "web", "web ", "web-1 ", "x"]), st.booleans()
)


def change(revision: int, what: dict[str, Any] | str) -> Change:
    if isinstance(what, str):
        return Change(revision, "vm", what, None)
    return Change(revision, "vm", what["id"], {**what, "revision": revision}, what["project"])


def apply(cache: Cache, revision: int, what: dict[str, Any] | str) -> None:
    asyncio.run(cache.apply(Batch(revision, [change(revision, what)])))


def started() -> Cache:
    cache = Cache()
    asyncio.run(cache.reset(FeedSnapshot(Batch(0, []), [], 0)))
    return cache


def scan(cache: Cache, where: tuple[Condition, ...], part: ListPart) -> list[str]:
    """Return what a list holds by looking at every object."""
    places = sorted(
        place_of("vm", entry.body)
        for entry in cache.all("vm").values()
        if all(matches(entry.body, condition) for condition in where)
    )
    if part.newest_first:
        places.reverse()
    return [
        place
        for place in places
        if place.startswith(part.prefix)
        and (part.after is None or (place < part.after if part.newest_first else place > part.after))
    ]


@given(changes, conditions, st.sampled_from(["", "w", "web", "web "]), st.sampled_from([None, "web vm-5", "e"]),
       st.booleans())  # fmt: skip
def test_an_index_selects_what_a_scan_of_all_objects_finds(
    history: list[dict[str, Any] | str], where: tuple[Condition, ...], prefix: str, after: str | None, backwards: bool
) -> None:
    cache, part = started(), ListPart(after, prefix, backwards)
    for revision, what in enumerate(history, 1):
        apply(cache, revision, what)
    for looked_up in (indexes.LOOKED_UP_MAX, 2):
        with mock.patch.object(indexes, "LOOKED_UP_MAX", looked_up):
            selected = [place_of("vm", entry.body) for entry in cache.index("vm").select(where, part)]
        assert selected == scan(cache, where, part)


@given(changes, queries, st.integers(1, 4))
def test_pages_hold_every_object_once(history: list[dict[str, Any] | str], query: Query, limit: int) -> None:
    cache = started()
    for revision, what in enumerate(history, 1):
        apply(cache, revision, what)
    ids, cursor = [], None
    while True:
        selection = paging.select(cache, query, Paging(limit, cursor, None, None))
        ids += [entry.body["id"] for entry in selection.entries]
        assert len(selection.entries) <= limit
        cursor = selection.next
        if cursor is None:
            break
    entries = cache.index("vm").select(query.conditions, ListPart(None, query.prefix, query.newest_first))
    assert ids == [entry.body["id"] for entry in entries]


def ask(
    answers: ResponseCache, cache: Cache, query: Query, page: Paging, number: int
) -> tuple[bytes, bool]:  # fmt: skip
    """Ask for a list as the edge does; return the answer, and whether it came from the response cache."""
    path, text, headers = "/api/v1/vms", b"%d" % number, dict[bytes, bytes]()
    cached = answers.answer(path, text, headers, CALLER)
    if cached is not None:
        return cached[2], True
    request: dict[str, Any] = {"path": path, "query_string": text, "method": "GET", "state": {}}
    capture = answers.capture(request, headers, CALLER)
    assert capture is not None
    selection = paging.select(cache, query, page)
    body = paging.encode(selection, page.fields, cache.revision)
    request["state"][response_cache.DEPENDENCY] = selection.dependency
    capture.take({"type": "http.response.start", "status": 200})
    capture.take({"type": "http.response.body", "body": body})
    return body, False


@settings(max_examples=200)
@given(changes, st.lists(st.tuples(queries, st.integers(1, 3), st.booleans()), min_size=1, max_size=4))
def test_a_cached_list_equals_a_fresh_answer(
    history: list[dict[str, Any] | str], lists: list[tuple[Query, int, bool]]
) -> None:
    cache = started()
    answers = ResponseCache(cache)
    for revision, what in enumerate(history, 1):
        apply(cache, revision, what)
        for number, (query, limit, by_time) in enumerate(lists):
            page = Paging(limit, None, "-created_at" if by_time else None, None)
            answer, _ = ask(answers, cache, query, page, number)
            anew = paging.encode(paging.select(cache, query, page), None, cache.revision)
            assert {**json.loads(answer), "revision": 0} == {**json.loads(anew), "revision": 0}


def test_a_change_of_another_vm_leaves_a_filtered_list_cached() -> None:
    cache = started()
    answers = ResponseCache(cache)
    query, page = Query("vm", ((("project", "p"),),), "web"), Paging(20, None, None, None)
    base = {"project": "p", "node": None, "status": {"state": "running"}, "spec": {"image": "tiny"}}
    apply(cache, 1, {**base, "id": "vm-1", "name": "web"})
    assert not ask(answers, cache, query, page, 0)[1]
    apply(cache, 2, {**base, "id": "vm-2", "name": "db"})
    apply(cache, 3, {**base, "id": "vm-3", "name": "web-2", "project": "q"})
    assert ask(answers, cache, query, page, 0)[1], "neither is in the list"
    apply(cache, 4, {**base, "id": "vm-3", "name": "web-2"})
    assert not ask(answers, cache, query, page, 0)[1], "it came into the list"


def test_a_filtered_list_of_100_000_vms_takes_milliseconds() -> None:
    """Bounds here are for a busy machine; ``script/bench scale`` measures."""
    cache = started()
    body = {"node": "a", "status": {"state": "running"}, "spec": {"image": "tiny"}, "created_at": "2026-01-01"}
    vms = [
        {**body, "id": f"vm-{n}", "name": f"web-{n:06d}", "project": "p" if n % 2 else "q",
         "status": {"state": "stopped" if n % 2 else "running"}, "node": f"n{n % 2000}"}
        for n in range(100_000)
    ]  # fmt: skip
    asyncio.run(cache.apply(Batch(1, [change(1, vm) for vm in vms])))
    page = Paging(20, None, None, None)
    for where, prefix in (
        ((("node", "n7"),), ""), ((("status.state", "stopped"),), ""), ((("project", "p"),), ""),
        ((), "web-0999"), ((("spec.image", "none"),), ""),
    ):  # fmt: skip
        query = Query("vm", (where,) if where else (), prefix)
        took = []
        for _ in range(5):
            began = time.process_time()
            paging.select(cache, query, page)
            took.append(time.process_time() - began)
        assert min(took) < 0.005, (query, took)
    sparse = Query("vm", ((("status.state", "running"),), (("project", "p"),)))
    began = time.process_time()
    assert not paging.select(cache, sparse, page).entries
    assert time.process_time() - began < 0.05
    print(f"two filters that nothing meets together: {1e3 * (time.process_time() - began):.1f} ms")


def field_of(struct: Any, path: str) -> Any:
    """Return the type of a struct's field, such as ``spec.site``; AttributeError where there is none."""
    kind = inspect.type_info(struct)
    for name in path.split("."):
        members = kind.types if isinstance(kind, inspect.UnionType) else (kind,)
        fields = [field for member in members for field in getattr(member, "fields", ()) if field.encode_name == name]
        if not fields:
            raise AttributeError(f"{struct.__name__} has no {path}")
        kind = fields[0].type
    return kind


STORED = {
    "vm": Vm, "volume": Volume, "node": Node, "migration": Migration, "drain": Drain, "import": Import,
    "export": Export, "drill": DrillRun, "backup": Backup, "backup-policy": BackupPolicy,
    "backup-repository": BackupRepository,
}  # fmt: skip
SORTED = [(kind, field) for kind, fields in paging.SORTS.items() for field in fields]


@pytest.mark.parametrize(("kind", "field"), SORTED)
def test_each_field_that_lists_are_sorted_by_exists(kind: str, field: str) -> None:
    sorted_by = field_of(STORED[kind], field)
    assert not isinstance(sorted_by, inspect.FloatType), "the order of floats as texts is not that of their values"


def test_a_field_that_does_not_exist_is_not_taken_for_a_field() -> None:
    with pytest.raises(AttributeError, match="Node has no spec"):
        field_of(Node, "spec.colour")


@pytest.mark.parametrize(
    ("sort", "names"),
    [
        ("status.ready", ["b", "a", "c"]),
        ("-status.ready", ["c", "a", "b"]),
        ("status.inventory.cpus", ["b", "a", "c"]),
        ("-status.inventory.cpus", ["c", "a", "b"]),
    ],
)
def test_nodes_are_sorted_by_values_page_by_page(sort: str, names: list[str]) -> None:
    """Numbers as numbers; a node that has not reported yet comes before all that have."""
    cache = started()
    nodes = [("a", {"ready": True, "inventory": {"cpus": 8}}), ("b", {"ready": False, "inventory": None}),
             ("c", {"ready": True, "inventory": {"cpus": 64}})]  # fmt: skip
    for revision, (name, status) in enumerate(nodes, 1):
        body = {"name": name, "status": status, "revision": revision, "created_at": "2026-01-01"}
        asyncio.run(cache.apply(Batch(revision, [Change(revision, "node", name, body)])))
    found, cursor = list[str](), None
    for _ in nodes:
        selection = paging.select(cache, Query("node"), Paging(1, cursor, sort, None))
        found += [entry.body["name"] for entry in selection.entries]
        cursor = selection.next
    assert found == names and cursor is None


def test_lists_are_not_sorted_by_other_fields() -> None:
    with pytest.raises(InvalidInput) as refused:
        paging.select(started(), Query("backup"), Paging(1, None, "spec", None))
    assert refused.value.field == "sort"

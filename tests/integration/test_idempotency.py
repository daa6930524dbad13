"""A request that is sent again with its idempotency key has one effect and one answer, whoever receives it."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import asyncpg
import msgspec
import pytest

from lab.platform import until
from lab.replicas import Served, serving
from novacron.model.errors import IdempotencyMismatch
from novacron.model.node import Accelerator, AcceleratorKind, ImageInfo, Inventory, NodeSpec, NodeStatus
from novacron.model.vm import Vm, VmSpec
from novacron.store import idempotency, new_vms, projects, vms
from novacron.store.create_groups import CreateGroups, QuickCreate
from novacron.store.database import Connection, Database
from tests.chance import fixed_seed
from tests.integration.conftest import Answer, Api
from tests.support.creates import quick_create
from tests.waiting import eventually

VMS = "/api/v1/vms"
INVENTORY = Inventory(
    cpus=4, memory_mib=1 << 14, architecture="x86_64", kernel="6.1", qemu_version="7.2",
    accelerator=Accelerator(AcceleratorKind.TCG, ""), images=(ImageInfo("tiny", "0" * 64, 1, "kernel"),),
    bridge=None, dwcp_endpoint="127.0.0.1:1", agent_version="0",
)  # fmt: skip


async def _store_node(url: str) -> None:
    connection = await asyncpg.connect(url)
    node = msgspec.json.encode(NodeStatus(inventory=INVENTORY)).decode()
    await connection.execute(
        "INSERT INTO nodes (name, spec, status, key_hash) VALUES ('a', $1, $2, '')",
        msgspec.json.encode(NodeSpec()).decode(), node,
    )  # fmt: skip
    await connection.close()


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    """Two replicas of two processes each, which know a node that holds an image."""
    with serving("--workers", "2", "--writes-per-s", "100000", "--reads-per-s", "100000", replicas=2) as replicas:
        asyncio.run(_store_node(replicas.postgres.url))
        until(lambda: list(replicas.client.list("images")), "the first replica knows the image", 20)
        yield replicas


@pytest.fixture(scope="module")
def apis(served: Served) -> list[Api]:
    """Callers of each replica, several so that each process gets some."""
    clients = []
    for replica in served.replicas * 3:
        api = Api(served.client)
        api.url = replica.url
        until(partial(_holds_images, api), "the replica knows the image", 20)
        clients.append(api)
    return clients


def _body(name: str = "", **more: Any) -> dict[str, Any]:
    return {"name": name or f"k-{uuid.uuid4().hex[:12]}", "image": "tiny", "power": "stopped", **more}


def _holds_images(api: Api) -> list[Any]:
    images: list[Any] = api("GET", "/api/v1/images").body["items"]
    return images


def _listed(api: Api, name: str) -> list[Any]:
    vms: list[Any] = api("GET", f"{VMS}?name={name}").body["items"]
    return vms


def _at_once(apis: list[Api], bodies: list[dict[str, Any]], key: str, path: str = VMS) -> list[Answer]:
    with ThreadPoolExecutor(len(bodies)) as pool:
        sent = [
            pool.submit(apis[n % len(apis)], "POST", path, body, Idempotency_Key=key) for n, body in enumerate(bodies)
        ]
        return [answer.result() for answer in sent]


@pytest.mark.parametrize("slow", [False, True], ids=["in one statement", "in a transaction"])
def test_repetitions_at_several_servers_at_once_create_one_vm(apis: list[Api], slow: bool) -> None:
    for _ in range(10):
        body, key = _body(cloud_init={"user_data": "#cloud-config\n"} if slow else None), uuid.uuid4().hex
        answers = [*_at_once(apis, [body] * 12, key), apis[1]("POST", VMS, body, Idempotency_Key=key)]
        assert {answer.status for answer in answers} == {201}, [answer.body for answer in answers]
        assert all(answer.body == answers[0].body for answer in answers)
        assert len({(answer.headers["etag"], answer.headers["location"]) for answer in answers}) == 1
        assert sum("idempotency-replayed" not in answer.headers for answer in answers) == 1
        until(partial(_listed, apis[0], body["name"]), "it is listed", 20)
        assert len(_listed(apis[0], body["name"])) == 1


def test_one_key_with_several_concurrent_bodies_creates_one_vm(apis: list[Api]) -> None:
    for _ in range(10):
        bodies, key = [_body() for _ in range(8)], uuid.uuid4().hex
        answers = _at_once(apis, bodies, key)
        assert sorted(answer.status for answer in answers) == [201] + [422] * 7
        assert {answer.problem["field"] for answer in answers if answer.status == 422} == {"Idempotency-Key"}
        created = [body["name"] for body in bodies if apis[0]("GET", f"{VMS}/{body['name']}").status == 200]
        assert created == [answer.body["name"] for answer in answers if answer.status == 201]


def test_a_repeated_action_counts_once(apis: list[Api]) -> None:
    vm = apis[0]("POST", VMS, _body(), Idempotency_Key=uuid.uuid4().hex).body
    path = f"{VMS}/{vm['id']}/actions/start"
    answers = _at_once(apis, [{}] * 8, uuid.uuid4().hex, path)
    assert {answer.status for answer in answers} == {202}
    assert all(answer.body == answers[0].body for answer in answers) and answers[0].body["spec"]["starts"] == 1
    another = apis[0]("POST", path, {}, Idempotency_Key=uuid.uuid4().hex)
    assert another.body["spec"]["starts"] == 2


def test_a_create_that_conflicts_leaves_its_key_free(apis: list[Api]) -> None:
    first, key = _body(), uuid.uuid4().hex
    apis[0]("POST", VMS, first)
    assert apis[0]("POST", VMS, first, Idempotency_Key=key).problem["field"] == "name"
    assert apis[1]("POST", VMS, _body(), Idempotency_Key=key).status == 201


async def test_a_repetition_is_known_after_the_end_of_the_generation_that_it_first_had(database: Database) -> None:
    first = idempotency.KeyClaim("t", "k-generations", b"first")
    async with database.transaction() as connection:
        assert await idempotency.claim(connection, first) is None
        await idempotency.settle(connection, first, idempotency.StoredAnswer(201, b"made", {}))
    for digest, before in ((b"second", (b"first",)), (b"second", ()), (b"third", (b"second",)), (b"third", ())):
        async with database.transaction() as connection:
            again = idempotency.KeyClaim("t", "k-generations", digest, before)
            answer = await idempotency.claim(connection, again)
            assert answer is not None and answer.body == b"made"
    with pytest.raises(IdempotencyMismatch):
        async with database.transaction() as connection:
            await idempotency.claim(connection, first)


async def test_both_ways_to_create_agree_on_a_key(database: Database) -> None:
    """One statement (no quota) and a transaction (whatever else) may meet, where two servers know different things."""
    seed = fixed_seed()
    print(f"seed {seed}")
    rng, groups = random.Random(seed), CreateGroups(database)
    async with database.connection() as connection:
        project: dict[str, Any] = await connection.fetchval("SELECT to_jsonb(p) FROM projects p")

    async def send(name: str, claim: idempotency.KeyClaim, fast: bool) -> bytes | None:
        new = new_vms.NewVm(name, VmSpec(image="tiny"), 0)
        if fast:
            stored = await groups.create(quick_create(project, new, claim))
            if stored is not None:
                return stored.body

        async def work(connection: Connection) -> bytes:
            claimed = await idempotency.claim(connection, claim)
            if claimed is not None:
                return claimed.body
            vm = await new_vms.create(connection, await projects.making(connection, "default"), new, "ann")
            body = msgspec.json.encode(vm)
            await idempotency.settle(connection, claim, idempotency.StoredAnswer(201, body, {}))
            return body

        try:
            return await database.transact(work)
        except IdempotencyMismatch:
            return None

    for turn in range(12):
        bodies = [f"web-{turn}-{rng.randrange(2)}" for _ in range(6)]
        answers = await asyncio.gather(
            *(
                send(name, idempotency.KeyClaim("t", f"k-{turn}", name.encode()), rng.random() < 0.7)
                for name in bodies
            )
        )  # fmt: skip
        async with database.connection() as connection:
            names = [
                row["name"]
                for row in await connection.fetch("SELECT name FROM vms WHERE name LIKE $1", f"web-{turn}-%")
            ]
        assert len(names) == 1, f"turn {turn}"
        for name, answer in zip(bodies, answers, strict=True):
            assert (answer is not None) == (name == names[0]), f"turn {turn}"
        created = [msgspec.json.decode(answer, type=Vm) for answer in answers if answer is not None]
        assert all(vm == created[0] for vm in created), f"turn {turn}"


async def test_a_create_whose_key_is_in_use_waits_in_its_own_transaction(database: Database) -> None:
    """And holds up neither those that share its statement nor the one that has the key."""
    async with database.connection() as connection:
        project: dict[str, Any] = await connection.fetchval("SELECT to_jsonb(p) FROM projects p")
    groups, claim = CreateGroups(database), idempotency.KeyClaim("t", "k", b"request")

    def create(name: str, claim: idempotency.KeyClaim | None) -> QuickCreate:
        return quick_create(project, new_vms.NewVm(name, VmSpec(image="tiny"), 0), claim)

    async with database.transaction() as connection:
        assert await idempotency.claim(connection, claim) is None
        other = idempotency.KeyClaim("t", "other", b"request")
        creates = [create("a", None), create("b", claim), create("c", other), create("c", None), create("a", other)]
        stored = await asyncio.wait_for(asyncio.gather(*map(groups.create, creates)), 5)
        assert [None if one is None else one.vm.name for one in stored] == ["a", None, "c", None, None]
        assert stored[2] is not None and msgspec.json.decode(stored[2].body, type=Vm) == stored[2].vm
        await idempotency.settle(connection, claim, idempotency.StoredAnswer(201, b"{}", {}))
    async with database.transaction() as connection:
        assert await idempotency.claim(connection, claim) == idempotency.StoredAnswer(201, b"{}", {})
        answer = await idempotency.claim(connection, other)
        assert answer is not None and answer.body == stored[2].body
        assert answer.headers == {"ETag": f'"{stored[2].vm.revision}"'}
        for table in ("vms", "events", "audit"):
            rows = await connection.fetch(f"SELECT name FROM {table} ORDER BY name")  # noqa: S608
            assert [row["name"] for row in rows] == ["a", "c"], table


async def test_requests_that_arrive_together_share_a_statement_and_a_bad_one_harms_no_other(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with database.connection() as connection:
        project: dict[str, Any] = await connection.fetchval("SELECT to_jsonb(p) FROM projects p")
    groups = CreateGroups(database)
    creates = [quick_create(project, new_vms.NewVm(f"n-{n}", VmSpec(image="tiny"), 0), None) for n in range(100)]
    stored = await asyncio.gather(*map(groups.create, creates))
    assert [one and one.vm.name for one in stored] == [f"n-{n}" for n in range(100)]
    assert len({one.vm.revision for one in stored if one}) <= 3, "statements"

    bad = creates[0]._replace(audit=["x"])  # can't be stored: its own request says why
    another = quick_create(project, new_vms.NewVm("good", VmSpec(image="tiny"), 0), None)
    assert not any(await asyncio.gather(groups.create(bad), groups.create(another)))
    after = await groups.create(another)
    assert after is not None and after.vm.name == "good"


@pytest.mark.parametrize("name", ["web", "other"])
async def test_a_request_that_waits_for_a_key_has_locked_nothing_yet(database: Database, name: str) -> None:
    """Else it and the one that has the key wait for each other, until PostgreSQL ends one of them after a second."""
    async with database.connection() as connection:
        project: dict[str, Any] = await connection.fetchval("SELECT to_jsonb(p) FROM projects p")
    new, claim = new_vms.NewVm("web", VmSpec(image="tiny"), 0), idempotency.KeyClaim("t", "k", b"request")
    changed = await CreateGroups(database).create(quick_create(project, new._replace(name="changed"), None))
    assert changed is not None

    async def waiting() -> list[Any]:
        async with database.connection() as other:
            rows: list[Any] = await other.fetch(
                "SELECT backend_xid IS NOT NULL AS writes FROM pg_stat_activity"
                " WHERE wait_event_type = 'Lock' AND datname = current_database()"
            )
            return rows

    quick = vms.configure_in_one_statement(changed.vm, {"start_order": 3}, None, "ann")
    assert quick is not None
    async with database.transaction() as connection:
        assert await idempotency.claim(connection, claim) is None
        at_once = asyncio.create_task(idempotency.change_vm_at_once(database, quick, {}, claim, 200, {}))
        await eventually(waiting, "the other request waits")
        assert [row["writes"] for row in await waiting()] == [False]
        making = await projects.making(connection, "default")
        await asyncio.wait_for(new_vms.create(connection, making, new._replace(name=name), "ann"), 0.9)
        await idempotency.settle(connection, claim, idempotency.StoredAnswer(201, b"{}", {}))
    assert await asyncio.wait_for(at_once, 5) is None
    async with database.transaction() as connection:
        assert await idempotency.claim(connection, claim) == idempotency.StoredAnswer(201, b"{}", {})
        rows = await connection.fetch("SELECT name, spec ->> 'start_order' AS start_order FROM vms ORDER BY name")
        assert sorted(row["name"] for row in rows) == sorted(["changed", name])
        assert "3" not in [row["start_order"] for row in rows]

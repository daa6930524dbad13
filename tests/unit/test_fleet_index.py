"""The fleet in memory says what the fleet read anew would say, whatever has changed in between."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest

from novacron.model.groups import groups_of_project
from novacron.model.node import Load, Node
from novacron.model.placement import Fleet, Member, Wish
from novacron.model.vm import VmSpec
from novacron.store.feed import Change
from novacron.store.fleet_index import FleetIndex
from tests.support.fleet import node, vm

NODES = [f"n{number}" for number in range(8)]


class World:
    """What the database would have, and the index that hears of it."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.nodes: dict[str, Node] = {}
        self.vms: dict[str, dict[str, Any]] = {}
        self.moves: dict[str, dict[str, Any]] = {}
        self.index = FleetIndex()
        self.index.clear()
        for name in NODES[:5]:
            self.put_node(name)

    def tell(self, kind: str, key: str, body: Any) -> None:
        self.index.changed(Change(1, kind, key, None if body is None else msgspec.to_builtins(body)))

    def put_node(self, name: str) -> None:
        rng = self.rng
        self.nodes[name] = node(
            name, memory_mib=rng.choice([2048, 4608, 9000]), image=rng.choice(["tiny", "other"]),
            cordoned=rng.random() < 0.2, zone=rng.choice(["1", "2"]),
        )  # fmt: skip
        self.tell("node", name, self.nodes[name])

    def put_vm(self, id: str, at: str | None) -> None:
        spec = vm(memory_mib=self.rng.choice([64, 256, 1024]), anti_affinity=self.rng.choice([None, None, "db"]))
        grouped = spec.placement.anti_affinity is not None
        self.vms[id] = {"id": id, "spec": spec, "node": at, "grouped": grouped, "project": "p"}
        self.tell("vm", id, self.vms[id])

    def remove_vm(self, id: str) -> None:
        del self.vms[id]
        self.moves.pop(id, None)
        self.tell("migration", f"m-{id}", None)
        self.tell("vm", id, None)

    def step(self) -> None:
        rng = self.rng
        match rng.randrange(6):
            case 0:
                self.put_node(rng.choice(NODES))
            case 1 | 2:
                self.put_vm(f"vm-{rng.randrange(20)}", rng.choice([None, *self.nodes]))
            case 3 if self.vms:
                self.remove_vm(rng.choice(list(self.vms)))
            case 4 if self.vms:
                id = rng.choice(list(self.vms))
                self.moves[id] = {"vm": id, "target": rng.choice(list(self.nodes)), "finished_at": None}
                self.tell("migration", f"m-{id}", self.moves[id])
            case 5 if self.moves:
                id, move = self.moves.popitem()
                self.tell("migration", f"m-{id}", move | {"finished_at": "now"})

    def anew(self) -> Fleet:
        loads: dict[str, Load] = {}
        members = []
        for id, body in self.vms.items():
            for name in {body["node"], self.moves.get(id, {}).get("target")} - {None}:
                spec: VmSpec = body["spec"]
                load = loads.get(name, Load())
                loads[name] = Load(load.vcpus + spec.vcpus, load.memory_mib + spec.memory_mib)
                where = groups_of_project(spec.placement, "p")
                members.append(Member(id, name, msgspec.structs.replace(spec, placement=where)))
        return Fleet(self.nodes.values(), loads, members)


@pytest.mark.parametrize("seed", range(20))
def test_the_index_chooses_as_well_as_a_freshly_read_fleet(seed: int) -> None:
    world = World(seed)
    for number in range(150):
        world.step()
        fleet = world.anew()
        assert world.index.fleet.loads == fleet.loads, f"after {number} changes of seed {seed}"
        wish = Wish("new", vm(image=world.rng.choice(["tiny", "other"]), memory_mib=world.rng.choice([64, 1024])))
        if world.rng.random() < 0.5:
            wish = wish._replace(spec=vm(anti_affinity="p/db"), at=world.rng.choice([None, *world.nodes]))
        if world.rng.random() < 0.3:
            wish = wish._replace(been=frozenset(world.rng.sample(NODES, 2)), images_come=False)
        best = next((verdict for verdict in fleet.explain(wish) if verdict.refusal is None), None)
        chosen = world.index.fleet.choose(wish)
        assert (chosen is None) == (best is None), f"after {number} changes of seed {seed}"
        if chosen is not None and best is not None:
            verdict = fleet.judge(wish, chosen)
            assert verdict.refusal is None and verdict.score == pytest.approx(best.score, abs=2e-4)


def test_a_row_that_cannot_be_decoded_counts_as_deleted_and_hides_no_other() -> None:
    world = World(1)
    world.index.changed(Change(1, "node", "n0", {"name": "n0", "spec": {}, "status": {"ready": "perhaps"}}))
    world.index.changed(Change(1, "vm", "bad", {"id": "bad", "spec": {}, "node": "n1", "grouped": False}))
    assert "n0" not in world.index.fleet.nodes and "n1" in world.index.fleet.nodes
    assert world.index.fleet.loads["n1"] == Load()


def test_a_vm_that_is_assumed_on_a_node_counts_there_until_the_feed_says_otherwise() -> None:
    world = World(2)
    world.put_vm("vm-1", None)
    memory_mib = world.vms["vm-1"]["spec"].memory_mib
    world.index.assume("vm-1", "n1")
    assert world.index.fleet.loads["n1"].memory_mib == memory_mib
    world.index.assume("vm-1", None)
    assert world.index.fleet.loads["n1"].memory_mib == 0
    world.index.assume("vm-1", "n1")
    world.vms["vm-1"]["node"] = "n2"
    world.tell("vm", "vm-1", world.vms["vm-1"])
    assert (world.index.fleet.loads["n1"].memory_mib, world.index.fleet.loads["n2"].memory_mib) == (0, memory_mib)

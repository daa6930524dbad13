"""CPUs, NUMA nodes and huge pages of VMs: what goes together, where there is room, and what QEMU gets."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from novacron.cli.vms import DETAILS
from novacron.model.devices import HugePages
from novacron.model.errors import InvalidInput
from novacron.model.fit import no_room
from novacron.model.node import Capacity, Load, Node, counted
from novacron.model.placement import Fleet, Wish
from novacron.model.topology import check
from novacron.model.vm import VmFields, VmSpec
from novacron.qemu import guest_memory
from novacron.qemu.guest_memory import MemoryLayout
from novacron.store.clones import ISOLATED, fresh
from tests.unit.test_node import node


def spec(**fields: Any) -> VmSpec:
    return msgspec.convert({"image": "tiny", "memory_mib": 256, **fields}, VmSpec)


@pytest.mark.parametrize(
    ("fields", "field", "why"),
    [
        ({"cpu_policy": "dedicated", "vcpus_max": 2}, "vcpus_max", "dedicated CPUs can't get more"),
        ({"vcpus": 2, "numa_nodes": 2, "vcpus_max": 4}, "vcpus_max", "2 NUMA nodes can't get more vCPUs"),
        ({"vcpus": 2, "numa_nodes": 2, "memory_max_mib": 1024}, "memory_max_mib", "can't get more memory"),
        ({"hugepages": "2M", "memory_max_mib": 1024}, "memory_max_mib", "can't grow"),
        ({"numa_nodes": 2}, "numa_nodes", "1 vCPUs can't be split"),
        ({"vcpus": 2, "memory_mib": 257, "numa_nodes": 2}, "numa_nodes", "257 MiB can't be split"),
        ({"hugepages": "1G"}, "memory_mib", "256 MiB can't be split evenly into huge pages of 1G"),
        ({"hugepages": "2M", "vcpus": 2, "numa_nodes": 2, "memory_mib": 258}, "memory_mib", "huge pages of 2M"),
    ],
)
def test_what_does_not_go_together_is_refused_by_field(fields: dict[str, Any], field: str, why: str) -> None:
    with pytest.raises(InvalidInput, match=why) as refused:
        check(spec(**fields))
    assert refused.value.field == field


def test_all_of_it_goes_together_otherwise() -> None:
    check(VmFields())
    check(spec(vcpus=4, memory_mib=4096, numa_nodes=2, hugepages="1G", cpu_policy="dedicated"))


def with_(cpus: int = 4, **inventory: int) -> Node:
    plain = node()
    assert plain.status.inventory is not None
    has = msgspec.structs.replace(plain.status.inventory, cpus=cpus, **inventory)
    return msgspec.structs.replace(plain, status=msgspec.structs.replace(plain.status, inventory=has))


DEDICATED = {"cpu_policy": "dedicated"}


@pytest.mark.parametrize(
    ("load", "fields", "why"),
    [
        (Load(), {**DEDICATED, "vcpus": 3}, None),
        (Load(), {**DEDICATED, "vcpus": 4}, "can dedicate 3 more of its 4 CPUs"),
        (Load(2, 0, 2), {**DEDICATED, "vcpus": 2}, "can dedicate 1 more of its 4 CPUs"),
        (Load(3 + 32, 0, 3), {"vcpus": 1}, "33 vCPUs would share 1 CPUs, which take 32"),
        (Load(3 + 31, 0, 3), {"vcpus": 1}, None),
        (Load(33), {**DEDICATED, "vcpus": 3}, "33 vCPUs would share 1 CPUs"),
    ],
)
def test_a_node_dedicates_each_cpu_once_and_keeps_one_for_all_others(
    load: Load, fields: dict[str, Any], why: str | None
) -> None:
    found = no_room(with_(), load, spec(**fields))
    assert found is None if why is None else why in str(found)


@pytest.mark.parametrize(
    ("load", "fields", "why"),
    [
        (Load(), {"hugepages": "2M", "memory_mib": 512}, None),
        (Load(0, 3500), {"hugepages": "2M", "memory_mib": 512}, None),
        (Load(0, 0, 0, 256), {"hugepages": "2M", "memory_mib": 512}, "has 256 of its 512 MiB in huge pages of 2M free"),
        (Load(), {"hugepages": "1G", "memory_mib": 1024}, "has no huge pages of 1G"),
        (Load(), {"memory_mib": 3073}, "3072 MiB of memory free, 3073 MiB needed"),
        (Load(0, 0, 0, 512), {"memory_mib": 3072}, None),
    ],
)
def test_huge_pages_are_no_room_for_other_memory_nor_the_other_way_round(
    load: Load, fields: dict[str, Any], why: str | None
) -> None:
    found = no_room(with_(huge_2m_mib=512), load, spec(**fields))
    assert found is None if why is None else why in str(found)


def test_a_fleet_counts_what_each_vm_has_for_itself_and_gives_it_back() -> None:
    fleet = Fleet([with_(huge_2m_mib=512)])
    first = Wish("vm-a", spec(**DEDICATED, vcpus=2, hugepages="2M"))
    second = Wish("vm-b", spec(**DEDICATED, vcpus=2))
    assert fleet.place(first) == "n"
    assert fleet.loads["n"] == Load(2, 0, 2, 256, 0)
    assert fleet.place(second) is None
    fleet.leave(first, "n")
    assert fleet.loads["n"] == Load()
    assert fleet.place(second) == "n"


def test_no_more_huge_pages_count_than_the_memory_that_was_accepted() -> None:
    reported = with_(huge_2m_mib=4096, huge_1g_mib=4096)
    assert reported.status.inventory is not None
    accepted = msgspec.structs.replace(reported.spec, capacity=Capacity(2, 1024))
    counts = counted(reported.status.inventory, accepted)
    assert (counts.huge_2m_mib, counts.huge_1g_mib) == (1024, 1024)


def test_qemu_gets_the_memory_as_it_is_split() -> None:
    plain = MemoryLayout()
    assert guest_memory.arguments(plain, 2, 256) == []
    assert guest_memory.machine_options(plain) == guest_memory.topology(plain, 2) == ""
    huge = MemoryLayout(1, HugePages.SIZE_2M)
    memfd = "memory-backend-memfd,hugetlb=on,hugetlbsize=2M,prealloc=on"
    assert guest_memory.arguments(huge, 2, 256) == ["-object", f"{memfd},id=ram0,size=256M"]
    assert guest_memory.machine_options(huge) == ",memory-backend=ram0"
    cells = MemoryLayout(2, HugePages.NONE, (1, None))
    assert guest_memory.machine_options(cells) == ""
    assert guest_memory.topology(cells, 4) == ",sockets=2,cores=2,threads=1"
    assert guest_memory.arguments(cells, 4, 256) == [
        "-object", "memory-backend-ram,id=ram0,size=128M,host-nodes=1,policy=preferred",
        "-numa", "node,nodeid=0,cpus=0-1,memdev=ram0",
        "-object", "memory-backend-ram,id=ram1,size=128M",
        "-numa", "node,nodeid=1,cpus=2-3,memdev=ram1",
    ]  # fmt: skip


def test_a_vm_that_only_shows_whether_it_starts_has_nothing_of_its_node_for_itself() -> None:
    """A proof of a backup must not fail because no huge page is free."""
    vm = spec(vcpus=2, cpu_policy="dedicated", hugepages="2M", numa_nodes=2)
    like_it, proof = fresh(vm), msgspec.structs.replace(fresh(vm), **ISOLATED)
    assert Load().changed(like_it, 1) == Load(2, 0, 2, 256, 0)
    assert Load().changed(proof, 1) == Load(2, 256) and proof.numa_nodes == 2


def test_vm_show_says_what_a_vm_has_of_its_node_for_itself() -> None:
    vm = {"spec": msgspec.to_builtins(spec(cpu_policy="dedicated", hugepages="2M", vcpus=2, numa_nodes=2))}
    shown = {column: DETAILS[column](vm) for column in ("CPU POLICY", "NUMA NODES", "HUGE PAGES")}
    assert shown == {"CPU POLICY": "dedicated", "NUMA NODES": 2, "HUGE PAGES": "2M"}
    older: dict[str, Any] = {"spec": {}}
    assert all(DETAILS[column](older) is None for column in shown), "of a server that does not know them"

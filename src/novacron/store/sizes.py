"""How large VMs may be: what their image, node and hardware allow."""

from __future__ import annotations

from typing import Any

import msgspec

from novacron.model import limits, topology
from novacron.model.devices import HugePages
from novacron.model.errors import IllegalState, InvalidInput, NoCapacity
from novacron.model.fit import no_room
from novacron.model.vm import Vm, VmSpec, VmState, is_off
from novacron.store import nodes
from novacron.store.database import Connection


async def image_disk_mib(connection: Connection, image: str) -> int | None:
    """Return the size of the disk that VMs of an image have, 0 for none; None where no node has said."""
    sizes = [
        held.disk_bytes
        for node in await nodes.all(connection)
        for held in (node.status.inventory.images if node.status.inventory else ())
        if held.name == image
    ]
    return -(-max(sizes) >> 20) if sizes else None


async def check_disk(connection: Connection, image: str, has_mib: int, requested_mib: int) -> None:
    """Raise InvalidInput unless a VM of this image can have ``requested_mib`` of disk, if it has ``has_mib``."""
    of_image_mib = await image_disk_mib(connection, image)
    if of_image_mib == 0:
        raise InvalidInput(f"VMs of image {image} have no disk", field="disk_mib", hint="leave it out")
    has_mib = max(has_mib, of_image_mib or 0)
    if requested_mib < has_mib:
        raise InvalidInput(f"the disk has {has_mib} MiB, and can only grow", field="disk_mib")


def of(spec: VmSpec) -> tuple[object, ...]:
    """Return all that makes up the size of a VM."""
    return spec.vcpus, spec.memory_mib, spec.vcpus_max, spec.memory_max_mib, spec.cpu_policy, spec.hugepages


def check_maxima(spec: VmSpec) -> None:
    """Raise InvalidInput when a VM could grow to less than it has."""
    for field, value, most in (
        ("vcpus_max", spec.vcpus, spec.vcpus_max),
        ("memory_max_mib", spec.memory_mib, spec.memory_max_mib),
    ):
        if most is not None and most < value:
            raise InvalidInput(f"{most} is less than its current {value}", field=field)
    if spec.memory_max_mib is not None and spec.memory_mib < limits.GROWING_MEMORY_MIB_MIN:
        raise InvalidInput(
            f"a guest whose memory may grow needs {limits.GROWING_MEMORY_MIB_MIN} MiB at the start", field="memory_mib"
        )
    topology.check(spec)


def by_balloon(vm: Vm, changes: dict[str, Any]) -> dict[str, Any]:
    """Return changes of a VM in which less memory for a guest that runs is less of it that the guest is to have.

    Raises IllegalState, InvalidInput.
    """
    if is_off(vm) and vm.spec.balloon_mib is not None:  # it starts with that much
        changes = {"memory_mib": vm.spec.balloon_mib, **changes}
    wanted_mib, has = changes.get("memory_mib"), vm.status.hardware
    if wanted_mib is None:
        return changes
    runs = vm.status.state in (VmState.RUNNING, VmState.PAUSED) and has is not None
    if not runs or wanted_mib >= vm.spec.memory_mib:
        return changes if vm.spec.balloon_mib is None else {**changes, "balloon_mib": None}
    assert has is not None
    if vm.spec.devices or not has.balloon:
        why = "it was started without a balloon"
        if vm.spec.devices:
            why = "it has host devices, which pin all of its memory"
        elif vm.spec.hugepages is not HugePages.NONE:
            why = "it consists of huge pages, which its node has set aside for VMs anyway"
        raise IllegalState(
            f"VM {vm.name} can't release memory while it runs: {why}", field="memory_mib",
            hint=f"novacron vm stop {vm.name} --wait",
        )  # fmt: skip
    check_maxima(msgspec.structs.replace(vm.spec, memory_mib=wanted_mib))
    return {**{field: value for field, value in changes.items() if field != "memory_mib"}, "balloon_mib": wanted_mib}


def _grows(vm: Vm, spec: VmSpec) -> bool:
    """Say whether a VM that runs can take another size without being stopped. Raises InvalidInput."""
    has, was = vm.status.hardware, vm.spec
    maxima = (spec.vcpus_max, spec.memory_max_mib) == (was.vcpus_max, was.memory_max_mib)
    parts = (spec.cpu_policy, spec.hugepages) == (was.cpu_policy, was.hugepages)
    if vm.status.state not in (VmState.RUNNING, VmState.PAUSED) or has is None or not (maxima and parts):
        return False
    if spec.vcpus < was.vcpus or spec.memory_mib < was.memory_mib:
        return False
    if (spec.vcpus > was.vcpus and was.vcpus_max is None) or (
        spec.memory_mib > was.memory_mib and was.memory_max_mib is None
    ):
        return False
    more_mib = spec.memory_mib - has.memory_in_all_mib
    if more_mib > 0 and more_mib % limits.MEMORY_STEP_MIB:
        raise InvalidInput(
            f"while it runs, its memory can only grow in steps of {limits.MEMORY_STEP_MIB} MiB, not by {more_mib}",
            field="memory_mib",
        )
    if more_mib > 0 and len(has.dimms_mib) >= limits.MEMORY_SLOTS:
        raise InvalidInput(
            f"its memory has grown {limits.MEMORY_SLOTS} times since it was started", field="memory_mib",
            hint="stop it first",
        )  # fmt: skip
    return True


async def check_resize(connection: Connection, vm: Vm, spec: VmSpec) -> None:
    """Raise InvalidInput, IllegalState or NoCapacity unless the VM can have another size: at once if it runs and may
    grow so far, else when it starts next."""
    if not is_off(vm) and not _grows(vm, spec):
        raise IllegalState(
            f"the size of VM {vm.name} can only change while it is stopped; it is {vm.status.state}"
            " (stop it explicitly)",
            hint=f"novacron vm stop {vm.name} --wait",
        )
    if vm.node is None:
        return
    await nodes.take_turn(connection)
    node = await nodes.get(connection, vm.node)
    load = await nodes.load(connection, vm.node)
    why = no_room(node, load.changed(vm.spec, -1), spec)
    if why is not None:
        raise NoCapacity(why, field="memory_mib", hint="move it to a larger node first, or see: novacron node list")

"""Whether a VM fits on a node, and if not, why. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from novacron.model import limits
from novacron.model.constraints import Effect
from novacron.model.cpu import named
from novacron.model.devices import CpuPolicy, HugePages
from novacron.model.network import TUNNEL_BYTES, Encryption, Network, NetworkKind, NetworkSpec
from novacron.model.node import Inventory, Load, Node, holds
from novacron.model.vm import VmSpec, VmStatus

NO_NETWORKS: Mapping[str, Network] = {}


def free_share(node: Node) -> float:
    """Return the share of a node's local pool that is free, from 0 to 1."""
    pools = () if node.status.inventory is None else node.status.inventory.pools
    local = next((pool for pool in pools if pool.name == limits.LOCAL_POOL), None)
    return 0.0 if local is None else local.bytes_free / max(1, local.bytes_total)


def ordinary_memory_mib(inventory: Inventory) -> int:
    """Return how much memory of a node VMs can have, beside its huge pages and what the host needs itself."""
    return inventory.memory_mib - limits.NODE_MEMORY_RESERVE_MIB - inventory.huge_2m_mib - inventory.huge_1g_mib


def capacity(node: Node) -> tuple[float, float]:
    """Return how much memory, in MiB, and how many vCPUs may be placed on a node, overcommitment included."""
    inventory = node.status.inventory
    if inventory is None:
        return 0.0, 0.0
    memory_mib = ordinary_memory_mib(inventory) * node.spec.memory_overcommit
    return memory_mib, inventory.cpus * node.spec.vcpu_overcommit


def refusal(
    node: Node, vm: VmSpec, image_comes: bool, networks: Mapping[str, Network] = NO_NETWORKS, *, media_come: bool = True
) -> str | None:
    """Return why a VM can't be placed on a node, however much room the node has, or None if it can.

    ``image_comes``: the image can be copied from another node; ``media_come``: so can its ISOs and kernel.
    ``networks``: all networks, by name.
    """
    inventory = node.status.inventory
    if inventory is None:
        return _not_ready(node)
    return (
        refusal_of_all(node)
        or _refusal_by_rules(node, vm)
        or (None if image_comes or holds(node, vm.image) else f"node {node.name} does not hold image {vm.image}")
        or (None if media_come else _refusal_by_media(node, vm))
        or refusal_by_hardware(node, inventory, vm)
        or refusal_by_networks(node, inventory, vm, networks)
    )


def refusal_of_all(node: Node, *, named: bool = False) -> str | None:
    """Return why a node gets nothing that is not on it yet, whatever it is, or None if it does.

    Whoever chooses a node for anything asks this. ``named``: a user has chosen it, which a cordon does not forbid.
    """
    if not node.status.ready or node.status.inventory is None:
        return _not_ready(node)
    if not node.spec.accepted:
        return f"node {node.name} has not been accepted: see novacron node accept --help"
    if node.spec.cordoned and not named:
        return f"node {node.name} is cordoned"
    wrong = next((condition for condition in node.status.conditions if condition.keeps_vms_away), None)
    return None if wrong is None else f"node {node.name} takes nothing new ({wrong.reason}): {wrong.message}"


def _not_ready(node: Node) -> str:
    why = f": {node.status.reason}" if node.status.reason else ""
    return f"node {node.name} is not ready{why}"


def _refusal_by_rules(node: Node, vm: VmSpec) -> str | None:
    """Return which label the node lacks, or which taint keeps the VM away."""
    where = vm.placement
    for key, value in where.labels.items():
        if node.spec.labels.get(key) != value:
            return f"node {node.name} does not have the label {key}={value}"
    for taint in node.spec.taints:
        if taint.effect is Effect.NO_SCHEDULE and taint.key not in where.tolerations:
            return f"node {node.name} has the taint {taint.key}, which the VM does not tolerate"
    return None


def _refusal_by_media(node: Node, vm: VmSpec) -> str | None:
    """Return which ISO or kernel of the VM the node does not hold."""
    missing = next((name for name in vm.media if not holds(node, name)), None)
    if missing is None:
        return None
    return f"node {node.name} does not hold {vm.media[missing]} {missing}: novacron image copy {missing} {node.name}"


def refusal_by_hardware(node: Node, inventory: Inventory, vm: VmSpec) -> str | None:
    """Return which firmware, TPM, machine type, CPU feature or device the VM needs and the node lacks."""
    if vm.firmware not in inventory.firmware:
        return f"node {node.name} has no firmware {vm.firmware}: apt-get install ovmf"
    if vm.tpm and not inventory.tpm:
        return f"node {node.name} has no TPM for VMs: apt-get install swtpm"
    if vm.machine is not None and inventory.machines and vm.machine not in inventory.machines:
        return f"QEMU {inventory.qemu_version} of node {node.name} has no machine type {vm.machine}"
    missing = [] if inventory.cpu is None else inventory.cpu.lacks(vm.cpu_flags)
    if missing:
        return f"node {node.name} has no processor with {named(missing)}"
    gives = given_devices(node)
    for id, count in Counter(vm.devices).items():
        if count > gives[id]:
            return f"node {node.name} gives {gives[id] or 'no'} devices {id} to VMs, {count} needed"
    return None


def refusal_by_networks(node: Node, inventory: Inventory, vm: VmSpec, networks: Mapping[str, Network]) -> str | None:
    """Return which network of the VM the node can't connect to."""
    for nic in vm.nics:
        why = _lacks(inventory, networks[nic.network]) if nic.network in networks else f"there is no {nic.network}"
        if why is not None:
            return f"node {node.name} can't have network {nic.network}: {why}"
    return None


def given_devices(node: Node) -> Counter[str]:
    """Return how many devices of each id a node can pass through: those that are listed and confined by an IOMMU."""
    has = node.status.inventory
    devices = () if has is None or has.hardware is None else has.hardware.devices
    return Counter(
        device.id for device in devices if device.address in node.spec.passthrough and device.iommu_group is not None
    )


def _lacks(has: Inventory, network: Network) -> str | None:
    """Return why a node can't connect to a network, or None if it can."""
    if not has.networks:
        return "it lacks what networks need: see MISSING in novacron node show"
    if network.spec.kind is NetworkKind.BRIDGE:
        return _lacks_bridge(has, network.spec)
    if network.encryption is Encryption.ALWAYS and not has.wireguard:
        return "it can't encrypt: see MISSING in novacron node show"
    carries = has.tunnel_mtu - TUNNEL_BYTES
    return f"it carries {carries} bytes at most, not {network.mtu}" if carries < network.mtu else None


def _lacks_bridge(has: Inventory, spec: NetworkSpec) -> str | None:
    if spec.bridge not in has.bridges:
        return f"it has no bridge {spec.bridge}"
    if spec.vlan is None or has.vlan_bridges is None or spec.bridge in has.vlan_bridges:
        return None
    return f"its bridge {spec.bridge} does not filter VLANs: ip link set {spec.bridge} type bridge vlan_filtering 1"


def no_room(node: Node, load: Load, vm: VmSpec) -> str | None:
    """Return why a node that carries ``load`` has no room for a VM, or None if it has."""
    if node.status.inventory is None:
        return f"node {node.name} has not reported its inventory"
    memory_mib, vcpus = capacity(node)
    room_mib = int(memory_mib) - load.memory_mib
    if vm.hugepages is not HugePages.NONE:
        why = _no_huge_pages(node.name, node.status.inventory, load, vm)
    elif vm.memory_mib > room_mib:
        why = f"node {node.name} is full: {max(room_mib, 0)} MiB of memory free, {vm.memory_mib} MiB needed"
    else:
        why = None
    if why is not None:
        return why
    if load.dedicated_vcpus or vm.cpu_policy is CpuPolicy.DEDICATED:
        return _no_cpus(node, node.status.inventory.cpus, load, vm)
    if vm.vcpus > vcpus - load.vcpus:
        return f"node {node.name} is full: {load.vcpus} of {vcpus:g} vCPUs placed, {vm.vcpus} needed"
    return None


def _no_huge_pages(name: str, has: Inventory, load: Load, vm: VmSpec) -> str | None:
    big = vm.hugepages is HugePages.SIZE_1G
    total, taken = (has.huge_1g_mib, load.huge_1g_mib) if big else (has.huge_2m_mib, load.huge_2m_mib)
    if vm.memory_mib <= total - taken:
        return None
    if not total:
        return f"node {name} has no huge pages of {vm.hugepages}: set some aside there (/proc/sys/vm/nr_hugepages)"
    free = f"{max(0, total - taken)} of its {total} MiB in huge pages of {vm.hugepages} free"
    return f"node {name} has {free}, {vm.memory_mib} MiB needed"


def _no_cpus(node: Node, cpus: int, load: Load, vm: VmSpec) -> str | None:
    """Return why a node with dedicated CPUs, or one that would have them, has too few, or None if it has enough."""
    after = load.changed(vm, 1)
    room = cpus - limits.NODE_CPUS_RESERVE - load.dedicated_vcpus
    if after.dedicated_vcpus > load.dedicated_vcpus and vm.vcpus > room:
        return f"node {node.name} can dedicate {max(0, room)} more of its {cpus} CPUs to VMs, {vm.vcpus} needed"
    left = cpus - after.dedicated_vcpus
    shared, takes = after.vcpus - after.dedicated_vcpus, left * node.spec.vcpu_overcommit
    if shared > takes:
        return f"node {node.name} is full: {shared} vCPUs would share {left} CPUs, which take {takes:g}"
    return None


def cannot_run(node: Node, status: VmStatus, *, runs: bool) -> str | None:
    """Return why a node can't run a VM as it was started, or None if it can. ``runs``: the VM moves while it runs."""
    inventory = node.status.inventory
    if inventory is None:
        return None
    reason = None
    if status.machine and inventory.machines and status.machine not in inventory.machines:
        reason = f"its QEMU {inventory.qemu_version} has no machine type {status.machine}"
    elif runs and status.accelerator and status.accelerator != inventory.accelerator.kind:
        reason = f"it runs guests under {inventory.accelerator.kind}, not {status.accelerator}"
    elif runs and not inventory.plugs_nics and _has_places(status):
        reason = (
            "its agent's version does not support changing interfaces of running VMs; stop the VM, or upgrade the agent"
        )
    elif status.cpu is not None and inventory.cpu is not None:
        reason = inventory.cpu.cannot_be(status.cpu)
    return None if reason is None else f"node {node.name} can't run it as it was started: {reason}"


def _has_places(status: VmStatus) -> bool:
    """Say whether interfaces of a running guest have places of their own, which a node has to know."""
    nics = None if status.hardware is None else status.hardware.nics
    return nics is not None and (nics.changed or nics.ports > 0)

"""Network interfaces that a VM gets, loses, or that change networks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec

from novacron.model.errors import Conflict, IllegalState, InvalidInput, NoCapacity, NotFound
from novacron.model.fit import refusal_by_networks
from novacron.model.limits import NICS_PER_VM_MAX
from novacron.model.network import NicSpec
from novacron.model.plugged import RunningMachine
from novacron.model.vm import Power, Vm, VmAction, VmSpec, VmState, is_off, mac_addresses, with_mac_addresses
from novacron.store import events, macs, networks, nodes, projects, snapshot_memory, vms
from novacron.store.database import Connection
from novacron.telemetry import traces

MTUS = "SELECT name, mtu FROM networks WHERE name = ANY($1)"


class NicChange(NamedTuple):
    """A change of a VM's interfaces that somebody asks for."""

    vm: str
    if_match: int | None
    actor: str


async def add(connection: Connection, asked: NicChange, nic: NicSpec) -> Vm:
    """Give a VM an interface more. One without networks gives up its place in the hosts' network, and the new interface
    has that one's MAC address unless it names its own.

    Raises NotFound, IllegalState, Conflict, InvalidInput, NoCapacity.
    """

    def more(vm: Vm) -> Sequence[NicSpec]:
        if len(vm.spec.nics) >= NICS_PER_VM_MAX:
            raise Conflict(
                f"VM {vm.name} has {NICS_PER_VM_MAX} interfaces, which is the limit", hint="remove one first"
            )
        return *vm.spec.nics, msgspec.structs.replace(nic, mac=nic.mac or (vm.spec.mac if not vm.spec.nics else None))

    return await _change(connection, asked, more, f"in network {nic.network}", "InterfaceAdded")


async def configure(connection: Connection, asked: NicChange, mac: str, changes: dict[str, object]) -> Vm:
    """Change an interface's network, address or security groups. In another network it gets another address.

    Raises NotFound, IllegalState, Conflict, InvalidInput, NoCapacity.
    """

    def changed(vm: Vm) -> Sequence[NicSpec]:
        number = _number(vm, mac)
        before = vm.spec.nics[number]
        moves = changes.get("network", before.network) != before.network
        after = msgspec.structs.replace(before, **({"address": None, "address6": None} if moves else {}), **changes)
        return *vm.spec.nics[:number], after, *vm.spec.nics[number + 1 :]

    said = ", ".join(f"{field} {value}" for field, value in changes.items())
    return await _change(connection, asked, changed, f"{mac}: {said}", "InterfaceConfigured")


async def remove(connection: Connection, asked: NicChange, mac: str) -> Vm:
    """Take an interface from a VM. With the last, it is in the hosts' network again, if its project may be.

    Raises NotFound, IllegalState, Conflict, InvalidInput.
    """

    def fewer(vm: Vm) -> Sequence[NicSpec]:
        number = _number(vm, mac)
        return *vm.spec.nics[:number], *vm.spec.nics[number + 1 :]

    return await _change(connection, asked, fewer, mac, "InterfaceRemoved")


def _number(vm: Vm, mac: str) -> int:
    """Return the place of an interface among a VM's. Raises NotFound."""
    addresses = mac_addresses(vm.id, vm.spec) if vm.spec.nics else ()
    if mac.lower() not in addresses:
        raise NotFound(
            f"VM {vm.name} has no interface {mac} in a network", field="mac",
            hint=f"it has {', '.join(addresses) or 'none'}",
        )  # fmt: skip
    return addresses.index(mac.lower())


async def _change(
    connection: Connection, asked: NicChange, make: Callable[[Vm], Sequence[NicSpec]], said: str, reason: str
) -> Vm:
    vm = await vms.get(connection, asked.vm, lock=True)
    vms.check_action(vm, VmAction.CONFIGURE, asked.if_match)
    vm = msgspec.structs.replace(vm, spec=with_mac_addresses(vm.id, vm.spec))
    nics = tuple(make(vm))
    await _check_changeable(connection, vm, nics)
    await _check_running(connection, vm, nics)
    spec = await _placed(connection, vm, nics)
    row = await connection.fetchrow(
        "UPDATE vms SET spec = $2, trace = $3 WHERE id = $1 RETURNING *",
        vm.id, msgspec.to_builtins(spec), traces.carry(),
    )  # fmt: skip
    await networks.attach(connection, vm.id, spec)
    await events.record(connection, events.NewEvent("vm", vm.id, vm.name, reason, said, asked.actor, vm.project))
    return vms.of_row(row)


async def _check_changeable(connection: Connection, vm: Vm, nics: Sequence[NicSpec]) -> None:
    """Raise IllegalState or Conflict when something hinders a change of a VM's interfaces."""
    await snapshot_memory.check_none(connection, vm, "interfaces")
    left = {nic.network for nic in vm.spec.nics} - {nic.network for nic in nics}
    kept = {(nic.network, nic.address) for nic in nics}
    for nic in vm.spec.nics:  # an address that others lead to
        if (nic.network, nic.address) not in kept:
            left.add(nic.network)
    leads = await connection.fetchval(
        "SELECT 'forward ' || id || ' leads' FROM forwards WHERE vm = $1 AND network = ANY($2)"
        " UNION ALL SELECT 'floating address ' || address || ' leads' FROM floating_addresses"
        " WHERE vm = $1 AND network = ANY($2) LIMIT 1",
        vm.id, sorted(left),
    )  # fmt: skip
    if leads is not None:
        raise Conflict(f"{leads} to VM {vm.name} through this interface", hint="delete or detach it first")


async def _check_running(connection: Connection, vm: Vm, nics: Sequence[NicSpec]) -> None:
    """Raise IllegalState when a VM that is not off can't get or lose interfaces, or move them to other networks."""
    if is_off(vm):
        return
    if vm.status.state is not VmState.RUNNING or vm.spec.power is not Power.RUNNING:
        raise _only_while_off(vm, None, f"it is {vm.status.state}, and must be running, or stopped explicitly")
    if not (vm.spec.nics and nics):
        raise _only_while_off(vm, "network", "it can't join or leave the host's own network while it runs")
    has = None if vm.status.hardware is None else vm.status.hardware.nics
    can = RunningMachine(vm.status.machine, vm.spec.nic_model, has, vm.spec.network_boot_order is not None)
    before, after = _by_mac(vm.spec.nics), _by_mac(nics)
    added = None if all(nic.mac in before for nic in nics) else can.cannot_add()
    if added is not None:
        raise _only_while_off(vm, "network", added)
    for why in filter(None, (can.cannot_remove(str(address)) for address in before.keys() - after.keys())):
        raise _only_while_off(vm, "mac", why)
    await _check_packets(connection, vm, [(before[mac], after[mac]) for mac in before.keys() & after.keys()])


async def _check_packets(connection: Connection, vm: Vm, moved: Sequence[tuple[NicSpec, NicSpec]]) -> None:
    """Raise IllegalState when a guest would send packets that are too large for the network of an interface."""
    names = {nic.network for pair in moved for nic in pair}
    mtus = {row["name"]: row["mtu"] for row in await connection.fetch(MTUS, sorted(names))}
    for was, is_ in moved:
        if is_.network in mtus and mtus[is_.network] < mtus.get(was.network, 0):  # what is not there is refused later
            raise _only_while_off(
                vm, "network", f"its guest uses MTU {mtus[was.network]}, and network {is_.network}"
                f" has MTU {mtus[is_.network]}",
            )  # fmt: skip


def _only_while_off(vm: Vm, field: str | None, why: str) -> IllegalState:
    return IllegalState(
        f"this interface of VM {vm.name} can only change while the VM is off: {why}", field=field,
        hint=f"novacron vm stop {vm.name} --wait",
    )  # fmt: skip


def _by_mac(nics: Sequence[NicSpec]) -> dict[str | None, NicSpec]:
    return {nic.mac: nic for nic in nics}


async def _placed(connection: Connection, vm: Vm, nics: tuple[NicSpec, ...]) -> VmSpec:
    """Return a VM's spec with these interfaces, with all addresses that they get, which are free and on its node."""
    if not nics and not (await projects.get(connection, vm.project)).host_network:
        raise InvalidInput(
            f"VMs of project {vm.project} need a network", hint="add another interface first: novacron vm nic add"
        )
    if not nics:  # as before it was in a network
        has = mac_addresses(vm.id, vm.spec)
        spec = msgspec.structs.replace(vm.spec, nics=(), mac=has[0])
    else:
        spec = msgspec.structs.replace(vm.spec, nics=nics, mac=None, address=None)
    await macs.check_kept_or_free(connection, vm, spec)
    await connection.execute("DELETE FROM nics WHERE vm = $1", vm.id)
    spec = await networks.give_addresses(connection, macs.assign(spec), vm.project)
    if vm.node is not None:
        node = await nodes.get(connection, vm.node)
        known = {network.name: network for network in await networks.of_nics(connection, spec.nics)}
        why = None if node.status.inventory is None else refusal_by_networks(node, node.status.inventory, spec, known)
        if why is not None:
            raise NoCapacity(why, field="network", hint=f"novacron vm migrate {vm.name} --to NODE")
    return spec

"""What agents leave on a host beside QEMUs: networks, taps and cgroups, each marked with whose it is.

All of it outlives an agent, and the state folder that knew of it may be gone. So each agent notes, in ``/run``, under
an id that follows from its state folder, who it is (``Instance``); namespaces, files and rules carry that id in their
names, taps and cgroups in a mark, with the VM that they are for. What has no mark is nobody's to remove.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from enum import StrEnum
from pathlib import Path

import msgspec

from novacron.agent.host.instances import (
    INSTANCE_CHARS,
    NOTE_SUFFIX,
    PREFIX,
    RUN_DIR,
    instance_of,
    prefix_of,
    table_of,
    tunnel_of,
)
from novacron.model.errors import MALFORMED
from novacron.net import dnsmasq, firewall, namespace, tap, wireguard
from novacron.net.tap import NetworkFailed
from novacron.qemu import confine

INSTANCE_BYTES_MAX = 4096


class Instance(msgspec.Struct, frozen=True):
    """An agent, as it notes itself on its host."""

    owner: str
    """Installation and node, as ``identity.owner`` says it."""
    state_dir: str


class RemnantKind(StrEnum):
    NETWORKS = "networks"
    TAP = "tap"
    CGROUP = "cgroup"


class Remnant(msgspec.Struct, frozen=True):
    """Something on this host that an agent has made."""

    kind: RemnantKind
    name: str
    """Of the tap or the cgroup; of networks: with what the names of their namespaces begin."""
    instance: str
    by: Instance | None
    """Who made it; None: not known."""
    vm: str = ""
    netns: str | None = None
    """Where the tap is; None: in the host's own namespace."""


class RemnantSituation(msgspec.Struct, frozen=True):
    """How things are, as far as the fate of a remnant depends on them."""

    known: bool = True
    """It is known who made it."""
    same_installation: bool = True
    same_node: bool = True
    same_folder: bool = True
    needed: bool = False
    """A QEMU that runs uses it, or its VM is in this agent's state folder."""
    agent_lives: bool = False
    agent_may_return: bool = False
    """The state folder of whoever made it is where it was."""


def is_ownerless(situation: RemnantSituation) -> bool:
    """Say whether an agent that starts may remove a remnant: nobody else has a claim on it. Pure."""
    if not situation.known or not situation.same_installation or situation.needed:
        return False
    if situation.same_node:  # one agent of a node works on a host, and this is it
        return True
    return not situation.agent_lives and not situation.agent_may_return


def note_instance(state_dir: Path, owner: str) -> None:
    """Note who works in a state folder. Raises OSError."""
    RUN_DIR.mkdir(mode=0o755, parents=True, exist_ok=True)
    path = RUN_DIR / f"{instance_of(state_dir)}.{NOTE_SUFFIX}"
    scratch = path.with_suffix(".new")
    scratch.write_bytes(msgspec.json.encode(Instance(owner, str(state_dir.resolve()))))
    scratch.rename(path)


def instances() -> dict[str, Instance]:
    """Return the agents that have noted themselves on this host, by their ids."""
    noted = {}
    for path in RUN_DIR.glob(f"*.{NOTE_SUFFIX}"):
        with contextlib.suppress(OSError, *MALFORMED), path.open("rb") as file:
            noted[path.stem] = msgspec.json.decode(file.read(INSTANCE_BYTES_MAX), type=Instance)
    return noted


def find() -> list[Remnant]:
    """Return what agents have made on this host. Taps are looked for in the network namespace of this process, and in
    networks of agents that are known. Raises NetworkFailed, OSError."""
    noted = instances()
    remnants = [
        Remnant(RemnantKind.NETWORKS, prefix_of(instance), instance, noted.get(instance))
        for instance in sorted(_instances_with_networks() | noted.keys())
    ]
    named = [name for instance in noted for name in namespace.all(prefix_of(instance))]
    places = [None, *(name for name in named if namespace.exists(name))]
    marked = [(RemnantKind.TAP, name, mark, netns) for netns in places for name, mark in _taps(netns)]
    marked += [(RemnantKind.CGROUP, name, mark, None) for name, mark in confine.cgroups()]
    for kind, name, mark, netns in marked:
        instance, _, vm = mark.partition(" ")
        remnants.append(Remnant(kind, name, instance, noted.get(instance), vm, netns))
    return remnants


def _taps(netns: str | None) -> list[tuple[str, str]]:
    with contextlib.suppress(NetworkFailed):  # the namespace goes at this moment
        return namespace.within(netns, tap.marked)
    return []


def _instances_with_networks() -> set[str]:
    named = (name.removeprefix(PREFIX).partition("-") for name in namespace.all(PREFIX))
    return {instance for instance, dash, _ in named if dash and len(instance) == INSTANCE_CHARS}


def is_there(remnant: Remnant) -> bool:
    """Say whether anything is left of networks: the note of an agent alone is nothing."""
    files = RUN_DIR.glob(f"{remnant.instance}-*")
    return remnant.kind is not RemnantKind.NETWORKS or bool(namespace.all(remnant.name)) or any(files)


def remove(remnant: Remnant) -> None:
    """Remove it. Raises NetworkFailed, OSError."""
    match remnant.kind:
        case RemnantKind.TAP:
            if remnant.netns is None or namespace.exists(remnant.netns):
                namespace.within(remnant.netns, lambda: tap.delete(remnant.name))
        case RemnantKind.CGROUP:
            confine.Cgroup(remnant.name).remove()
        case RemnantKind.NETWORKS:
            remove_instance(remnant.instance)


def can_look() -> bool:
    """Say whether this process may see, and change, what agents make: that takes root."""
    return os.geteuid() == 0


def remove_instance(instance: str) -> None:
    """Remove all that an agent which is gone has of networks: also its files, its rules and its tunnel.

    Raises NetworkFailed, OSError.
    """
    for name in namespace.all(prefix_of(instance)):
        _remove_network(name)
    for directory in RUN_DIR.glob(f"{instance}-*"):  # their namespaces are gone already
        dnsmasq.end(directory)
        shutil.rmtree(directory)
    wireguard.remove(tunnel_of(instance))
    if shutil.which("nft") is not None:
        table = table_of(instance)
        firewall.nft("".join(f"table {kind} {table}\ndelete table {kind} {table}\n" for kind in ("ip", "bridge")))
    for suffix in ("wireguard", "forwards", NOTE_SUFFIX):
        (RUN_DIR / f"{instance}.{suffix}").unlink(missing_ok=True)


def _remove_network(name: str) -> None:
    directory = RUN_DIR / name.removeprefix(PREFIX)
    dnsmasq.end(directory)
    namespace.delete(name)
    shutil.rmtree(directory, ignore_errors=True)

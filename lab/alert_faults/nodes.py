"""Faults of nodes, of their VMs, and of the links between them."""

from __future__ import annotations

import contextlib
import subprocess
import threading
from collections.abc import Iterator

from lab.alert_faults.model import AlertFault, Mending, Scene
from lab.drills.nodes import fill, small_disk
from lab.platform import Object, Platform, Service, until
from lab.ports import free_ports

NODE, OTHER = "host-b", "host-a"
NEW_NODE = "host-c"
RESTART = "systemctl restart novacron-agent"
LOOK_S = 0.2
MIGRATIONS = 6
LINK_PORT = 7445


@contextlib.contextmanager
def killed_agent(scene: Scene) -> Iterator[Mending]:
    agent = scene.site.agents[NODE]
    agent.kill()
    try:
        yield Mending({RESTART: agent.start})
    finally:
        if not agent.running:
            agent.start()
        scene.site.wait_node(NODE)


@contextlib.contextmanager
def full_disk(scene: Scene) -> Iterator[Mending]:
    """The disk with the node's state has no byte left."""
    with small_disk(scene.site, NODE) as state:
        ballast = fill(state)
        try:
            yield Mending(answers={"host-mended": ballast.unlink})
        finally:
            scene.site.client.act("nodes", NODE, "uncordon")
    agent = scene.site.agents[NODE]
    if not agent.running:
        agent.start()
    scene.site.wait_node(NODE)


@contextlib.contextmanager
def crashing_vm(scene: Scene) -> Iterator[Mending]:
    """A VM's QEMU ends again and again, as often as it is started."""
    site, ended = scene.site, threading.Event()
    vm = site.client.create_vm(name="crashes", image="tiny", memory_mib=128, node=NODE, restart="on-failure")

    def kill() -> None:
        while not ended.wait(LOOK_S):
            site.kill_qemu(vm)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()

    def mend() -> None:
        ended.set()
        thread.join()

    try:
        yield Mending(answers={"cause-mended": mend})
    finally:
        mend()
        _delete(site, vm)


@contextlib.contextmanager
def no_room(scene: Scene) -> Iterator[Mending]:
    """No node takes VMs, and one waits for a node."""
    site = scene.site
    for node in (NODE, OTHER):
        site.client.act("nodes", node, "cordon")
    vm = site.client.create_vm(name="waits", image="tiny", memory_mib=128)
    directory, token = site.directory / NEW_NODE, scene.directory / "join-token"
    (port,) = free_ports(1)
    agent = Service(
        NEW_NODE,
        ["agent", "--name", NEW_NODE, "--state-dir", str(directory), "--images-dir", str(site.images_of(NEW_NODE)),
         "--advertise", "127.0.0.1", "--dwcp-port", str(port)],
        site.directory / f"{NEW_NODE}.log", [], {"NOVACRON_CONFIG": str(site.config)},
    )  # fmt: skip

    def make_token() -> None:
        token.unlink(missing_ok=True)
        site.cli("node", "join-token", "--node", NEW_NODE, "--file", str(token))

    try:
        yield Mending(
            {
                f"novacron node join-token --node {NEW_NODE} --file join-token": make_token,
                RESTART: lambda: agent.start("--join", f"@{token}"),
            },
            values={"node": NEW_NODE, "client": "/tmp/novacron.deb", "agent": "/tmp/novacron-agent.deb"},
        )
    finally:
        _delete(site, vm)
        if agent.running:
            agent.stop()
            until(lambda: _is_removed(site, NEW_NODE), f"{NEW_NODE} is removed", 90)
        for node in (NODE, OTHER):
            site.client.act("nodes", node, "uncordon")


@contextlib.contextmanager
def wrong_clock(scene: Scene) -> Iterator[Mending]:
    """The clock of a node is a minute and a half ahead, until its agent is started with the right one."""
    site, agent = scene.site, scene.site.agents[NODE]
    right = agent.arguments
    agent.stop()
    agent.arguments = ["faketime", "-f", "+90s", *right]
    agent.start()
    site.wait_node(NODE)

    def restart() -> None:
        agent.stop()
        agent.arguments = right
        agent.start()

    try:
        yield Mending({RESTART: restart})
    finally:
        if agent.arguments is not right:
            restart()
        site.wait_node(NODE)


@contextlib.contextmanager
def promised_memory(scene: Scene) -> Iterator[Mending]:
    """VMs of a node may use nearly all of its memory."""
    client = scene.site.client
    memory_mib = client.get("nodes", NODE)["status"]["inventory"]["memory_mib"]
    for node in (NODE, OTHER):
        scene.site.cli("node", "set", node, "--memory-overcommit", "3")
    vm = client.create_vm(name="large", image="tiny", memory_mib=memory_mib * 97 // 100, power="stopped", node=NODE)
    try:
        yield Mending()
    finally:
        client.act("nodes", NODE, "uncordon")
        _delete(scene.site, vm)
        for node in (NODE, OTHER):
            scene.site.cli("node", "set", node, "--memory-overcommit", "1")


def _is_removed(site: Platform, node: str) -> bool:
    return site.cli("node", "remove", node, check=False).returncode == 0


def _delete(site: Platform, vm: Object) -> None:
    site.client.delete("vms", vm["id"])
    until(lambda: vm["id"] not in {each["id"] for each in site.client.list("vms")}, "the VM is deleted", 60)


@contextlib.contextmanager
def closed_port(scene: Scene) -> Iterator[Mending]:
    """A firewall between the hosts drops what a migration sends, and migrations are tried."""
    site = scene.site
    vm = site.client.create_vm(name="stays", image="tiny", memory_mib=128, node=OTHER)
    site.wait_state(vm["id"], "running", 90)
    host = site.host(NODE)
    chain = f"chain input {{ type filter hook input priority 0; tcp dport {LINK_PORT} reject; }}"
    subprocess.run([*host.prefix, "nft", f"table inet closed {{ {chain} }}"], check=True)
    ended = threading.Event()

    def migrate() -> None:
        while not ended.wait(LOOK_S):
            site.cli("vm", "migrate", "stays", "--to", NODE, check=False)

    thread = threading.Thread(target=migrate, daemon=True)
    thread.start()

    def open_port() -> None:
        ended.set()
        thread.join()
        subprocess.run([*host.prefix, "nft", "delete", "table", "inet", "closed"], check=True)
        mended.append(True)

    mended = list[bool]()
    try:
        yield Mending(
            answers={"link-mended": open_port},
            values={"node": OTHER, "target": NODE},
        )
    finally:
        if not mended:
            open_port()
        _delete(site, vm)


ALL = (
    AlertFault("killed-agent", "the agent of a node is killed", ("NodeDown",), "incidents/node-down",
               killed_agent, {"node": NODE}),
    AlertFault("full-disk", "the disk under a node has no byte left", ("NodeDiskUnusable", "HostDiskAlmostFull"),
               "incidents/node-unhealthy", full_disk, {"node": NODE}, needs_root=True),
    AlertFault("wrong-clock", "the clock of a node is 90 s ahead", ("NodeClockWrong",), "incidents/node-down",
               wrong_clock, {"node": NODE}),
    AlertFault("promised-memory", "VMs of a node may use nearly all of its memory", ("NodeMemoryAlmostFull",),
               "incidents/node-unhealthy", promised_memory, {"node": NODE}),
    AlertFault("crashing-vm", "a VM's QEMU ends as often as it is started", ("VMsCrash",), "troubleshooting/vms",
               crashing_vm),
    AlertFault("no-room", "no node takes VMs, and a VM waits", ("VMsUnplaced",), "scaling/up", no_room),
    AlertFault("closed-port", "a firewall between two hosts refuses migrations",
               ("NodePeersUnreachable", "MigrationsFail"), "troubleshooting/dwcp", closed_port, fires_s_max=90,
               needs_root=True, needs_hosts=True),
)  # fmt: skip

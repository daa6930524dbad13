"""Hosts of a lab: two network namespaces joined by an emulated WAN, with one guest network across both.

In each host: ``wan`` (198.18.0.1 and .2), and the bridge ``br0`` (198.19.0.1 and .2), whose two halves a VXLAN tunnel
over the WAN joins. 198.18.0.0/15 is what RFC 2544 reserves for such tests. A host reaches the server at its own
loopback address, through ``lab.relay``.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

from novacron.net import namespace

ROOT = Path(__file__).parent.parent
RUN_NETNS = Path("/run/netns")
WAN_DEVICE = "wan"
BRIDGE = "br0"
GUEST_MTU = 1450
GUEST_NETWORK = "198.19.0"
READY_TIMEOUT_S = 10.0
KILL_TIMEOUT_S = 10.0

T = TypeVar("T")


class Wan(NamedTuple):
    """An emulated link. ``queue_bytes`` 0 means one bandwidth-delay product."""

    rate_bit_per_s: int = 100_000_000
    rtt_ms: float = 50.0
    loss: float = 0.001
    queue_bytes: int = 0
    seed: int = 1

    def __str__(self) -> str:
        return f"{self.rate_bit_per_s / 1e6:.0f} Mbit/s, {self.rtt_ms:.0f} ms round trip, {self.loss:.1%} loss"


class LabFailed(Exception):
    """The lab could not be made: says what the system refused."""


def run(*arguments: str, stdin: str | None = None) -> str:
    """Run a command and return what it printed. Raises LabFailed with what it complained about."""
    done = subprocess.run(arguments, check=False, capture_output=True, text=True, input=stdin, timeout=60)
    if done.returncode != 0:
        raise LabFailed(f"{' '.join(arguments)}: {done.stderr.strip() or done.returncode}")
    return done.stdout


class Host(NamedTuple):
    """One host. ``netns`` is its namespace, or None when it is this machine itself."""

    name: str
    netns: str | None
    number: int

    @property
    def enter(self) -> list[str]:
        """What makes a command an agent's: in the host's network, with all else of this machine's, cgroups too."""
        return [] if self.netns is None else ["nsenter", f"--net=/run/netns/{self.netns}", "--"]

    @property
    def prefix(self) -> list[str]:
        """What a command line begins with to run on this host."""
        return [] if self.netns is None else ["ip", "netns", "exec", self.netns]

    @property
    def address(self) -> str:
        """Where other hosts reach it."""
        return "127.0.0.1" if self.netns is None else f"198.18.0.{self.number}"

    def within(self, work: Callable[[], T]) -> T:
        """Do ``work`` on this host: sockets that it makes belong there for good."""
        return namespace.within(self.netns, work)

    def received_bytes(self) -> int:
        """Return how many bytes came over the WAN to this host so far, IP headers included."""
        for line in run(*self.prefix, "cat", "/proc/net/dev").splitlines():
            name, _, counters = line.partition(":")
            if name.strip() == WAN_DEVICE:
                return int(counters.split()[0])
        raise LabFailed(f"host {self.name} has no {WAN_DEVICE}")

    def cut(self) -> None:
        """Take this host's end of the WAN down."""
        run("ip", "-n", str(self.netns), "link", "set", WAN_DEVICE, "down")

    def mend(self) -> None:
        """Undo ``cut``."""
        run("ip", "-n", str(self.netns), "link", "set", WAN_DEVICE, "up")
        other = 3 - self.number
        run("ip", "-n", str(self.netns), "route", "replace", f"198.18.0.{other}/32", "dev", WAN_DEVICE)


def listen_within(netns: str, port: int) -> socket.socket:
    """Return a listening loopback socket of another namespace."""
    return Host("", netns, 0).within(lambda: socket.create_server(("127.0.0.1", port), backlog=64))


def missing() -> list[str]:
    """Return what this machine lacks for namespaces and an emulated WAN, each as a sentence; empty if nothing."""
    if os.geteuid() != 0:
        return ["not root: no network namespaces, so both agents share this host and there is no WAN between them"]
    name = f"nova-try-{os.getpid()}"
    lacks = []
    try:
        run("ip", "netns", "add", name)
    except (LabFailed, FileNotFoundError) as error:
        return [f"network namespaces are not allowed here ({error}): both agents share this host, without a WAN"]
    for what, arguments in (
        ("bridges", ["link", "add", "bridge0", "type", "bridge"]),
        ("VXLAN", ["link", "add", "vxlan0", "type", "vxlan", "id", "1", "dstport", "4789", "dev", "lo"]),
        ("TUN/TAP", ["tuntap", "add", "tun0", "mode", "tun"]),
    ):
        try:
            run("ip", "-n", name, *arguments)
        except LabFailed as error:
            lacks.append(f"no {what} in namespaces here ({error})")
    run("ip", "netns", "del", name)
    return lacks


def _emulator(cache: Path) -> Path:
    """Return the WAN emulator's program, built when its source is newer."""
    source, program = Path(__file__).parent / "wan.c", cache / "wan"
    if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
        cache.mkdir(parents=True, exist_ok=True)
        fresh = cache / f"wan.{os.getpid()}"
        run("cc", "-O2", "-Wall", "-o", str(fresh), str(source))
        fresh.replace(program)
    return program


class Lab:
    """Two hosts with a WAN between them, or, without namespaces, this machine twice."""

    def __init__(self, prefix: str, wan: Wan = Wan(), *, namespaces: bool = True) -> None:
        self.wan = wan
        self.prefix = prefix
        self.hosts = [
            Host(f"host-{letter}", f"{prefix}-{letter}" if namespaces else None, number)
            for number, letter in ((1, "a"), (2, "b"))
        ]
        self.namespaces = namespaces
        self._processes: list[subprocess.Popen[str]] = []
        self._relays: dict[str, subprocess.Popen[str]] = {}

    @property
    def pids(self) -> list[int]:
        """The processes that keep the lab going."""
        return [process.pid for process in (*self._processes, *self._relays.values())]

    def up(self, cache: Path) -> None:
        """Make the hosts and the WAN. Raises LabFailed."""
        if not self.namespaces:
            return
        for host in self.hosts:
            if (RUN_NETNS / str(host.netns)).exists():  # of a process that was killed and had this one's number
                run("ip", "netns", "delete", str(host.netns))
            run("ip", "netns", "add", str(host.netns))
        a, b = (str(host.netns) for host in self.hosts)
        bdp = int(self.wan.rate_bit_per_s / 8 * self.wan.rtt_ms / 1e3)
        self._spawn(
            [
                *(str(_emulator(cache)), str(RUN_NETNS / a), str(RUN_NETNS / b), WAN_DEVICE),
                *(str(self.wan.rate_bit_per_s), str(int(self.wan.rtt_ms * 500)), str(int(self.wan.loss * 1e6))),
                *(str(self.wan.queue_bytes or max(bdp, 64 * 1024)), str(self.wan.seed)),
            ]
        )
        for host in self.hosts:
            other = 3 - host.number
            run(
                *("ip", "-n", str(host.netns), "-batch", "-"),
                stdin=f"""
link set lo up
address add 198.18.0.{host.number}/32 dev {WAN_DEVICE}
link set {WAN_DEVICE} mtu 1500 up
route add 198.18.0.{other}/32 dev {WAN_DEVICE}
link add {BRIDGE} address 02:00:c6:13:00:0{host.number} type bridge forward_delay 0
link add vx0 type vxlan id 1 local 198.18.0.{host.number} remote 198.18.0.{other} dstport 4789
link set vx0 mtu {GUEST_MTU} master {BRIDGE} up
link set {BRIDGE} mtu {GUEST_MTU} up
address add {GUEST_NETWORK}.{host.number}/24 dev {BRIDGE}
""",
            )

    def _spawn(self, arguments: list[str]) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, start_new_session=True, cwd=ROOT
        )
        self._processes.append(process)
        assert process.stdout is not None
        if process.stdout.readline().strip() != "ready":
            raise LabFailed(f"{arguments[0]} did not start")
        return process

    def link_bytes(self) -> int:
        """Return how many bytes the WAN has delivered so far, both ways."""
        return sum(host.received_bytes() for host in self.hosts) if self.namespaces else 0

    def connect_management(self, ports: tuple[int, ...]) -> None:
        """Let every host reach these loopback ports of this machine at its own loopback address."""
        for host in self.hosts:
            self.mend_management(host, ports)

    def cut_management(self, host: Host) -> None:
        """Cut a host off from the server; what runs on it goes on."""
        self._end(self._relays.pop(host.name))

    def mend_management(self, host: Host, ports: tuple[int, ...]) -> None:
        if host.netns is not None and host.name not in self._relays:
            relay = self._spawn([sys.executable, "-m", "lab.relay", host.netns, *(str(port) for port in ports)])
            self._processes.remove(relay)
            self._relays[host.name] = relay

    def _end(self, process: subprocess.Popen[str]) -> None:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()

    def down(self) -> None:
        """End every process of the hosts, and remove them."""
        for host in self.hosts:
            if host.netns is not None:
                remove_namespace(host.netns)
        for process in (*self._relays.values(), *self._processes):
            self._end(process)


def remove_namespace(netns: str) -> None:
    """Kill what runs in a namespace and remove it; one that does not exist is no error."""
    if not (RUN_NETNS / netns).exists():
        return
    deadline = time.monotonic() + KILL_TIMEOUT_S
    while pids := run("ip", "netns", "pids", netns).split():
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        if time.monotonic() > deadline:
            raise LabFailed(f"processes {', '.join(pids)} in {netns} do not end")
        time.sleep(0.02)
    run("ip", "netns", "del", netns)


@contextlib.contextmanager
def lab(prefix: str, cache: Path, wan: Wan = Wan(), *, namespaces: bool = True) -> Iterator[Lab]:
    """Make a lab for as long as the block runs."""
    hosts = Lab(prefix, wan, namespaces=namespaces)
    try:
        hosts.up(cache)
        yield hosts
    finally:
        hosts.down()

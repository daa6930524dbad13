"""Several hosts at one switch: network namespaces that share a link layer, without an emulated WAN.

In each host: ``wan`` (198.18.0.1 and up), and an empty bridge ``br0``. A host reaches the server as in ``lab.hosts``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from lab.hosts import BRIDGE, WAN_DEVICE, Host, Lab, remove_namespace, run

SWITCH = "switch"
HOSTS_MAX = 26


class SwitchedLab(Lab):
    """``count`` hosts whose cables can be pulled one by one, and ``spares``, which are no node's."""

    def __init__(self, prefix: str, count: int = 3, spares: int = 0) -> None:
        super().__init__(prefix)
        letters = [chr(ord("a") + number) for number in range(min(count + spares, HOSTS_MAX))]
        every = [Host(f"host-{letter}", f"{prefix}-{letter}", n) for n, letter in enumerate(letters, 1)]
        self.hosts, self.spares = every[:count], every[count:]
        self._switch = f"{prefix}-{SWITCH}"

    def up(self, cache: Path) -> None:
        """Make the hosts and the switch. Raises LabFailed."""
        run("ip", "netns", "add", self._switch)
        run("ip", "-n", self._switch, "link", "add", SWITCH, "type", "bridge", "forward_delay", "0")
        run("ip", "-n", self._switch, "link", "set", SWITCH, "up")
        for host in (*self.hosts, *self.spares):
            self._make(host)

    def _make(self, host: Host) -> None:
        run("ip", "netns", "add", str(host.netns))
        run(
            *("ip", "-n", self._switch, "-batch", "-"),
            stdin=f"""
link add {host.name} type veth peer name {WAN_DEVICE} netns {host.netns}
link set {host.name} master {SWITCH} up
""",
        )
        run(
            *("ip", "-n", str(host.netns), "-batch", "-"),
            stdin=f"""
link set lo up
address add {host.address}/24 dev {WAN_DEVICE}
link set {WAN_DEVICE} up
link add {BRIDGE} type bridge forward_delay 0
link set {BRIDGE} up
""",
        )

    def switch_off(self, spare: Host) -> None:
        """Let a spare host lose its power; it is as new afterwards, without a way to the server."""
        if spare.name in self._relays:
            self.cut_management(spare)
        run("ip", "-n", self._switch, "link", "delete", spare.name)  # else it stays until the kernel gets to it
        remove_namespace(str(spare.netns))
        self._make(spare)

    def pull(self, host: Host) -> None:
        """Pull the host's cable."""
        run("ip", "-n", self._switch, "link", "set", host.name, "down")

    def plug(self, host: Host) -> None:
        """Undo ``pull``."""
        run("ip", "-n", self._switch, "link", "set", host.name, "up")

    def down(self) -> None:
        super().down()
        for netns in (*(str(host.netns) for host in self.spares), self._switch):
            remove_namespace(netns)


@contextlib.contextmanager
def switched_lab(prefix: str, cache: Path, count: int = 3, spares: int = 0) -> Iterator[SwitchedLab]:
    """Make a lab of several hosts for as long as the block runs."""
    hosts = SwitchedLab(prefix, count, spares)
    try:
        hosts.up(cache)
        yield hosts
    finally:
        hosts.down()

"""Encryption of networks between nodes: one WireGuard interface for each host, in the kernel or by wireguard-go(8).

The keys of peers come from the control plane. A peer may send under its own address in ``RANGE`` alone.
"""

from __future__ import annotations

import base64
import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from novacron import child_environment, private_file
from novacron.model.network import WIREGUARD_BYTES, NetworkPeer
from novacron.net.overlay import RANGE, WIREGUARD_PORT, encrypted_address, index, refusals
from novacron.net.tap import NetworkFailed, netlink

TOOL, DAEMON = "wg", "wireguard-go"
APPEAR_S, LOOK_S, TIMEOUT_S = 5.0, 0.02, 10.0
KEEPALIVE_S = 25


def _in_kernel() -> bool:
    """Say whether the kernel has WireGuard."""
    from pyroute2.netlink.exceptions import NetlinkError

    name = f"nwgtry{os.getpid() % 100_000}"
    with contextlib.suppress(NetlinkError), netlink() as ip:
        ip.link("add", ifname=name, kind="wireguard")
        ip.link("del", index=index(ip, name))
        return True
    return False


def lacks() -> str | None:
    """Return why networks between sites can't be encrypted here, or None if they can."""
    if shutil.which(TOOL) is None:
        return "networks between sites are not encrypted: apt-get install wireguard-tools"
    if shutil.which(DAEMON) is None and not _in_kernel():
        return "networks between sites are not encrypted: this kernel has no WireGuard; apt-get install wireguard-go"
    return None


def public_key(path: Path) -> str:
    """Return this host's public key. Its private key is in a file that only root reads, created if missing."""
    if not path.exists():
        raw = X25519PrivateKey.generate().private_bytes(
            serialization.Encoding.Raw, serialization.PrivateFormat.Raw, serialization.NoEncryption()
        )
        private_file.write(path, base64.b64encode(raw))
    private = X25519PrivateKey.from_private_bytes(base64.b64decode(path.read_bytes()))
    raw = private.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return base64.b64encode(raw).decode()


def config(private: str, peers: Sequence[NetworkPeer], addresses: dict[str, str]) -> str:
    """Return the configuration for wg(8). ``addresses`` are those of the peers' hosts."""
    lines = ["[Interface]", f"PrivateKey = {private}", f"ListenPort = {WIREGUARD_PORT}"]
    for peer in peers:
        if peer.host in addresses:
            lines += [
                "[Peer]", f"PublicKey = {peer.key}", f"AllowedIPs = {encrypted_address(peer.number)}/32",
                f"Endpoint = {addresses[peer.host]}:{WIREGUARD_PORT}", f"PersistentKeepalive = {KEEPALIVE_S}",
            ]  # fmt: skip
    return "\n".join(lines) + "\n"


class WireguardInterface(NamedTuple):
    """This host's interface: its name, the file with its private key, and the MTU of the way to its peers, in bytes."""

    name: str
    key: Path
    node_number: int
    mtu: int
    config: Path
    """Scratch file, which only root reads."""


def settle(interface: WireguardInterface, peers: Sequence[NetworkPeer], addresses: dict[str, str]) -> None:
    """Create the interface unless it exists, and give it these peers. Raises NetworkFailed."""
    name, file = interface.name, interface.config
    with refusals("can't encrypt networks"):
        with netlink() as ip:
            exists = index(ip, name) is not None
        if not exists:
            _make(name)
        file.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        file.unlink(missing_ok=True)
        try:  # each time: a file that a killed agent left does not prove that the interface has these peers
            with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
                out.write(config(interface.key.read_text(), peers, addresses))
            _run([TOOL, "syncconf", name, str(file)])
        finally:
            file.unlink(missing_ok=True)
        with netlink() as ip:
            device = index(ip, name)
            ip.link("set", index=device, mtu=interface.mtu - WIREGUARD_BYTES, state="up")
            ip.addr(
                "replace", index=device, address=encrypted_address(interface.node_number), prefixlen=RANGE.prefixlen
            )


def _make(name: str) -> None:
    from pyroute2.netlink.exceptions import NetlinkError

    with contextlib.suppress(NetlinkError), netlink() as ip:
        ip.link("add", ifname=name, kind="wireguard")
        return
    try:
        subprocess.Popen(
            [DAEMON, "-f", name], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True, cwd="/", env=child_environment.clean({"LOG_LEVEL": "error"}),
        )  # fmt: skip
    except OSError as error:
        raise NetworkFailed(f"{DAEMON} does not start: {error}") from error
    deadline = time.monotonic() + APPEAR_S
    while time.monotonic() < deadline:
        with netlink() as ip:
            if index(ip, name) is not None and Path(f"/var/run/wireguard/{name}.sock").exists():
                return
        time.sleep(LOOK_S)
    raise NetworkFailed(f"{DAEMON} made no interface within {APPEAR_S:.0f} s")


def _run(arguments: list[str]) -> None:
    try:
        done = subprocess.run(
            arguments, capture_output=True, text=True, check=False, timeout=TIMEOUT_S, env=child_environment.clean()
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NetworkFailed(f"{arguments[0]} does not work: {error}") from error
    if done.returncode != 0:
        raise NetworkFailed(f"{arguments[0]} refuses: {done.stderr.strip()[:300]}")


def remove(name: str) -> None:
    """Remove the interface; its daemon ends with it. It is no error if there is none. Raises NetworkFailed."""
    with refusals("can't remove WireGuard's interface"), netlink() as ip:
        link_index = index(ip, name)
        if link_index is not None:
            ip.link("del", index=link_index)

"""DHCP and DNS of a network on this node: a dnsmasq(8) in the network's namespace, which outlives the agent."""

from __future__ import annotations

import contextlib
import grp
import ipaddress
import os
import pwd
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from novacron import child_environment, private_file
from novacron.model import ipv6
from novacron.model.network import Ipv6Addresses, NetworkOnNode, gateway_address, service_address
from novacron.net import namespace
from novacron.net.overlay import SERVICE
from novacron.net.tap import NetworkFailed

BINARY, GROUP = "dnsmasq", "nogroup"
LEASE_S = 12 * 3600
ADVERTISED_EVERY_S = 60
DUID = "32473,02:4e:4f:56:00:02"
"""The DHCPv6 server is the same for a guest that moves to another node. The number is one for examples (RFC 5612)."""
CACHE_ENTRIES, QUERIES_MAX = 1000, 150
START_S, END_S, LOOK_S = 10.0, 5.0, 0.02
CONFIG, HOSTS, NAMES, PID = "dnsmasq.conf", "hosts", "names", "pid"
DOMAIN = "internal"
"""Kept for such use by ICANN; a network's names end in its own name and this."""


def config(network: NetworkOnNode, directory: Path, nameservers: Sequence[str]) -> dict[str, str]:
    """Return the files of a network's server. ``nameservers`` resolve all other names."""
    assert network.spec.subnet is not None
    subnet, service = ipaddress.IPv4Network(network.spec.subnet), service_address(network.spec.subnet)
    domain = f"{network.name}.{DOMAIN}"
    search = (domain, *network.spec.search_domains)
    lines = [
        "no-resolv",
        "no-hosts",
        "bind-interfaces",
        f"interface={SERVICE}",
        "except-interface=lo",
        f"user={account().pw_name}",
        f"group={GROUP}",
        f"pid-file={directory / PID}",
        "leasefile-ro",  # addresses are fixed: there are no leases to remember
        "dhcp-authoritative",
        f"dhcp-range={subnet.network_address},static,{subnet.netmask},{LEASE_S}",
        f"dhcp-hostsfile={directory / HOSTS}",
        f"addn-hosts={directory / NAMES}",
        "expand-hosts",
        f"domain={domain}",
        f"local=/{domain}/",
        f"local=/{ipaddress.IPv4Address(int(subnet.network_address)).reverse_pointer.split('.', 1)[1]}/",
        "domain-needed",
        "bogus-priv",
        f"cache-size={CACHE_ENTRIES}",
        f"dns-forward-max={QUERIES_MAX}",
        f"dhcp-option=option:router,{gateway_address(network.spec.subnet)}",
        f"dhcp-option=option:dns-server,{service}",
        f"dhcp-option=option:mtu,{network.mtu}",
        *([f"dhcp-option=option:domain-search,{','.join(search)}"] if network.spec.search_domains else []),
        *([] if network.spec.subnet6 is None else _ipv6(network, network.spec.subnet6, search)),
        *(f"server={server}" for server in nameservers),
    ]
    addresses6 = {mac: address for mac, address, _ in network.names6}
    return {
        CONFIG: "\n".join(lines) + "\n",
        HOSTS: "".join(
            f"{mac},{address},{f'[{addresses6[mac]}],' if mac in addresses6 else ''}{name}\n"
            for mac, address, name in network.names
        ),
        NAMES: "".join(f"{address} {name}\n" for _, address, name in (*network.names, *network.names6)),
    }


def _ipv6(network: NetworkOnNode, prefix: str, search: Sequence[str]) -> list[str]:
    """Return the lines for IPv6: advertisements of the prefix, and of no route, and DHCP."""
    net, service = ipaddress.IPv6Network(prefix), ipv6.service_address(prefix)
    mode = "ra-stateless" if network.spec.ipv6_addresses is Ipv6Addresses.SLAAC else "static"
    return [
        "enable-ra",
        f"ra-param={SERVICE},mtu:{network.mtu},{ADVERTISED_EVERY_S},0",
        f"dhcp-duid={DUID}",
        f"dhcp-range={net.network_address},{mode},{net.prefixlen},{LEASE_S}",
        f"dhcp-option=option6:dns-server,[{service}]",
        f"dhcp-option=option6:domain-search,{','.join(search)}",
        f"local=/{_reverse_zone(net)}/",
    ]


def _reverse_zone(prefix: ipaddress.IPv6Network) -> str:
    return ".".join(prefix.network_address.reverse_pointer.split(".")[-prefix.prefixlen // 4 - 2 :])


def account() -> pwd.struct_passwd:
    """Return the user as whom it runs: its own, or where the host has none, nobody."""
    with contextlib.suppress(KeyError):
        return pwd.getpwnam(BINARY)
    return pwd.getpwnam("nobody")


def running(directory: Path) -> int | None:
    """Return the process id of this directory's server, None if it does not run."""
    with contextlib.suppress(OSError, ValueError):
        pid = int((directory / PID).read_text())
        if os.fsencode(directory / CONFIG) in Path(f"/proc/{pid}/cmdline").read_bytes():
            return pid
    return None


def settle(
    name: str, network: NetworkOnNode, directory: Path, nameservers: Sequence[str], *, first: bool = False
) -> None:
    """Run the server of a network with its current configuration. ``first``: restart it, because whoever wrote its
    files last may have been killed before it reloaded them. Raises NetworkFailed."""
    files = config(network, directory, nameservers)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        directory.parent.chmod(0o711)
        os.chown(directory, 0, grp.getgrnam(GROUP).gr_gid)
        directory.chmod(0o710)  # dnsmasq's group can enter it
        before = {file: _text(directory / file) for file in files}
        changed = [file for file, text in files.items() if before[file] != text]
        # It gives an address that it has leased to nobody else, whatever its files say, until it restarts.
        anew = first or CONFIG in changed or not set(before[HOSTS].splitlines()) <= set(files[HOSTS].splitlines())
        for file in changed:
            # It reads them again after it has become another user. Names and addresses are nobody else's business.
            owner = None if file == CONFIG else (account().pw_uid, 0)
            private_file.write(directory / file, files[file].encode(), 0o400, owner)
    except OSError as error:
        raise NetworkFailed(f"can't write dnsmasq's files: {error}") from error
    pid = running(directory)
    if pid is not None and anew:
        end(directory)
        pid = None
    if pid is None:
        _start(name, directory)
    elif changed:
        os.kill(pid, signal.SIGHUP)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""


def _start(name: str, directory: Path) -> None:
    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [BINARY, f"--conf-file={directory / CONFIG}"],
            capture_output=True, text=True, check=False, timeout=START_S, start_new_session=True, cwd="/",
            env=child_environment.clean(),
        )  # fmt: skip

    try:
        done = namespace.within(name, run)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NetworkFailed(f"dnsmasq does not start: {error}") from error
    if done.returncode != 0:
        raise NetworkFailed(f"dnsmasq does not start: {done.stderr.strip()[:500]}")


def end(directory: Path) -> None:
    """Stop this directory's server, if it runs. Raises NetworkFailed."""
    pid = running(directory)
    if pid is None:
        return
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + END_S
    while running(directory) is not None:
        if time.monotonic() > deadline:
            raise NetworkFailed(f"dnsmasq {pid} does not stop")
        time.sleep(LOOK_S)


def host_nameservers(path: Path = Path("/etc/resolv.conf")) -> tuple[str, ...]:
    """Return this host's name servers that its networks can reach too."""
    addresses = []
    with contextlib.suppress(OSError):
        for line in path.read_text(errors="replace").splitlines():
            words = line.split()
            if len(words) >= 2 and words[0] == "nameserver":
                with contextlib.suppress(ValueError):
                    if not ipaddress.IPv4Address(words[1]).is_loopback:
                        addresses.append(words[1])
    return tuple(addresses[:3])

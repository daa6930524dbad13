"""Can this machine run a server, or an agent with VMs: what is there, what is missing."""

from __future__ import annotations

import asyncio
import ctypes
import os
import re
import resource
import shutil
import socket
import ssl
import sys
import time
from pathlib import Path

from novacron import pki
from novacron.child_environment import clean
from novacron.local.doctor.finding import Finding, bad, ok, warning

QEMU_MIN = (7, 2)
PYTHON_MIN = (3, 11)
PORTS = {7443: "API", 7444: "agents' link", 7445: "migrations"}
FREE_SHARE_MIN, FREE_SHARE_BAD = 0.15, 0.05
DAY_S = 86400
PROGRAMS = {
    "qemu-img": ("images and disks", "qemu-utils"),
    "setpriv": ("QEMUs that are kept apart", "util-linux"),
    "nft": ("networks of VMs", "nftables"),
    "dnsmasq": ("addresses in networks of VMs", "dnsmasq-base"),
}
OPTIONAL = {
    "swtpm": ("VMs with a TPM", "swtpm"),
    "restic": ("room that is freed in repositories of backups", "restic"),
    "grub-fstest": ("single files out of backups", "grub-common"),
    "wg": ("networks between sites that are encrypted", "wireguard-tools"),
}
TIME_ERROR, STA_UNSYNC = 5, 0x40


async def privileges() -> list[Finding]:
    if os.geteuid() == 0:
        return [ok("privileges", "root: networks can be set up, and VMs are isolated")]
    return [
        warning(
            "privileges",
            f"user {os.geteuid()}: an agent can't set up networks here, and its VMs are not isolated",
            "run the agent as root; a server needs no root",
        )
    ]


async def _output_of(*arguments: str) -> tuple[int, str]:
    """Return a program's exit status and what it said."""
    process = await asyncio.create_subprocess_exec(
        *arguments, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        env=clean(),
    )  # fmt: skip
    out, _ = await asyncio.wait_for(process.communicate(), 10)
    return process.returncode or 0, out.decode(errors="replace")


async def qemu(binary: str) -> list[Finding]:
    if shutil.which(binary) is None:
        return [bad("QEMU", f"there is no {binary}", "apt-get install qemu-system-x86")]
    _, output = await _output_of(binary, "--version")
    version = re.search(r"version (\d+)\.(\d+)", output)
    if version is None:
        return [warning("QEMU", f"{binary} does not report its version", "check that it is QEMU")]
    number = int(version[1]), int(version[2])
    text = f"version {number[0]}.{number[1]}"
    if number < QEMU_MIN:
        return [bad("QEMU", text, f"install {QEMU_MIN[0]}.{QEMU_MIN[1]} or later")]
    return [ok("QEMU", text), _python()]


def _python() -> Finding:
    text = f"version {sys.version_info.major}.{sys.version_info.minor}, {ssl.OPENSSL_VERSION}"
    return ok("Python", text) if sys.version_info[:2] >= PYTHON_MIN else bad("Python", text, "install 3.11 or later")


async def programs() -> list[Finding]:
    findings = []
    for grade, programs in ((bad, PROGRAMS), (warning, OPTIONAL)):
        for name, (what, package) in programs.items():
            if shutil.which(name) is None:
                findings.append(grade("programs", f"no {name}: no {what}", f"apt-get install {package}"))
    return findings or [ok("programs", "everything that an agent uses is installed")]


async def kernel() -> list[Finding]:
    findings = []
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        findings.append(bad("kernel", "/dev/net/tun can't be opened: VMs have no network", "modprobe tun; run as root"))
    available = Path("/proc/sys/net/ipv4/tcp_available_congestion_control")
    if available.exists() and "bbr" not in available.read_text().split():
        findings.append(
            warning("kernel", "no BBR: migrations over lossy links are several times slower",
                    "modprobe tcp_bbr, and add tcp_bbr to /etc/modules")
        )  # fmt: skip
    groups = Path("/sys/fs/cgroup")
    if not ((groups / "cgroup.controllers").exists() or (groups / "memory").exists()):
        findings.append(warning("kernel", "no cgroups: VMs have no memory and CPU limits", "mount /sys/fs/cgroup"))
    if os.geteuid() == 0:
        for kind, more in (("bridge", ()), ("vxlan", ("id", "1", "dstport", "4789"))):
            status, output = await _output_of(
                "unshare", "--net", "ip", "link", "add", "novadoctor", "type", kind, *more
            )
            if status != 0:
                last = output.strip().splitlines()[-1:] or [""]
                findings.append(bad("kernel", f"no {kind} interfaces: {last[0]}", f"modprobe {kind}"))
    release = os.uname().release
    return findings or [ok("kernel", f"Linux {release}: interfaces, BBR and cgroups are available")]


class _Timex(ctypes.Structure):
    """What adjtimex(2) returns, as far as it is looked at."""

    _fields_ = (
        ("modes", ctypes.c_uint), ("offset", ctypes.c_long), ("freq", ctypes.c_long), ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long), ("status", ctypes.c_int), ("rest", ctypes.c_byte * 256),
    )  # fmt: skip


async def clock() -> list[Finding]:
    timex = _Timex()
    state = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(timex))
    if state == TIME_ERROR or timex.status & STA_UNSYNC:
        return [
            warning("clock", "it is not synchronised: certificates, leases and logs need a correct clock",
                    "apt-get install chrony (in a VM or a container: on its host)")
        ]  # fmt: skip
    return [ok("clock", f"synchronised, within {timex.maxerror / 1e6:.1f} s")]


async def ports() -> list[Finding]:
    texts = []
    for port, what in PORTS.items():
        used = "is in use: by NovaCron, if it runs here" if port_objection("0.0.0.0", port) else "is free"
        texts.append(f"{port} ({what}) {used}")
    return [ok("ports", "; ".join(texts))]


def port_objection(host: str, port: int) -> str:
    """Return why nothing can listen at a port of this machine; empty: something can."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe_socket:
            probe_socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe_socket.bind(address)
    except (OSError, OverflowError, UnicodeError) as error:
        return getattr(error, "strerror", None) or str(error)
    return ""


async def disk(state_dir: Path) -> list[Finding]:
    there = next(path for path in (state_dir, *state_dir.parents) if path.exists())
    usage = shutil.disk_usage(there)
    share = usage.free / usage.total
    text = f"{usage.free / 2**30:.1f} GiB free of {usage.total / 2**30:.1f} ({there})"
    if share < FREE_SHARE_BAD:
        return [bad("disk", text, "free some space: VMs are paused when their disk is full, and a full database stops")]
    if share < FREE_SHARE_MIN:
        return [
            warning("disk", text, "free some space soon: novacron image list; du -xh --max-depth 2 of the directory")
        ]
    return [ok("disk", text)]


async def memory() -> list[Finding]:
    meminfo = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    total, free = (int(meminfo[name].split()[0]) / 2**20 for name in ("MemTotal", "MemAvailable"))
    text = f"{free:.1f} GiB free of {total:.1f}"
    if free / total < FREE_SHARE_BAD:
        return [bad("memory", text, "move VMs away: novacron node drain")]
    return [ok("memory", text)]


async def limits() -> list[Finding]:
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if most < 65536:
        return [warning("limits", f"at most {most} open files: a connection is one", "LimitNOFILE=1048576 in the unit")]
    return [ok("limits", f"up to {most} open files")]


def certificate_files(state_dir: Path) -> dict[str, Path]:
    """Return where the certificates of a machine are, by what they are called: those that NovaCron issues itself, and
    those with which a member of a database cluster reaches etcd."""
    return {
        "authority": state_dir / "server/ca.crt", "server": state_dir / "server/server.crt",
        "node": state_dir / "agent/identity/node.crt", "database authority": state_dir / "postgres/tls/ca.crt",
        "database member": state_dir / "postgres/tls/server.crt",
        "etcd authority": state_dir / "postgres/tls/etcd-ca.crt", "etcd client": state_dir / "postgres/tls/etcd.crt",
    }  # fmt: skip


async def certificates(state_dir: Path) -> list[Finding]:
    findings = []
    for name, path in certificate_files(state_dir).items():
        try:
            left_s = pki.expires_at_s(path.read_bytes()) - time.time()
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            findings.append(
                warning("certificates", f"{path} can't be read: {error}", "run as root; restore it from a backup")
            )
            continue
        text = f"the {name}'s is valid for {left_s / DAY_S:.0f} days"
        advice = _renewal(name, path)
        if left_s <= 0:
            ended = f"the {name}'s ended on {pki.utc(time.time() + left_s)}"
            findings.append(bad("certificates", ended, advice))
        elif left_s < pki.ENDS_SOON_S:
            findings.append(warning("certificates", text, advice))
        else:
            findings.append(ok("certificates", text))
    return findings


def _renewal(name: str, path: Path) -> str:
    """Return what renews a certificate that should have been renewed by itself."""
    if name == "server":
        return (
            "systemctl restart novacron-server: it issues itself a new one; its log says why it did not do so earlier"
        )
    if name == "authority":
        return (
            "systemctl restart novacron-server: it renews it for the same key; then, on nodes that were away: novacron"
            f" agent --rejoin @FILE; for users: novacron context add NAME --replace --ca {path}"
        )
    if name.startswith("database"):
        return "novacron database cluster renew: this machine's member uses it at once"
    if name.startswith("etcd"):
        return f"put a valid one into {path.resolve()}: Patroni reads it at its next connection, without a restart"
    try:
        node = pki.common_name(path.read_bytes())
    except (OSError, ValueError):
        node = "NAME"
    return (
        "it is renewed while the agent is connected: systemctl status novacron-agent; once it has ended: novacron node"
        f" join-token --node {node}, then on this host: novacron agent --rejoin @FILE"
    )

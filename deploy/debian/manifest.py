"""What the Debian packages are: their names, what they need, and their files beside the Python environments."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from novacron import settings_file
from novacron.local.setup import services

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
ROLLOUT = ROOT / "deploy/rollout"
PREFIX = "/opt/novacron"
GUIDE = ROOT / "docs/how-to/install.md"
SETTINGS = str(services.SETTINGS_DIR)
JOIN_TOKEN = str(services.JOIN_TOKEN)
UNITS = "/usr/lib/systemd/system"


class Debian(StrEnum):
    """A release that there are packages for."""

    DEBIAN_12 = "12"
    DEBIAN_13 = "13"

    @property
    def python(self) -> str:
        """Return the version of its Python."""
        return {Debian.DEBIAN_12: "3.11", Debian.DEBIAN_13: "3.13"}[self]

    @property
    def wheels(self) -> str:
        """Return the platform of the wheels that run on it: by its glibc."""
        return {Debian.DEBIAN_12: "x86_64-manylinux_2_36", Debian.DEBIAN_13: "x86_64-manylinux_2_40"}[self]


class File(NamedTuple):
    """A file of a package."""

    path: str
    content: bytes
    mode: int = 0o644


class Package(NamedTuple):
    """A package. ``environment`` is the directory of its Python environment below ``/opt/novacron``."""

    name: str
    environment: str
    extras: tuple[str, ...]
    """The extras of the Python package that it has installed."""
    summary: str
    description: str
    depends: tuple[str, ...] = ()
    recommends: tuple[str, ...] = ()
    suggests: tuple[str, ...] = ()
    more_units: tuple[str, ...] = ()
    """Which an administrator enables, and no installation or upgrade starts or stops."""
    unit: str | None = None
    settings: str | None = None
    """Its settings file, which Debian keeps as the administrator left it."""
    configure: tuple[str, ...] = ()
    """What else is done once its files are there."""
    purged: tuple[str, ...] = ()
    """What is said, or removed, when it is purged."""

    @property
    def root(self) -> str:
        return f"{PREFIX}/{self.environment}"


CLI = Package(
    "novacron",
    "cli",
    (),
    "command line and Python SDK of NovaCron",
    "Creates, watches and migrates virtual machines on the hosts of a NovaCron installation.",
)
SERVER = Package(
    "novacron-server",
    "server",
    ("server", "cluster"),
    "control plane of NovaCron: API, controllers, agents' link",
    "Has its own PostgreSQL, which it uses unless the settings name another one.",
    depends=("novacron", "init-system-helpers", "systemd"),
    recommends=("restic",),
    suggests=("redis-server", "postgresql", "etcd-server"),
    unit="novacron-server.service",
    more_units=("novacron-database.service",),
    settings="server.toml",
    configure=(
        "systemd-sysusers novacron-server.conf",
        "systemd-tmpfiles --create novacron-server.conf || true",
        f"chown root:novacron {SETTINGS}/server.toml",
        f"chmod 0640 {SETTINGS}/server.toml",
    ),
    purged=(
        "for data in /var/lib/novacron/server /var/lib/novacron/postgres; do",
        '    [ ! -e "$data" ] || echo "novacron-server: data stays in $data, which belongs to user novacron" >&2',
        "done",
    ),
)
AGENT = Package(
    "novacron-agent",
    "agent",
    ("agent",),
    "agent of NovaCron: runs the virtual machines of a host",
    "Stopping, upgrading or removing it leaves the virtual machines running.",
    depends=(
        "novacron",
        "init-system-helpers",
        "systemd",
        "qemu-system-x86",
        "qemu-utils",
        "nftables",
        "dnsmasq-base",
        "iproute2",
        "util-linux",
    ),
    recommends=("grub-common", "ovmf", "restic", "swtpm", "wireguard-tools"),
    suggests=("mmdebstrap", "busybox-static", "wireguard-go"),
    unit="novacron-agent.service",
    settings="agent.toml",
    configure=("systemd-tmpfiles --create novacron-agent.conf || true",),
    purged=(
        f"rm -f {JOIN_TOKEN}",
        "for data in /var/lib/novacron/agent /var/lib/novacron/images; do",
        '    [ ! -e "$data" ] || echo "novacron-agent: data stays in $data" >&2',
        "done",
    ),
)
PACKAGES = (CLI, SERVER, AGENT)


def files(package: Package) -> Iterator[File]:
    """Yield the files of a package apart from its Python environment."""
    documents = f"/usr/share/doc/{package.name}"
    yield File(f"{documents}/copyright", (ROOT / "LICENSE").read_bytes())
    yield File(f"{documents}/install.md", GUIDE.read_bytes())
    if package is CLI:
        yield File("/usr/bin/novacron", (HERE / "novacron").read_bytes(), 0o755)
    for ending, directory in (("sysusers", "/usr/lib/sysusers.d"), ("tmpfiles", "/usr/lib/tmpfiles.d")):
        source = HERE / f"{package.name}.{ending}"
        if source.exists():
            yield File(f"{directory}/{package.name}.conf", source.read_bytes())
    for unit in (package.unit, *package.more_units):
        if unit is not None:
            yield File(f"{UNITS}/{unit}", (HERE / unit).read_bytes())
    if package is SERVER:
        for name in ("novacron-server@.service", "novacron-rollout.service"):
            yield File(f"{UNITS}/{name}", (ROLLOUT / name).read_bytes())
        for name in ("haproxy.cfg", "prometheus.yml", "rollout.toml"):
            yield File(f"{documents}/rollout/{name}", (ROLLOUT / name).read_bytes())
    if package.settings is not None:
        yield File(f"{SETTINGS}/{package.settings}", settings(package).encode(), 0o640)


def settings(package: Package) -> str:
    """Return the settings file that a package brings."""
    if package is SERVER:
        return settings_file.template(services.SERVER.title, services.SERVER.options)
    return settings_file.template(services.AGENT.title, services.AGENT.options, {"join": f"@{JOIN_TOKEN}"})


def scripts(package: Package) -> Iterator[tuple[str, str]]:
    """Yield the names and texts of a package's maintainer scripts."""
    parts = {
        "PACKAGE": package.name,
        "ENVIRONMENT": package.environment,
        "CONFIGURE": "\n".join(f"    {line}" for line in package.configure),
        "PURGED": "\n".join(f"    {line}" for line in package.purged),
        **{
            name.upper().replace("-", "_"): (HERE / name).read_text() if package.unit else ""
            for name in ("unit-after", "unit-before", "unit-gone")
        },
    }
    for name in ("postinst", "prerm", "postrm"):
        text = (HERE / name).read_text()
        for placeholder, value in parts.items():
            text = text.replace(f"@{placeholder}@", value)
        yield name, text.replace("@UNIT@", package.unit or "")


def control(package: Package, debian: Debian, version: str, installed_kib: int) -> str:
    """Return a package's control file (deb-control(5))."""
    fields = {
        "Package": package.name,
        "Version": version,
        "Architecture": "amd64",
        "Maintainer": "NovaCron developers <novacron@localhost>",
        "Installed-Size": str(installed_kib),
        "Depends": ", ".join((f"python{debian.python}", "libc6 (>= 2.36)", *package.depends)),
        "Recommends": ", ".join(package.recommends),
        "Suggests": ", ".join(package.suggests),
        "Section": "admin",
        "Priority": "optional",
        "Description": f"{package.summary}\n {package.description}",
    }
    return "".join(f"{name}: {value}\n" for name, value in fields.items() if value)

"""How one agent is set up."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

import msgspec

from novacron.backup.places import Place


class AgentSettings(msgspec.Struct, frozen=True):
    """An agent's settings. ``state_dir`` holds its identity, its journal and its VMs."""

    state_dir: Path
    images_dir: Path
    name: str
    bridge: str | None = None
    """Bridge for the VMs' interfaces; without one they get QEMU's user-mode network."""
    dwcp_host: str = "0.0.0.0"
    dwcp_port: int = 7445
    advertise: str | None = None
    """Address by which other nodes reach this one's DWCP port."""
    qemu_binary: str = "qemu-system-x86_64"
    downtime_limit_ms: int = 200
    """The guest is stopped once it would stand still for no longer than this, by our forecast."""
    streams: int | None = None
    """Connections of a migration, 1 to 16; None leaves it to DWCP."""
    outage_s: float = 60.0
    """How long the link between two nodes may be dead before a migration over it fails."""
    reuse: frozenset[str] = frozenset(("image", "sibling", "checkpoint"))
    """Which pages that this node has may stand in for sending them: those of images, of VMs that run here, of VMs that
    were here."""
    place_memory: bool = True
    """The memory of guests that come is written into their QEMUs from outside, where this host allows it."""
    pages_bytes_max: int = 8 * 1024**3
    """Disk space for what VMs leave behind here."""
    imports: Path | None = None
    """Directory of the files that may be imported as images by path; by default ``imports`` beside the images."""
    imports_local: bool = False
    """Images may also be fetched from this host itself, and from its own link."""
    imports_from: tuple[IPv4Network | IPv6Network, ...] = ()
    """Addresses beside public ones from which images may be downloaded."""
    keep_images_s: float = 24 * 3600
    """For how long an image that came for a VM stays when no VM here is made of it."""
    pools: dict[str, Path] = {}
    """Directories for volumes, by the names of their pools; ``local`` is there without being named."""
    shared_pools: dict[str, Path] = {}
    """Those that other nodes have, too, under the same name."""
    masked_cpu_flags: frozenset[str] = frozenset()
    """What guests' processors do not have, though this host's has it."""
    uid_base: int | None = None
    """First of the 65,536 user numbers that VMs' QEMUs run as; None: all run as the agent's user."""

    backup_dir: Place | None = None
    """Where the repositories of backups are; None: this node makes none."""
    owner: str = ""
    """Whose QEMUs this agent starts, as ``identity.owner`` says it: by that they are found again on this host."""

    @property
    def identity_dir(self) -> Path:
        return self.state_dir / "identity"

    @property
    def wireguard_key(self) -> Path:
        return self.state_dir / "wireguard.key"

    @property
    def host_path(self) -> Path:
        """Where it is noted which host this state folder is on."""
        return self.state_dir / "host.json"

    @property
    def lease_path(self) -> Path:
        return self.state_dir / "lease"

    @property
    def database_mark_path(self) -> Path:
        return self.state_dir / "database.mark"

    @property
    def imports_dir(self) -> Path:
        return self.imports or self.images_dir.parent / "imports"

    @property
    def volumes_dir(self) -> Path:
        return self.state_dir / "volumes"

    @property
    def exports_dir(self) -> Path:
        return self.state_dir / "exports"

    @property
    def backup_scratch_dir(self) -> Path:
        """Where a copy of a disk is while it is written to a repository."""
        return self.state_dir / "backup-scratch"

    @property
    def replicas_dir(self) -> Path:
        """Where replicas of other nodes' VMs are."""
        return self.state_dir / "replicas"

    @property
    def replica_scratch_dir(self) -> Path:
        """Where a copy of what a VM wrote is while it is sent to its replica."""
        return self.state_dir / "replica-scratch"

    @property
    def vms_dir(self) -> Path:
        return self.state_dir / "vms"

    @property
    def pages_dir(self) -> Path:
        return self.state_dir / "pages"

    @property
    def rings_dir(self) -> Path:
        return self.state_dir / "rings"

    @property
    def journal_dir(self) -> Path:
        return self.state_dir / "journal"

"""The Debian guest: a whole system with cloud-init, SSH and the guest agent, made with ``mmdebstrap``.

Its kernel is booted directly; its disk is one file system, which grows with the disk at boot.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import msgspec

from novacron.disk.images import MANIFEST, Manifest, describe

SUITE = "bookworm"
MIRROR = "http://deb.debian.org/debian"
PACKAGES = (
    "linux-image-cloud-amd64", "systemd-sysv", "systemd-resolved", "udev", "dbus", "cloud-init", "openssh-server",
    "qemu-guest-agent", "iproute2", "ca-certificates", "sudo", "e2fsprogs",
)  # fmt: skip
TOOLS = {"mmdebstrap": "mmdebstrap", "mkfs.ext4": "e2fsprogs"}
DISK_MIB = 1536
CMDLINE = "root=/dev/vda rw console=ttyS0 net.ifnames=0 quiet panic=-1 tsc=reliable no_timer_check random.trust_cpu=on"
CLOUD = "datasource_list: [NoCloud, None]\nsystem_info: {default_user: {name: debian, lock_passwd: true}}\n"
BUILD_S_MAX = 1800.0


class BuildFailed(Exception):
    """The image could not be built: says what failed."""


def build(target: Path, description: str = f"Debian ({SUITE}) with cloud-init and guest agent") -> None:
    """Build the image in ``target``, whole or not at all. Needs root. Raises BuildFailed, OSError."""
    missing = [package for tool, package in TOOLS.items() if shutil.which(tool) is None]
    if missing:
        raise BuildFailed(f"this host lacks what builds it: apt-get install {' '.join(missing)}")
    if os.geteuid() != 0:
        raise BuildFailed("only root can build it: the files in it belong to many users")
    if target.exists():
        raise BuildFailed(f"{target} already exists")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".building-", dir=target.parent) as scratch:
        root, image = Path(scratch) / "root", Path(scratch) / "image"
        image.mkdir(mode=0o755)
        _run(
            "mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(PACKAGES)}",
            "--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/man/*",
            "--aptopt=Acquire::Languages none", SUITE, str(root), *_sources(),
        )  # fmt: skip
        _configure(root)
        shutil.copyfile(next(root.glob("boot/vmlinuz-*")), image / "vmlinuz")
        shutil.copyfile(next(root.glob("boot/initrd.img-*")), image / "initrd.img")
        disk = image / "disk.raw"
        with disk.open("wb") as file:
            file.truncate(DISK_MIB << 20)
        _run("mkfs.ext4", "-q", "-F", "-L", "root", "-d", str(root), str(disk))
        manifest = Manifest(
            "kernel", describe(image / "vmlinuz"), describe(image / "initrd.img"), CMDLINE, description, describe(disk)
        )
        (image / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(manifest)))
        os.sync()
        image.rename(target)


def _sources() -> list[str]:
    """Return where this host's own packages come from, if it is a Debian of this suite: it can reach that."""
    sources = Path("/etc/apt/sources.list")
    lines = sources.read_text().splitlines() if sources.exists() else []
    own = [line for line in lines if line.startswith("deb ") and f" {SUITE}" in line]
    files = [str(path) for path in sorted(Path("/etc/apt/sources.list.d").glob("debian*.sources"))]
    return own or files or [MIRROR]


def _configure(root: Path) -> None:
    (root / "etc/fstab").write_text("/dev/vda / ext4 defaults,discard 0 1\n")
    (root / "etc/hostname").write_text("debian\n")
    (root / "etc/cloud/cloud.cfg.d/90-novacron.cfg").write_text(CLOUD)
    wants = root / "etc/systemd/system/multi-user.target.wants"
    wants.mkdir(parents=True, exist_ok=True)
    for unit in ("systemd-networkd", "systemd-resolved"):
        link = wants / f"{unit}.service"
        if not link.is_symlink():
            link.symlink_to(f"/lib/systemd/system/{unit}.service")
    for key in (root / "etc/ssh").glob("ssh_host_*"):
        key.unlink()  # each VM makes its own
    (root / "etc/machine-id").write_text("")


def _run(*arguments: str) -> None:
    try:
        subprocess.run(arguments, check=True, capture_output=True, timeout=BUILD_S_MAX)
    except subprocess.CalledProcessError as error:
        said = (error.stderr or b"")[-600:].decode(errors="replace").strip()
        raise BuildFailed(f"{arguments[0]} failed: {said}") from error
    except subprocess.TimeoutExpired:
        raise BuildFailed(f"{arguments[0]} took longer than {BUILD_S_MAX:.0f} s") from None

"""The tiny guest: Debian's cloud kernel and a busybox initial RAM disk, boots in about two seconds under emulation.

``python -m novacron.disk.tiny DIRECTORY`` builds it with ``apt-get`` and ``dpkg-deb``; nothing is installed.

In the guest: a shell on the serial console, power-off by ACPI button, and two TCP services: port 7000 sends a counter
line every 10 ms for as long as the connection lives, port 7001 echoes.
"""

from __future__ import annotations

import lzma
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec
import zstandard

from novacron.disk.images import MANIFEST, Manifest, describe

VERSION = 6
KERNEL_META = "linux-image-cloud-amd64"
MODULES = ("virtio_pci", "virtio_net", "evdev", "button")
DISK_MODULES = ("virtio_blk", "virtio_scsi", "sd_mod")
CMDLINE = "console=ttyS0 quiet panic=-1 tsc=reliable no_timer_check random.trust_cpu=on"

INIT = """#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /tmp /run /etc/acpi/PWRF
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mount -t proc proc /proc
echo "novacron tiny guest: up"
/bin/busybox --install -s /bin
export PATH=/bin
mount -t sysfs sys /sys
mount -t tmpfs tmp /run
for module in MODULES; do insmod /modules/$module.ko; done
address=
for word in $(cat /proc/cmdline); do
  case "$word" in novacron.address=*) address=${word#*=} ;; esac
done
ifconfig lo 127.0.0.1 up
sysctl -q -w net.ipv4.tcp_slow_start_after_idle=0
if [ "$address" = dhcp ]; then
  mkdir -p /etc
  for nic in /sys/class/net/eth*; do
    nic=${nic##*/}
    ip link set "$nic" up
    udhcpc -i "$nic" -s /dhcp -t 10 -T 1 -b >/dev/null 2>&1
  done
  address=$(ip -4 -o address show dev eth0 | while read -r _ _ _ found _; do echo "$found"; done)
elif [ -n "$address" ]; then
  ip address add "$address" dev eth0
  ip link set eth0 up
fi
printf '#!/bin/sh\\npoweroff -f\\n' > /etc/acpi/PWRF/00000080
chmod +x /etc/acpi/PWRF/00000080
acpid -d >/dev/null 2>&1 &
nc -ll -p 7000 -e /counter >/dev/null 2>&1 &
nc -ll -p 7001 -e /bin/cat >/dev/null 2>&1 &
( i=0; while :; do i=$((i+1)); echo $i > /run/ticks; sleep 1; done ) &
[ -x /work ] && /work
echo "novacron tiny guest: ready $address"
while :; do setsid cttyhack sh -l; done
"""

DHCP = """#!/bin/busybox sh
case "$1" in bound | renew)
  ip address add "$ip/$mask" dev "$interface"
  [ -z "$mtu" ] || ip link set "$interface" mtu "$mtu"
  for one in $router; do ip route add default via "$one" dev "$interface"; done
  : > /etc/resolv.conf
  [ -z "$domain" ] || echo "search $domain" >> /etc/resolv.conf
  for one in $dns; do echo "nameserver $one" >> /etc/resolv.conf; done
esac
"""

COUNTER = """#!/bin/busybox sh
i=0
while :; do i=$((i+1)); echo $i; usleep 10000; done
"""


class _Cpio:
    """Writes a cpio archive in the "newc" format that the kernel reads (Documentation: initramfs buffer format)."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._inode = 0

    def add(self, name: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)) -> None:
        self._inode += 1
        raw = name.encode() + b"\0"
        fields = (self._inode, mode, 0, 0, 1, 0, len(data), 0, 0, device[0], device[1], len(raw), 0)
        header = b"070701" + b"".join(b"%08X" % field for field in fields)
        for part in (header + raw, data):
            self._parts.append(part + b"\0" * (-len(part) % 4))

    def data(self) -> bytes:
        self.add("TRAILER!!!", 0)
        return b"".join(self._parts)


def download(directory: Path, package: str) -> Path:
    """Fetch a Debian package into ``directory`` and unpack it there; return the folder."""
    for old in directory.glob("*.deb"):
        old.unlink()
    subprocess.run(
        ["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", package],
        cwd=directory, check=True, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    unpacked = directory / package
    subprocess.run(["dpkg-deb", "-x", str(next(directory.glob("*.deb"))), str(unpacked)], check=True)
    return unpacked


def _kernel_package() -> str:
    shown = subprocess.run(["apt-cache", "depends", KERNEL_META], check=False, capture_output=True, text=True).stdout
    for line in shown.splitlines():
        name = line.split("Depends:")[-1].strip()
        if line.strip().startswith("Depends:") and name.startswith("linux-image-"):
            return name
    # Ubuntu has no "cloud" kernel: its "kvm" one is what cloud images use there, else the generic one.
    for meta in ("linux-image-virtual", "linux-image-generic"):
        shown = subprocess.run(["apt-cache", "depends", meta], check=False, capture_output=True, text=True).stdout
        for line in shown.splitlines():
            name = line.split("Depends:")[-1].strip()
            if line.strip().startswith("Depends:") and name.startswith("linux-image-"):
                return name
    raise SystemExit(f"no kernel package found: is there a package source for {KERNEL_META}?")


def _unpacked(path: Path) -> bytes:
    data = path.read_bytes()
    if path.suffix == ".xz":
        return lzma.decompress(data)
    if path.suffix == ".zst":
        return zstandard.ZstdDecompressor().decompressobj().decompress(data)
    return data


def _modules(root: Path, names: tuple[str, ...]) -> dict[str, bytes]:
    """Return the wanted modules that are not built into the kernel, each after those that it depends on."""
    paths = {path.name.split(".ko")[0].replace("-", "_"): path for path in root.rglob("*.ko*")}
    modules: dict[str, bytes] = {}

    def visit(name: str) -> None:
        if name in modules or name not in paths:
            return
        data = _unpacked(paths[name])
        depends = re.search(rb"\0depends=([^\0]*)\0", data)
        for dependency in depends[1].decode().split(",") if depends else ():
            visit(dependency.replace("-", "_"))
        modules[name] = data

    for name in names:
        visit(name)
    return modules


def _packages_with_modules(kernel: str) -> list[str]:
    """On Ubuntu the modules are in a package of their own."""
    return [kernel, kernel.replace("linux-image-", "linux-modules-").replace("-unsigned", "")]


def initramfs(busybox: bytes, modules: dict[str, bytes], extra: dict[str, bytes] | None = None) -> bytes:
    """Return the initial RAM disk. ``extra`` maps more file names to their contents; ``work`` runs before a login."""
    cpio = _Cpio()
    parents = {str(parent) for name in extra or {} for parent in Path(name).parents} - {"."}
    for directory in ("bin", "dev", "modules", *sorted(parents)):
        cpio.add(directory, 0o040755)
    cpio.add("dev/console", 0o020600, device=(5, 1))
    cpio.add("bin/busybox", 0o100755, busybox)
    cpio.add("bin/sh", 0o120777, b"busybox")
    for name, data in modules.items():
        cpio.add(f"modules/{name}.ko", 0o100644, data)
    cpio.add("init", 0o100755, INIT.replace("MODULES", " ".join(modules)).encode())
    cpio.add("counter", 0o100755, COUNTER.encode())
    cpio.add("dhcp", 0o100755, DHCP.encode())
    for name, data in (extra or {}).items():
        cpio.add(name, 0o100755, data)
    return cpio.data()


def is_built(target: Path) -> bool:
    """Say whether an image of this version is there."""
    return (target / MANIFEST).exists() and (target / "version").exists() and (
        (target / "version").read_text() == str(VERSION)
    )  # fmt: skip


def build(
    target: Path,
    extra: dict[str, bytes] | None = None,
    description: str = "tiny test guest",
    fill_disk: Callable[[Path], None] | None = None,
    more_modules: tuple[str, ...] = (),
) -> None:
    """Build the image in ``target``, whole or not at all; an image of this version that is there is kept.

    ``fill_disk`` makes the disk that its VMs have as ``/dev/vda``, if they are to have one, at the path that it gets.
    ``more_modules`` are kernel modules that it loads beside its own.
    """
    if is_built(target):
        return
    shutil.rmtree(target, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".building-", dir=target.parent) as scratch:
        work = Path(scratch)
        kernel_package = _kernel_package()
        roots = [download(work, kernel_package)]
        names = (*MODULES, *more_modules) if fill_disk is None else (*MODULES, *DISK_MODULES, *more_modules)
        modules = _modules(roots[0], names)
        if "virtio_net" not in modules:
            roots.append(download(work, _packages_with_modules(kernel_package)[1]))
            modules = _modules(roots[1], names)
        vmlinuz = next(path for root in roots for path in root.glob("boot/vmlinuz-*"))
        busybox = next(iter(download(work, "busybox-static").glob("**/bin/busybox")))
        image = work / "image"
        image.mkdir(mode=0o755)
        shutil.copyfile(vmlinuz, image / "vmlinuz")
        (image / "initrd.img").write_bytes(initramfs(busybox.read_bytes(), modules, extra))
        (image / "version").write_text(str(VERSION))
        disk = None
        if fill_disk is not None:
            fill_disk(image / "disk.raw")
            disk = describe(image / "disk.raw")
        kernel, initrd = describe(image / "vmlinuz"), describe(image / "initrd.img")
        manifest = Manifest("kernel", kernel, initrd, CMDLINE, description, disk)
        (image / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(manifest)))
        os.sync()
        image.rename(target)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m novacron.disk.tiny DIRECTORY")
    build(Path(sys.argv[1]))
    print(f"image is in {sys.argv[1]}")

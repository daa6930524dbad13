"""Which accelerator really runs guest code on this host.

That ``/dev/kvm`` opens proves nothing: under some nested virtualisation KVM_CREATE_VM succeeds and the guest then hangs
for ever, or QEMU aborts. So a boot sector (``probe.s``) is run up to 64-bit mode, with the CPU model that VMs get and a
time limit; what does not arrive there is not used.
"""

from __future__ import annotations

import asyncio
import os
import platform
import tempfile
from pathlib import Path

import msgspec

from novacron.model.node import Accelerator, AcceleratorKind

ARRIVED = 85
TIME_LIMIT_S = 5.0
CPU_MODELS = {AcceleratorKind.KVM: "host", AcceleratorKind.TCG: "max"}

CODE = bytes.fromhex(
    "fa31c08ed88ec08ed0bc007ce4920c02e69266bf001000000f22df6631c0b9000cfc66f3ab66c70600100320000066c7"
    "0600200330000066c7060030830000000f20e06683c8200f22e066b9800000c00f32660d000100000f300f20c0660d01"
    "0000800f22c00f0116a07cea707c080048b8efcdab896745230148c1e8203d674523017504b02ae6f4f4ebfd0f1f4000"
    "0000000000000000ffff0000009aaf000f00907c"
)


def boot_sector() -> bytes:
    """Return the 512 bytes that the probe boots."""
    return CODE.ljust(510, b"\0") + b"\x55\xaa"


def probe_command(binary: str, kind: AcceleratorKind, image: Path) -> list[str]:
    return [
        *(binary, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-machine", "pc", "-m", "16"),
        *("-accel", kind.value, "-cpu", CPU_MODELS[kind]),
        *("-drive", f"file={image},format=raw,if=floppy,readonly=on"),
        *("-device", "isa-debug-exit,iobase=0xf4,iosize=4"),
    ]


async def _try(binary: str, kind: AcceleratorKind) -> str | None:
    """Return None if guest code reached 64-bit mode, else what happened instead."""
    with tempfile.TemporaryDirectory(prefix="novacron-probe-") as directory:
        image = Path(directory) / "boot.img"
        image.write_bytes(boot_sector())
        process = await asyncio.create_subprocess_exec(
            *probe_command(binary, kind, image),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            _, stderr = await asyncio.wait_for(process.communicate(), TIME_LIMIT_S)
        except TimeoutError:
            process.kill()
            await process.wait()
            return f"guest code did not reach 64-bit mode within {TIME_LIMIT_S:.0f} s"
    if process.returncode == ARRIVED:
        return None
    lines = stderr.decode(errors="replace").strip().splitlines()
    return f"QEMU ended with {process.returncode}: {lines[0][:200] if lines else 'no message'}"


async def probe(binary: str) -> Accelerator:
    """Run the probe now. Raises RuntimeError when not even emulation works."""
    reason = "there is no /dev/kvm"
    if Path("/dev/kvm").exists():
        failure = "/dev/kvm can't be opened"
        if os.access("/dev/kvm", os.R_OK | os.W_OK):
            failure = await _try(binary, AcceleratorKind.KVM) or ""
        if not failure:
            return Accelerator(AcceleratorKind.KVM, "guest code reached 64-bit mode under KVM")
        reason = f"KVM does not work here: {failure}"
    failed = await _try(binary, AcceleratorKind.TCG)
    if failed is not None:
        raise RuntimeError(f"QEMU can't run a guest here, not even by emulation: {failed}")
    return Accelerator(AcceleratorKind.TCG, f"{reason}; emulation works")


class _Answer(msgspec.Struct):
    host: str
    accelerator: Accelerator


async def remembered(binary: str, version: str, path: Path) -> Accelerator:
    """Return the answer kept in ``path`` if kernel and QEMU are still the same, else probe and keep it."""
    host = f"{platform.release()} {version} {Path('/dev/kvm').exists()}"
    try:
        answer = msgspec.json.decode(path.read_bytes(), type=_Answer)
        if answer.host == host:
            return answer.accelerator
    except (FileNotFoundError, msgspec.DecodeError):
        pass
    accelerator = await probe(binary)
    path.write_bytes(msgspec.json.encode(_Answer(host, accelerator)))
    return accelerator

"""Which accelerator really runs guest code on this host.

That ``/dev/kvm`` opens proves nothing: under some nested virtualisation KVM_CREATE_VM succeeds and the guest then hangs
for ever, or QEMU aborts; or 64-bit code runs until its first exception. So a boot sector (``probe.s``) does what a
kernel does first, with the CPU model that VMs get and a time limit; what does not arrive at its end is not used.
"""

from __future__ import annotations

import asyncio
import os
import platform
import re
import tempfile
import zlib
from pathlib import Path

import msgspec

from novacron import child_environment
from novacron.model.errors import MALFORMED
from novacron.model.node import Accelerator, AcceleratorKind
from novacron.qemu.confine import account, confined, inherited_path

ARRIVED = 85
TIME_LIMIT_S = 5.0
CPU_MODELS = {AcceleratorKind.KVM: "host", AcceleratorKind.TCG: "max"}

CODE = bytes.fromhex(
    "fa31c08ed88ec08ed0bc007ce4920c02e69266bf001000000f22df6631c0b90014fc66f3ab66c70600100320000066c7"
    "06f81f0320000066c70600200330000066c706f02f0330000066c7060030830000000f20e06683c8200f22e066b98000"
    "00c00f32660d000100000f300f20c0660d010000800f22c00f0116687dea827c080048c7c08b7c0080ffe048c7c4007c"
    "00800f0114256e7d0080b8100000008ed88ec08ed06a0868ae7c008048cbb9010100c0b800000080baffffffff0f3065"
    "668b1c25fe7d000048c7c0467d00806689042530500080c1e81066c7042532500080080066c7042534500080008e6689"
    "042536500080c7042538500080ffffffff0f011c25787d00800f20e0480d800000000f22e00f20d90f22d931edcc83fd"
    "0175206681fb55aa751948b8efcdab896745230148c1e8203d674523017504b02ae6f4f4ebfdffc548cf660f1f440000"
    "0000000000000000ffff0000009aaf00ffff00000092cf001700507d00001700507d0080ffffffff3f0000500080ffff"
    "ffff"
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


async def _try(binary: str, kind: AcceleratorKind, uid: int | None = None) -> str | None:
    """Return None if guest code got through the probe, else what happened instead. It runs as VMs do, as ``uid``."""
    with tempfile.TemporaryFile() as file:
        file.write(boot_sector())
        file.flush()
        os.fchmod(file.fileno(), 0o644)
        command = probe_command(binary, kind, inherited_path(file.fileno()))
        process = await asyncio.create_subprocess_exec(
            *(command if uid is None else confined(command, account(uid, kind))),
            pass_fds=(file.fileno(),),
            env=child_environment.clean(),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            _, stderr = await asyncio.wait_for(process.communicate(), TIME_LIMIT_S)
        except TimeoutError:
            process.kill()
            await process.wait()
            return f"guest code did not get through 64-bit mode within {TIME_LIMIT_S:.0f} s"
    if process.returncode == ARRIVED:
        return None
    lines = stderr.decode(errors="replace").strip().splitlines()
    return f"QEMU ended with {process.returncode}: {lines[0][:200] if lines else 'no message'}"


async def probe(binary: str, uid: int | None = None) -> Accelerator:
    """Run the probe now, as user ``uid``. Raises RuntimeError when not even emulation works."""
    reason = "there is no /dev/kvm"
    if Path("/dev/kvm").exists():
        failure = "/dev/kvm can't be opened"
        if os.access("/dev/kvm", os.R_OK | os.W_OK):
            failure = await _try(binary, AcceleratorKind.KVM, uid) or ""
        if not failure:
            return Accelerator(AcceleratorKind.KVM, "guest code got through 64-bit mode under KVM")
        reason = f"KVM does not work here: {failure}"
    failed = await _try(binary, AcceleratorKind.TCG, uid)
    if failed is not None:
        raise RuntimeError(f"QEMU can't run a guest here, not even by emulation: {failed}")
    return Accelerator(AcceleratorKind.TCG, f"{reason}; emulation works")


class _CachedProbe(msgspec.Struct):
    host: str
    accelerator: Accelerator


def _cpu() -> str:
    """Return the processor's name: a host that is a VM itself may wake up on another."""
    model_name = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return model_name[1] if model_name else "unknown"


async def remembered(binary: str, version: str, path: Path, uid: int | None = None) -> Accelerator:
    """Return the answer kept in ``path`` if kernel, processor, QEMU and probe are the same, else probe and keep it."""
    host = f"{platform.release()} {_cpu()} {version} {Path('/dev/kvm').exists()} {zlib.crc32(CODE):08x} {uid}"
    try:
        answer = msgspec.json.decode(path.read_bytes(), type=_CachedProbe)
        if answer.host == host:
            return answer.accelerator
    except (FileNotFoundError, *MALFORMED):
        pass
    accelerator = await probe(binary, uid)
    path.write_bytes(msgspec.json.encode(_CachedProbe(host, accelerator)))
    return accelerator

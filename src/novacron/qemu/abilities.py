"""Processors and machine types that this host's QEMU offers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from typing import Any

import msgspec

from novacron import child_environment
from novacron.model.cpu import CpuModel
from novacron.model.node import AcceleratorKind
from novacron.qemu.probe import CPU_MODELS

LIMIT_S = 20.0
LINE_BYTES_MAX = 4 << 20
ALIASES = frozenset({"xd", "i64", "pclmuldq", "sse3", "ffxsr"})
"""Other names of features, beside those with dots and underscores."""
NO_FEATURES = frozenset({"migratable", "pmu", "hv-passthrough", "host-cache-info", "kvm"})


class Abilities(msgspec.Struct, frozen=True):
    cpu: CpuModel | None
    """None: QEMU did not say."""
    machines: tuple[str, ...]
    """With their versions."""


async def look(binary: str, kind: AcceleratorKind) -> Abilities:
    """Ask a QEMU that runs no guest. Raises RuntimeError."""
    process = await asyncio.create_subprocess_exec(
        binary, "-nodefaults", "-no-user-config", "-display", "none", "-machine", "none", "-accel", kind.value,
        "-qmp", "stdio",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
        limit=LINE_BYTES_MAX, env=child_environment.clean(),
    )  # fmt: skip
    try:
        async with asyncio.timeout(LIMIT_S):
            await _execute(process, "qmp_capabilities")
            full = await _model(process, CPU_MODELS[kind])
            bare = await _model(process, "base")
            machines = await _execute(process, "query-machines")
    except (TimeoutError, ValueError, KeyError, OSError) as error:
        raise RuntimeError(
            f"QEMU does not list its CPU models and machine types: {error or type(error).__name__}"
        ) from error
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
    names = tuple(sorted(machine["name"] for machine in machines or () if re.search(r"-\d+\.\d+$", machine["name"])))
    return Abilities(_cpu(full, bare), names)


async def _execute(process: asyncio.subprocess.Process, command: str, **arguments: object) -> Any:  # noqa: ANN401 - differs by command
    """Return what QEMU answers, None where it refuses. Raises ValueError."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
    await process.stdin.drain()
    while line := await process.stdout.readline():
        answer = json.loads(line)
        if "return" in answer:
            return answer["return"]
        if "error" in answer:
            return None
    raise ValueError("QEMU ended")


async def _model(process: asyncio.subprocess.Process, name: str) -> dict[str, Any]:
    expansion = await _execute(process, "query-cpu-model-expansion", type="full", model={"name": name})
    return {} if expansion is None else dict(expansion["model"]["props"])


def _cpu(full: dict[str, Any], bare: dict[str, Any]) -> CpuModel | None:
    """Return what a processor has that one without any features has not."""
    if not full or not bare:
        return None
    flags = {
        name
        for name, value in full.items()
        if value is True and bare.get(name) is False and re.fullmatch("[a-z0-9-]+", name)
    }
    return CpuModel(
        full["vendor"], full["family"], full["model"], full["stepping"], tuple(sorted(flags - ALIASES - NO_FEATURES))
    )


def argument(kind: AcceleratorKind, cpu: CpuModel | None) -> str:
    """Return QEMU's option for a guest's processor. QEMU does not start if the host lacks any of it."""
    if cpu is None:
        return CPU_MODELS[kind]
    identity = f"vendor={cpu.vendor},family={cpu.family},model={cpu.model},stepping={cpu.stepping}"
    return f"base,{identity},model-id=NovaCron,enforce=on," + ",".join(f"{flag}=on" for flag in cpu.flags)

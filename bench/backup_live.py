"""Part of ``script/bench backup``: a VM runs from its backup, whose repository is across a WAN, against the same VM
made from its image on the node."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from lab.hosts import Host
from lab.platform import Platform, until

PORT = 8765
GUEST_S_MAX, WHOLE_S_MAX = 300.0, 3600.0
COMPARED_BYTES = 1 << 20


class LiveRestored(NamedTuple):
    """One live restore."""

    local_s: float
    """From the request to the guest agent, of a VM that is made from its image."""
    live_s: float
    """The same, of one that is made from a backup across the WAN."""
    whole_s: float
    """From the request until all of its disk was there."""
    differing_bytes: int
    """Of the disk in the end, from its backup."""


@contextlib.contextmanager
def served(host: Host, directory: Path) -> Iterator[str]:
    """Have repositories in a directory served to other hosts, as restic's REST protocol has it; yield the address."""
    rclone = Path(sys.executable).parent / "rclone"
    process = subprocess.Popen(
        [*host.enter, str(rclone), "serve", "restic", "--addr", f"{host.address}:{PORT}", "--config", "/dev/null",
         str(directory)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield f"rest:http://{host.address}:{PORT}/?plain-http=yes"
    finally:
        process.kill()
        process.wait()


def measure(p: Platform, node: str, backup: dict[str, Any], image: str, number: int, password: str) -> LiveRestored:
    """Make a VM of a backup on a node, and one of its image, one after the other."""
    fields = {"memory_mib": backup["spec"]["memory_mib"], "node": node}
    local = _until_guest(p, p.client.create_vm(name=f"local-{number}", image=image, **fields))
    p.cli("vm", "delete", f"local-{number}", "--wait", "--yes")
    began, name = time.monotonic(), f"live-{number}"
    live = _until_guest(p, p.client.restore_backup(backup["id"], name, node=node, live=True))
    vm: Any = p.client.wait("vms", name, lambda now: now is None or now["clone_of"] is None, WHOLE_S_MAX)
    whole_s = time.monotonic() - began
    p.cli("vm", "stop", name, "--wait", "--timeout", "60")
    layer = p.directory / node / "agent" / "vms" / vm["id"] / "disk.qcow2"
    differing = _differing(p, layer, backup, password)
    p.cli("vm", "delete", name, "--wait", "--yes")
    return LiveRestored(local, live, whole_s, differing)


def _until_guest(p: Platform, vm: dict[str, Any]) -> float:
    began = time.monotonic()
    known = p.client.wait("vms", vm["id"], lambda now: now is None or now["status"]["guest"] is not None, GUEST_S_MAX)
    if known is None:
        raise RuntimeError(f"VM {vm['name']} is gone")
    return time.monotonic() - began


def _differing(p: Platform, layer: Path, backup: dict[str, Any], password: str) -> int:
    """Return in how many bytes a layer's disk, with nothing below it, differs from a backup's as restic reads it."""
    node = {"driver": "qcow2", "file": {"driver": "file", "filename": str(layer)}}
    raw = layer.with_name("compare.raw")
    subprocess.run(["qemu-img", "convert", "-O", "raw", f"json:{json.dumps(node)}", str(raw)], check=True)
    command = ["restic", "-q", "--no-cache", "--repo", str(p.backup_dir / backup["repository"]), "dump"]
    with (
        raw.open("rb") as has,
        subprocess.Popen(
            [*command, backup["result"]["snapshot"], "/vm/disk.raw"], stdout=subprocess.PIPE,
            env={**os.environ, "RESTIC_PASSWORD": password},
        ) as restic,
    ):  # fmt: skip
        assert restic.stdout is not None
        differing = 0
        while (was := restic.stdout.read(COMPARED_BYTES)) or has.peek(1):
            here = has.read(len(was) or COMPARED_BYTES)
            if here != was:
                differing += sum(a != b for a, b in zip(here, was, strict=False)) + abs(len(here) - len(was))
    if restic.returncode:
        raise RuntimeError("restic does not read the backup")
    raw.unlink()
    return differing


def _back_up(p: Platform, node: str, image: str, written_mib: int) -> dict[str, Any]:
    """Return a backup of a VM that has written random data onto its disk, which no image has, and is gone."""
    p.cli("vm", "create", "original", "--image", image, "--node", node)
    vm: Any = p.client.get("vms", "original")
    _until_guest(p, vm)
    write = ("dd", "if=/dev/urandom", "of=/dev/vda", "bs=1M", f"count={written_mib}", "conv=fsync")
    p.cli("vm", "exec", "original", "--", "/bin/busybox", *write)
    p.cli("vm", "stop", "original", "--wait", "--timeout", "60")
    repository: dict[str, Any] = p.client.create_backup_repository("bench-live")
    asked = p.client.back_up_vm(vm["id"], repository["id"])
    p.client.wait("backups", asked["id"], lambda now: now is None or now["phase"] != "making", WHOLE_S_MAX)
    p.cli("vm", "delete", "original", "--wait", "--yes")
    backup: dict[str, Any] = p.client.get("backups", asked["id"])
    return backup


def live_restores(p: Platform, image: str, written_mib: int, rounds: int) -> list[LiveRestored]:
    """Measure on the second host, which reaches the repositories on the first one only across the WAN. ``image``: of a
    guest with a guest agent, and with a disk to which it writes nothing by itself; ``written_mib``: what of a VM's disk
    is only in its backup."""
    near, far = p.lab.hosts[:2]
    backup = _back_up(p, near.name, image, written_mib)
    password = p.client.backup_repository_password(backup["repository"])
    with served(near, p.backup_dir) as address:
        agent = p.agents[far.name]
        agent.kill()
        agent.start("--backup-dir", address)
        until(lambda: agent.log.read_text(errors="replace").count('"agent is up"') > 1, "the agent is up", 60)
        p.wait_node(far.name)
        return [measure(p, far.name, backup, image, number, password) for number in range(rounds)]

"""The way back of a VM that went on elsewhere: how much goes over the link for what has changed meanwhile."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from datetime import UTC, datetime
from typing import Any, NamedTuple

from bench.report import Figure
from lab.guest import shell
from lab.hosts import lab, missing
from lab.images import images_dir
from lab.platform import Platform, default_cache, open_directory, platform, until
from novacron.model.lease import LEASE_S, MARGIN_S

RPO_S = 5
BACK_RATIO, SWITCH_RATIO = 1.1, 5.0
MIB = 1 << 20
BOOT_S_MAX, FIRST_S_MAX, WRITE_S_MAX, MOVED_S_MAX = 180.0, 900.0, 600.0, 900.0
READY = "tiny guest: ready"


class Size(NamedTuple):
    """How much is measured."""

    disk_mib: int
    filled_mib: int
    """What the VM has written before it is replicated."""
    changed_mib: int
    """What it writes after the failover, while its first host is away."""


SWITCH_BOUND_FROM_MIB = 1000
"""Of what the VM has written: with less, what its memory takes hides what its disk is spared."""
SIZES = {"full": Size(1536, 1024, 96), "quick": Size(512, 192, 32), "smoke": Size(64, 8, 2)}
"""96 MiB are 100 MB."""


def failback_figures(size: Size) -> list[Figure]:
    """Measure on two hosts with the lab's WAN between them: 100 Mbit/s, 50 ms, 0.1 % loss."""
    lacks = missing()
    with (
        open_directory("nvb-") as directory,
        lab(f"nvb{os.getpid()}", default_cache(), namespaces=not lacks) as hosts,
        platform(directory / "p", hosts, images_dir()) as p,
    ):
        vm = _boot(p, "vm-0", size)
        replica = p.client.replicate_vm(vm["id"], node="host-b", rpo_s=RPO_S)
        _until_follows(p, replica["id"])
        return [*_back(p, vm, size), *_switch(p, vm, size)]


def _boot(p: Platform, name: str, size: Size) -> dict[str, Any]:
    vm = p.client.create_vm(name=name, image="disk", memory_mib=128, disk_mib=size.disk_mib, node="host-a")
    until(lambda: READY in p.console_log(vm, "host-a"), "the VM has booted", BOOT_S_MAX)
    booted: dict[str, Any] = p.client.get("vms", vm["id"])
    _write(p, booted, size.filled_mib, at_mib=16)
    return booted


def _write(p: Platform, vm: dict[str, Any], mib: int, at_mib: int) -> None:
    """Let the guest write what can't be compressed."""
    what = f"dd if=/dev/urandom of=/dev/vda bs=1M count={mib} seek={at_mib} conv=notrunc,fsync"
    shell(p.client, vm["id"], f"(rm -f /tmp/w; {what}; touch /tmp/w) >/dev/null 2>&1 & echo begun")
    until(
        lambda: "yes" in shell(p.client, vm["id"], "test -e /tmp/w && echo yes || echo no"),
        "it is written",
        WRITE_S_MAX,
    )


def _until_follows(p: Platform, replica: str) -> dict[str, Any]:
    """Wait until a replica has all that was written until now."""
    moment = datetime.now(UTC)

    def newer() -> dict[str, Any] | None:
        now: dict[str, Any] = p.client.get("replicas", replica)
        return now if now["points"] and datetime.fromisoformat(now["points"][-1]["at"]) > moment else None

    found: dict[str, Any] = until(newer, "the replica has a newer point", FIRST_S_MAX)
    return found


def _back(p: Platform, vm: dict[str, Any], size: Size) -> list[Figure]:
    """Lose the VM's host, let the VM write elsewhere, and look what it costs when the host is back."""
    p.agents["host-a"].kill()
    for key, pid in p.qemus().items():
        if key.startswith("host-a/"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    time.sleep(LEASE_S + MARGIN_S + 2)
    p.client.fail_over_vm(vm["id"], confirm="host-a")
    until(lambda: READY in p.console_log(vm, "host-b"), "the VM has booted on host-b", MOVED_S_MAX)
    moved = p.client.get("vms", vm["id"])
    _write(p, moved, size.changed_mib, at_mib=16)
    [turned] = p.client.list("replicas", node="host-a")
    carried, began = p.lab.link_bytes(), time.monotonic()
    p.agents["host-a"].start()
    p.wait_node("host-a")
    _until_follows(p, turned["id"])
    took_s, bytes_ = time.monotonic() - began, p.lab.link_bytes() - carried
    last = until(lambda: _said(p, turned["id"]), "it is said what was sent", FIRST_S_MAX)
    print(f"the round was {last['round_kind']}: {last['round_reason']}", flush=True)
    of = f"{size.changed_mib} MiB of {size.filled_mib} MiB changed"
    return [
        Figure(
            f"failback, {of}: bytes on the link for each that changed",
            bytes_ / (size.changed_mib * MIB),
            "x",
            BACK_RATIO,
        ),
        Figure("... from the return of the host to a point with all of it", took_s, "s"),
    ]


def _said(p: Platform, replica: str) -> dict[str, Any] | None:
    now: dict[str, Any] = p.client.get("replicas", replica)
    return now if now["round_kind"] is not None else None


def _switch(p: Platform, vm: dict[str, Any], size: Size) -> list[Figure]:
    """Move the VM back to its replica while it runs, and another one the same way without."""
    other = _boot(p, "vm-1", size)
    without = _moved(p, other, "host-b")
    with_replica = _moved(p, vm, "host-a")
    bound = SWITCH_RATIO if size.filled_mib >= SWITCH_BOUND_FROM_MIB else None
    of = f"planned switch of a VM that runs, with {size.filled_mib} MiB written"
    return [
        Figure(f"{of}: bytes on the link", with_replica / MIB, "MiB"),
        Figure("... a migration without a replica", without / MIB, "MiB"),
        Figure("... so many times fewer", without / max(1, with_replica), "x", bound, at_least=True),
    ]


def _moved(p: Platform, vm: dict[str, Any], target: str) -> int:
    """Migrate a VM; return the bytes on the link."""
    carried = p.lab.link_bytes()
    p.client.act("vms", vm["id"], "migrate", {"target": target})
    p.wait_vm(
        vm["id"], lambda now: now["node"] == target and now["migration"] is None, f"it is on {target}", MOVED_S_MAX
    )
    return p.lab.link_bytes() - carried

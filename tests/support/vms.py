"""VMs of the integration tests: booted, asked and looked at."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lab import guest
from lab.platform import Platform, until
from novacron.client import ApiError

NewVm = Callable[..., dict[str, Any]]


def wait_until_booted(site: Platform, vm: dict[str, Any]) -> None:
    """Wait until the guest has booted."""
    node = site.wait_state(vm["id"], "running")["node"]
    until(lambda: "tiny guest: ready" in site.console_log(vm, node), f"{vm['name']} has booted", 60)


def count_boots(site: Platform, vm: dict[str, Any]) -> int:
    """Return how often the guest has begun to boot."""
    return site.console_log(site.client.get("vms", vm["id"])).count("tiny guest: up")


def wait_for_guest_agent(site: Platform, vm: dict[str, Any]) -> dict[str, Any]:
    return site.wait_vm(vm["id"], lambda now: now["status"]["guest"] is not None, "its guest agent answers", 60)


Object = dict[str, Any]


def shell(site: Platform, vm: Object, command: str) -> str:
    return guest.shell(site.client, vm["id"], command)


def write_to_disk(site: Platform, vm: Object, text: str) -> None:
    shell(site, vm, f"echo {text} | dd of=/dev/vda conv=fsync,notrunc bs=4096 seek=2048 2>/dev/null; echo done")


def read_from_disk(site: Platform, vm: Object) -> str:
    drop = "echo 3 > /proc/sys/vm/drop_caches"
    return shell(site, vm, f"{drop}; dd if=/dev/vda bs=4096 skip=2048 count=1 2>/dev/null | head -n 1")


def directory_of(site: Platform, vm: Object) -> Path:
    return site.directory / str(vm["node"]) / "agent" / "vms" / str(vm["id"])


def snapshots_in_file(site: Platform, vm: Object) -> list[str]:
    said = subprocess.run(
        ["qemu-img", "info", "-U", "--output", "json", str(directory_of(site, vm) / "disk.qcow2")],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    return [snapshot["name"] for snapshot in json.loads(said.stdout).get("snapshots", [])]


def wait_until_node_answers(site: Platform, vm: Object) -> None:
    """Wait until the VM's node is connected, after something was killed."""

    def does() -> bool:
        with contextlib.suppress(ApiError):
            site.client.console_log(vm["id"])
            return True
        return False

    until(does, "its node answers")


def boot_vm(site: Platform, new_vm: NewVm, **fields: Any) -> Object:
    vm = new_vm(image="disk", **fields)
    wait_until_booted(site, vm)
    return site.client.get("vms", vm["id"])


def put_clock_back(site: Platform, vm: Object) -> None:
    """QEMU's guest agent sets no clock where there is no ``hwclock``."""
    shell(site, vm, "mkdir -p /sbin; ln -sf /bin/busybox /sbin/hwclock; echo done")
    assert shell(site, vm, "date -s '2020-01-01 00:00:00' >/dev/null; date +%Y") == "2020"


def until_clock_is_right(site: Platform, vm: Object) -> None:
    until(lambda: abs(int(shell(site, vm, "date +%s")) - time.time()) < 30, "the guest's clock is right", 60)

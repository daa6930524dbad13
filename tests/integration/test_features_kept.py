"""The table of what becomes of each feature, on real QEMU: one guest with it goes through all operations in turn."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.feature_matrix import FEATURES, Fate, Feature, Operation
from lab.platform import Platform, until
from tests.support import boot_sector, iso
from tests.support.partial import holds
from tests.support.vm_backups import NewRepository, back_up
from tests.support.vms import NewVm, Object

pytestmark = pytest.mark.slow
BOOT_S = 90
OPTIONS = ("-device", "-numa", "-smbios", "-smp", "-m", "-boot")
"""Of QEMU: what a guest finds. The machine type is that of the first start, as the status says."""
OWN = re.compile(r"(fds?|mac|drive|chardev|uuid|file|bootindex_once)=[^,]*|type=1,serial=ds=[^,]*")
"""What differs between VMs that are alike, or between starts."""


@pytest.fixture(scope="module")
def parts(site: Platform, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An image that boots, an ISO on both hosts, and the networks that the features name."""
    folder = tmp_path_factory.mktemp("parts")
    (folder / "disk.raw").write_bytes(boot_sector.sector("booted disk").ljust(1 << 20, b"\0"))
    (folder / "cd.iso").write_bytes(iso.bootable("booted cd"))
    site.cli("image", "import", "featured", str(folder / "disk.raw"), "--node", "host-a")
    site.cli("image", "import", "cd", str(folder / "cd.iso"), "--format", "iso", "--node", "host-a")
    for name in ("featured", "cd"):
        site.cli("image", "copy", name, "host-b")
    site.client.create_network("lan", subnet="10.23.0.0/24")
    site.client.create_network("six", subnet6="fd23:0:0:6::/64")
    yield "featured"
    for name in ("lan", "six"):
        site.client.delete("networks", name)
    for name in ("featured", "cd"):
        site.cli("image", "delete", name)


def hardware(site: Platform, vm: Object) -> list[str]:
    """Return what the guest of a VM finds, as its QEMU was told."""
    node = site.client.get("vms", vm["id"])["node"]
    pid = site.qemus()[f"{node}/{vm['id']}"]
    arguments = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    return sorted(
        f"{option} {OWN.sub('', value)}" for option, value in itertools.pairwise(arguments) if option in OPTIONS
    )


def boots(site: Platform, vm: Object, count: int = 1) -> Object:
    def has() -> bool:
        return site.console_log(site.client.get("vms", vm["id"])).count("booted disk") >= count

    site.wait_state(vm["id"], "running", BOOT_S)
    until(has, f"{vm['name']} has booted", BOOT_S)
    return site.client.get("vms", vm["id"])


def restart(site: Platform, node: str, vm: Object | None = None) -> None:
    """End an agent as a power cut would, with a VM of its host if one is named, and start it again."""
    site.agents[node].kill()
    if vm is not None:
        site.kill_qemu(vm)
    site.agents[node].start()
    site.wait_node(node)


class Guest:
    """A VM with a feature, and what it had in the beginning."""

    def __init__(
        self, site: Platform, feature: Feature, vm: Object, tmp_path: Path, new_name: Callable[[], str]
    ) -> None:
        self.site, self.feature, self.tmp_path, self.new_name = site, feature, tmp_path, new_name
        self.vm = boots(site, vm)
        self.had = hardware(site, vm)

    def live(self) -> Object:
        self.site.cli("vm", "migrate", self.vm["name"], "--to", "host-b")
        return self.vm

    def warm(self) -> Object:
        self.site.cli("vm", "migrate", self.vm["name"], "--to", "host-a", "--warm")
        return self.vm

    def snapshot(self) -> Object:
        self.site.cli("snapshot", "create", self.vm["name"], "whole", "--memory")
        self.site.cli("snapshot", "revert", self.vm["name"], "whole")
        self.site.cli("snapshot", "delete", self.vm["name"], "whole")
        return self.vm

    def agent(self) -> Object:
        pid = self.site.qemus()[f"host-a/{self.vm['id']}"]
        restart(self.site, "host-a")
        self.site.wait_state(self.vm["id"], "running")
        assert self.site.qemus()[f"host-a/{self.vm['id']}"] == pid, "the same guest runs"
        return self.vm

    def clone(self) -> Object:
        name = self.new_name()
        self.site.cli("vm", "clone", self.vm["name"], name, "--wait")
        return self.site.client.get("vms", name)

    def template(self) -> Object:
        name = self.new_name()
        self.site.client.create_template(name, vm=self.vm["id"])
        made = self.site.client.create_vm(name=name, template=name, node="host-a")
        self.site.client.delete("templates", name)
        return made

    def export(self) -> Object:
        file, name = self.tmp_path / "vm.tar", self.new_name()
        self.site.cli("vm", "export", self.vm["name"], str(file))
        self.site.cli("vm", "import", str(file), name, "--node", "host-a", "--wait")
        return self.site.client.get("vms", name)

    def cold(self) -> Object:
        self.site.cli("vm", "kill", self.vm["name"], "--wait")
        self.site.cli("vm", "migrate", self.vm["name"], "--to", "host-b")
        self.site.cli("vm", "start", self.vm["name"], "--wait")
        return self.vm

    def host(self) -> Object:
        boots(self.site, self.vm)
        restart(self.site, "host-b", self.vm)
        return self.vm


STILL_RUNNING = (Operation.LIVE, Operation.WARM, Operation.SNAPSHOT, Operation.AGENT)
"""Operations after which the same guest runs, without another boot."""
IN_TURN = (Operation.LIVE, Operation.WARM, Operation.SNAPSHOT, Operation.AGENT, Operation.CLONE, Operation.TEMPLATE,
           Operation.EXPORT, Operation.BACKUP, Operation.COLD, Operation.HOST)  # fmt: skip
METHODS = {Operation.LIVE: Guest.live, Operation.WARM: Guest.warm, Operation.SNAPSHOT: Guest.snapshot,
           Operation.AGENT: Guest.agent, Operation.CLONE: Guest.clone, Operation.TEMPLATE: Guest.template,
           Operation.EXPORT: Guest.export, Operation.COLD: Guest.cold, Operation.HOST: Guest.host}  # fmt: skip


@pytest.mark.parametrize("feature", [each for each in FEATURES if each.real], ids=lambda feature: feature.name)
def test_a_guest_keeps_its_feature_in_every_operation(
    site: Platform, feature: Feature, new_vm: NewVm, new_name: Callable[[], str], new_repository: NewRepository,
    parts: str, tmp_path: Path,
) -> None:  # fmt: skip
    vm = new_vm(image=parts, node="host-a", restart="always", **feature.fields)
    guest = Guest(site, feature, vm, tmp_path, new_name)
    problems: list[str] = []
    for operation in IN_TURN:
        if operation is Operation.BACKUP:
            kept = back_up(site, guest.vm, new_repository())
            now = site.client.restore_backup(kept["id"], new_name(), node="host-a")
        else:
            now = METHODS[operation](guest)
        site.wait_state(now["id"], "running", BOOT_S)
        if operation not in STILL_RUNNING:
            boots(site, now)
        problems += wrong(site, guest, operation, site.client.get("vms", now["id"]))
        if now["id"] != guest.vm["id"]:
            site.cli("vm", "delete", now["name"], "--wait", "--yes")
            if operation is Operation.EXPORT:
                site.cli("image", "delete", f"{now['name']}-disk")
    assert not problems, "change lab/feature_matrix.py, or what happens"


def wrong(site: Platform, guest: Guest, operation: Operation, now: dict[str, Any]) -> Iterator[str]:
    """Yield how a VM is not what the table says after an operation, or its guest's hardware not what it was."""
    feature, cell = guest.feature, guest.feature.cell(operation)
    has = all(holds(value, {**now["spec"], **now}.get(field)) for field, value in feature.fields.items())
    if has != (cell.fate is Fate.KEPT):
        yield f"{operation}: {cell.words()}, but there is {now['spec']}"
    is_ = hardware(site, now)
    if has and "nics" not in feature.fields and is_ != guest.had:
        yield f"{operation}: {sorted(set(guest.had) - set(is_))} became {sorted(set(is_) - set(guest.had))}"

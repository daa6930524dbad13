"""A QEMU that a guest has taken over: what it can reach of the host."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from qemu.qmp import ExecuteError, QMPClient

from lab.platform import Platform, until
from novacron.qemu import lease_guard, pid_namespace, process
from novacron.qemu.process import LOG, Surroundings
from novacron.qemu.running import OWNER, STATE

NewVm = Callable[..., dict[str, Any]]

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give VMs users of their own")


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def seen(pid: int) -> set[int]:
    """Return the processes that a process finds in its /proc, as it counts."""
    return {int(entry.name) for entry in Path(f"/proc/{pid}/root/proc").iterdir() if entry.name.isdecimal()}


def test_each_qemu_runs_as_its_own_user_without_rights_or_network(site: Platform, new_vm: NewVm) -> None:
    first_vm, other = (site.wait_state(new_vm(image="disk", node="host-a")["id"], "running") for _ in range(2))
    first, second = (status(vm["status"]["pid"]) for vm in (first_vm, other))
    assert first["Uid"] != second["Uid"]
    for fields in (first, second):
        assert set(fields["Uid"].split()) == set(fields["Gid"].split()) and int(fields["Uid"].split()[0]) >= 1 << 16
        assert fields["Groups"] == "" and fields["NoNewPrivs"] == "1" and fields["Seccomp"] == "2"
        assert {fields[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
    pid = first_vm["status"]["pid"]
    for kind in ("net", "ipc", "mnt", "pid"):
        assert Path(f"/proc/{pid}/ns/{kind}").readlink() != Path(f"/proc/self/ns/{kind}").readlink()
    assert seen(pid) == {1}, "it sees no process but itself"
    variables = {line.partition(b"=")[0].decode() for line in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")}
    assert variables - {""} <= {"PATH", "LC_ALL", "TMPDIR", OWNER, STATE, "PWD", "OLDPWD", "SHLVL", "_"}
    share = re.search(r":(?:[a-z,]*memory[a-z,]*)?:(/novacron/\S+)", Path(f"/proc/{pid}/cgroup").read_text())
    assert share is not None, "it has its share of the host"
    places = [path for root in ("memory", "") if (path := Path(f"/sys/fs/cgroup/{root}{share[1]}")).exists()]
    assert len(places) == 1
    site.cli("vm", "delete", first_vm["name"], "--wait", "--yes")
    assert not places[0].exists(), "which goes with it"


async def test_what_has_pids_of_its_own_is_known_to_the_host_by_its_process_and_exit_status(tmp_path: Path) -> None:
    before = Path("/proc/self/ns/pid_for_children").readlink()
    own = Surroundings(own_pids=True)
    pid = await asyncio.to_thread(process.spawn, ["/bin/sh", "-c", "echo I am $$; exit 7"], tmp_path, (), own)
    assert await process.ended(pid) == 7
    assert (tmp_path / LOG).read_text() == "I am 1\n"
    with pytest.raises(FileNotFoundError):
        await asyncio.to_thread(process.spawn, ["/nowhere/qemu"], tmp_path, (), own)
    pid = await asyncio.to_thread(process.spawn, ["/bin/sleep", "60"], tmp_path, (), own)
    assert pid_namespace.host_threads(pid) == {1: pid}
    assert pid_namespace.host_threads(os.getpid())[os.getpid()] == os.getpid()
    await process.kill(pid)
    assert not Path(f"/proc/{pid}").exists()
    assert Path("/proc/self/ns/pid_for_children").readlink() == before
    for _ in range(3):  # whatever is started afterwards is started as before
        assert await asyncio.to_thread(subprocess.check_output, ["/bin/sh", "-c", "echo $$"]) != b"1\n"


async def test_what_has_pids_of_its_own_ends_with_its_lease_guard(tmp_path: Path) -> None:
    lease = tmp_path / "lease"
    lease.write_text(f"{lease_guard.boot_id()} {lease_guard.since_boot_s() + 10} 0\n")
    own = Surroundings(lease=lease, own_pids=True)
    pid = await asyncio.to_thread(process.spawn, ["/bin/sleep", "60"], tmp_path, (), own)
    assert status(pid)["NSpid"].split() == [str(pid), "1"] and process.is_kept(pid)
    os.kill(int(status(pid)["PPid"]), signal.SIGKILL)
    await asyncio.wait_for(process.ended(pid), 10)
    pid = await asyncio.to_thread(process.spawn, ["/bin/sleep", "60"], tmp_path, (), own)
    lease.write_text("it is over\n")
    await asyncio.wait_for(process.ended(pid), 10)


def test_the_kernel_also_limits_what_a_qemu_reads_and_writes(site: Platform, new_vm: NewVm) -> None:
    vm = new_vm(image="disk", disk_bytes_per_s=5_000_000, disk_iops=700)
    pid = site.wait_state(vm["id"], "running")["status"]["pid"]
    lines = Path(f"/proc/{pid}/cgroup").read_text()
    share = re.search(r":(?:[a-z,]*blkio[a-z,]*)?:(/novacron/\S+)", lines)
    assert share is not None
    files = ("blkio/{}/blkio.throttle.write_bps_device", "blkio/{}/blkio.throttle.read_iops_device", "{}/io.max")
    paths = [Path("/sys/fs/cgroup") / file.format(share[1].strip("/")) for file in files]

    def said() -> str:
        return "".join(path.read_text() for path in paths if path.exists())

    until(lambda: "5000000" in said() and "700" in said(), "it has its limits")
    site.client.configure_vm(vm["id"], disk_bytes_per_s=None, disk_iops=None)
    until(lambda: "5000000" not in said() and "700" not in said(), "they are gone")


async def test_a_qemu_cannot_open_files_of_other_vms_or_of_the_agent(site: Platform, new_vm: NewVm) -> None:
    """QEMU itself is told, over its monitor, to open them: what its process may, not what we think it may."""
    mine, other = (site.wait_state(new_vm(image="disk", node="host-a")["id"], "running") for _ in range(2))
    states = site.directory / mine["node"] / "agent"
    volume = site.client.create_volume("theirs", size_mib=1, node=other["node"])
    foreign = states / "volumes" / f"{volume['id']}.raw"
    until(foreign.exists, "there is a volume that is not its own")
    other_directory = site.directory / other["node"] / "agent" / "vms" / other["id"]
    until(lambda: (other_directory / "disk.qcow2").exists(), "the other VM has its disk")
    agent = site.agents[mine["node"]]
    agent.kill()  # QEMU listens to one at a time
    monitor = QMPClient()
    await monitor.connect(str(states / "vms" / mine["id"] / "qmp.sock"))
    forbidden = [
        foreign, other_directory / "disk.qcow2", Path("..") / other["id"] / "disk.qcow2",
        other_directory / "console.log",
        *(states / "identity").iterdir(), *(states / "journal").iterdir(),
        Path("/etc/shadow"), site.directory / "pg" / "data" / "PG_VERSION", site.config,
    ]  # fmt: skip
    assert site.server.process is not None
    processes = [Path(f"/proc/{pid}/cmdline") for pid in (os.getpid(), site.server.process.pid, other["status"]["pid"])]
    try:
        for path in processes:
            block = {"driver": "file", "filename": str(path), "node-name": "stolen", "read-only": True}
            with pytest.raises(ExecuteError, match="No such file"):
                await monitor.execute("blockdev-add", block)
        for path in forbidden:
            for read_only in (True, False):
                block = {"driver": "file", "filename": str(path), "node-name": "stolen", "read-only": read_only}
                with pytest.raises(ExecuteError, match="Permission denied"):
                    await monitor.execute("blockdev-add", block)
        for name in ("qmp.sock", "console.sock"):
            address = {"type": "unix", "data": {"path": str(other_directory / name)}}
            backend = {"type": "socket", "data": {"addr": address, "server": False}}
            with pytest.raises(ExecuteError, match="Permission denied"):
                await monitor.execute("chardev-add", {"id": "stolen", "backend": backend})
        port = str(site.ports[0])
        address = {"type": "inet", "data": {"host": "127.0.0.1", "port": port}}
        backend = {"type": "socket", "data": {"addr": address, "server": False}}
        with pytest.raises(ExecuteError, match=r"unreachable|refused"):
            await monitor.execute("chardev-add", {"id": "stolen", "backend": backend})
        planted = {"id": "planted", "backend": {"type": "file", "data": {"out": "planted"}}}
        with pytest.raises(ExecuteError, match="Permission denied"):  # it puts nothing beside the agent's files
            await monitor.execute("chardev-add", planted)
    finally:
        await monitor.disconnect()
        agent.start()
    site.client.delete("volumes", volume["id"])
    site.wait_node(mine["node"])
    until(lambda: not foreign.exists(), "the volume is gone")


def test_a_symbolic_link_among_a_tpms_files_is_not_followed(site: Platform, new_vm: NewVm) -> None:
    """The directory of a TPM's memory is its own user's: what lies there moves with the VM, and to its clones."""
    vm = site.wait_state(new_vm(image="disk", tpm=True, node="host-a")["id"], "running")
    site.cli("vm", "kill", vm["name"], "--wait")
    vms = [site.directory / node / "agent" / "vms" for node in ("host-a", "host-b")]
    planted = vms[0] / vm["id"] / "tpm" / "tpm2-00.permall"
    planted.unlink(missing_ok=True)
    planted.symlink_to("/etc/shadow")
    owner = planted.parent.stat().st_uid
    os.chown(planted, owner, owner, follow_symlinks=False)
    clone = site.client.clone_vm(vm["id"], f"{vm['name']}-c", power="stopped")
    until(lambda: site.client.get("vms", clone["id"])["clone_of"] is None, "it is cloned")
    site.cli("vm", "migrate", vm["name"], "--to", "host-b")
    assert (vms[1] / vm["id"] / "disk.qcow2").exists()
    for place in (vms[0] / clone["id"], vms[1] / vm["id"]):
        assert not os.path.lexists(place / "tpm" / "tpm2-00.permall")
    site.cli("vm", "delete", clone["name"], "--wait", "--yes")

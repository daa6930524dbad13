"""Agents whose state folder was moved away, copied or put back from a copy while their VMs run, and databases that were
put back: with real QEMU."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lab.platform import Platform, Service, until
from novacron.qemu.running import files_of
from tests.e2e.conftest import boot, delete, migrate_once_peers_answer, until_counts_on, until_settled, watching


def qemus_of(victim: Platform, vm: dict[str, Any]) -> list[int]:
    """Return the QEMUs that run a VM anywhere on this machine, found by their command line alone."""
    pids = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdecimal() and f"guest={vm['id']}".encode() in (entry / "cmdline").read_bytes().split(b"\0"):
                pids.append(int(entry.name))
    return pids


@contextlib.contextmanager
def agent_with(victim: Platform, state: Path) -> Iterator[Service]:
    """Yield another agent of host-b, which works with another state folder, and end it."""
    host, own = victim.host("host-b"), victim.agents["host-b"]
    arguments = [
        *("agent", "--name", "host-b", "--state-dir", str(state), "--images-dir", str(victim.images_of("host-b"))),
        *("--advertise", host.address, "--dwcp-port", "7446", *(("--bridge", "br0") if host.netns else ())),
        *("--pool", f"small={victim.directory / 'host-b' / 'small'}", "--shared-pool", f"nfs={victim.shared_pool}"),
    ]
    agent = Service("copy", arguments, victim.directory / "copy.log", host.enter, {})
    agent.env = dict(own.env)
    try:
        yield agent
    finally:
        agent.kill()


def refused(agent: Service) -> str:
    """Start an agent that must end by itself; return what it said."""
    before = len(agent.log.read_text()) if agent.log.exists() else 0
    agent.start()
    until(lambda: not agent.running, "it does not start", 40)
    assert agent.process is not None and agent.process.returncode != 0
    return agent.log.read_text()[before:]


def test_no_copy_of_a_state_folder_is_used_while_its_vms_run(victim: Platform) -> None:
    vm = boot(victim, "copied", 71, node="host-b", memory_mib=128, image="disk")
    agent, state = victim.agents["host-b"], victim.directory / "host-b" / "agent"
    (pid,) = qemus_of(victim, vm)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as other_disk, watching(victim, 71) as client:
        shutil.copytree(state, Path(other_disk) / "agent", symlinks=True, ignore=shutil.ignore_patterns("*.sock"))
        with agent_with(victim, Path(other_disk)) as copy:
            assert "is an agent of node host-b on this host already" in refused(copy)
            agent.kill()
            said = refused(copy)
            assert f"{vm['id']} (process {pid}, in {state / 'vms' / vm['id']})" in said
            assert f"--state-dir {state.parent}" in said, "it names the folder to use"
            note = Path(other_disk) / "agent" / "host.json"
            note.write_text('{"hardware": "", "system": "another"}')
            assert "comes from another host, which may run the same VMs" in refused(copy)
            moved = [sys.executable, "-m", "novacron", "agent", "--state-moved", "--state-dir", other_disk]
            subprocess.run(moved, check=True, capture_output=True, timeout=60)
            assert f"{vm['id']} (process {pid}" in refused(copy), "its VM runs here all the same"
        # An older copy in the folder's place.
        state.rename(f"{state}-bad")
        shutil.copytree(Path(other_disk) / "agent", state, symlinks=True)
        try:
            assert f"{state}-bad" in refused(agent)
        finally:
            shutil.rmtree(state)
            Path(f"{state}-bad").rename(state)
        assert qemus_of(victim, vm) == [pid]
        agent.start()
        victim.wait_node("host-b")
        assert until_settled(victim, vm)["status"]["pid"] == pid
        until_counts_on(victim, client, vm)
    delete(victim, vm)


def test_a_wiped_agent_that_joins_again_takes_over_its_vms_with_all_that_they_are(victim: Platform) -> None:
    vm = boot(victim, "wiped", 72, node="host-b", memory_mib=128, image="disk")
    volume = victim.client.create_volume("of-wiped", size_mib=8, node="host-b")
    victim.cli("volume", "attach", "of-wiped", "wiped")
    agent, state = victim.agents["host-b"], victim.directory / "host-b" / "agent"
    (pid,) = qemus_of(victim, vm)
    disk = state / "volumes" / f"{volume['id']}.raw"
    until(lambda: disk in files_of(pid), "it has the volume")
    away = Path(f"{state}-away")
    with watching(victim, 72) as client:
        agent.kill()
        state.rename(away)
        victim.wait_node("host-b", ready=False)
        assert "is not ready" in victim.cli("vm", "migrate", "wiped", check=False).stderr
        agent.start(*victim.join("host-b"))
        victim.wait_node("host-b")
        until(lambda: victim.client.get("vms", vm["id"])["status"]["pid"] == pid, "its QEMU is adopted")
        assert until_settled(victim, vm)["status"]["state"] == "running"
        assert qemus_of(victim, vm) == [pid]
        until_counts_on(victim, client, vm)
        migrate_once_peers_answer(victim, "wiped", "host-a")
        until_counts_on(victim, client, vm)
    assert not (away / "volumes" / disk.name).exists(), "its volume went with it"
    assert (away / "identity").exists() and not list((away / "vms").iterdir())
    delete(victim, vm)
    victim.client.delete("volumes", volume["id"])
    victim.until_clean()
    shutil.rmtree(away)


def test_a_vm_whose_files_were_removed_while_it_ran_does_not_run_beside_its_successor(victim: Platform) -> None:
    vm = boot(victim, "removed", 73, node="host-b", memory_mib=128)
    agent, state = victim.agents["host-b"], victim.directory / "host-b" / "agent"
    (pid,) = qemus_of(victim, vm)
    agent.kill()
    shutil.rmtree(state)
    victim.wait_node("host-b", ready=False)
    agent.start(*victim.join("host-b"))
    victim.wait_node("host-b")
    until(lambda: len(qemus_of(victim, vm)) == 1 and pid not in qemus_of(victim, vm), "a new one runs alone", 60)
    until_settled(victim, vm)
    delete(victim, vm)
    victim.until_clean()


def refused_by_name(victim: Platform, name: str, *command: str) -> None:
    """Check that a command about a VM does nothing, and says what to do."""
    done = victim.cli("vm", *command, check=False)
    assert done.returncode not in (0, 1), done.stdout
    assert f"novacron vm adopt {name}" in done.stderr and f"novacron vm forget {name}" in done.stderr


def test_an_older_database_that_is_put_back_contradicts_nobody_until_its_vms_are_adopted(victim: Platform) -> None:
    client, postgres = victim.client, victim.postgres
    backup = postgres.directory / "backup"
    client.create_network("lan", subnet="10.88.0.0/24")
    moves, old = (
        client.create_vm(name=name, image="tiny", memory_mib=128, node="host-a", nics=[{"network": "lan"}])
        for name in ("moves", "old")
    )
    for vm in (moves, old):
        victim.wait_state(vm["id"], "running")
    postgres.stop()
    subprocess.run(["cp", "-a", postgres.data, backup], check=True)
    postgres.start()
    victim.wait_ready()

    # What happens after the backup.
    new = client.create_vm(name="new", image="tiny", memory_mib=128, node="host-b", nics=[{"network": "lan"}])
    (nic,) = new["spec"]["nics"]
    victim.cli("vm", "migrate", "moves", "--to", "host-b", "--wait")
    delete(victim, old)
    pids = {vm["name"]: until_settled(victim, vm)["status"]["pid"] for vm in (moves, new)}

    victim.server.kill()
    postgres.stop()
    shutil.rmtree(postgres.data)
    backup.rename(postgres.data)
    postgres.start()
    victim.server.start()
    victim.wait_ready()
    for node in ("host-a", "host-b"):
        victim.wait_node(node)
    until(
        lambda: (
            # The source may have been told, too, that it has given the VM away: then it says so.
            {(item["vm_name"], item["node"], item["contradiction"]) for item in client.list("unreconciled-vms")}
            >= {("new", "host-b", "unknown"), ("moves", "host-b", "later"), ("old", "host-a", "gone")}
        ),
        "what nodes know more is known",
    )

    # Everybody sees it, and nothing is done or given out that contradicts it.
    assert "moves, new, old" in victim.cli("vm", "list").stderr
    for name in ("moves", "old"):
        for command in (("stop", name), ("start", name), ("delete", name), ("migrate", name, "--to", "host-b")):
            refused_by_name(victim, name, *command)
        assert "unreconciled" in victim.cli("vm", "show", name).stdout
    refused_by_name(victim, "new", "create", "new", "--image", "tiny", "--network", "lan")
    refused_by_name(victim, "new", "create", "other", "--image", "tiny", "--network", f"lan={nic['address']}")
    said = victim.cli("doctor", check=False)
    assert said.returncode != 0 and "novacron vm adopt new" in said.stdout
    assert client.get("nodes", "host-b")["status"]["unreconciled_vms"] == 2
    assert "novacron_vms_unreconciled 3" in client.metrics()
    assert {"Unreconciled"} <= {event["reason"] for event in client.list("events", object=new["id"])}
    assert not qemus_of(victim, old), "what was deleted is not started again"

    # Until an operator says who is right.
    assert "--confirm old" in victim.cli("vm", "adopt", "old", check=False).stderr
    victim.cli("vm", "adopt", "old", "--confirm", "old")
    victim.cli("vm", "adopt", "--all")
    for vm in (moves, new):
        settled = until_settled(victim, vm)
        assert (settled["node"], settled["status"]["pid"]) == ("host-b", pids[vm["name"]])
    assert client.get("vms", new["id"])["spec"]["nics"][0]["address"] == nic["address"]
    assert not list(client.list("unreconciled-vms")) and "old" not in {vm["name"] for vm in client.list("vms")}
    victim.cli("vm", "migrate", "new", "--to", "host-a", "--wait")
    for vm in (moves, new):
        delete(victim, vm)
    client.delete("networks", "lan")

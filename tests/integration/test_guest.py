"""A guest's first-boot data and its reports, with QEMU's own guest agent and with hostile ones."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lab.platform import Platform, until
from tests.integration.conftest import Api
from tests.support.vms import count_boots, wait_for_guest_agent

NewVm = Callable[..., dict[str, Any]]
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ5C2fSkRUfC0L6Oz6uP0yLQ6NQxg1SLk4sFJFsZwQ7F me@here"


def read_seed(site: Platform, vm: dict[str, Any]) -> dict[str, str]:
    """Return what the guest found on its CD, by the file's name."""

    def seen() -> dict[str, str]:
        seeds = dict(re.findall(r"^seed (\S+): (.*?)\r?$", site.console_log(site.client.get("vms", vm["id"])), re.M))
        return seeds if len(seeds) == 3 else {}

    seeds: dict[str, str] = until(seen, "the guest has read its CD", 60)
    return seeds


def test_a_guest_reads_its_first_boot_data_and_its_agent_answers(
    site: Platform, new_name: Callable[[], str], tmp_path: Path
) -> None:
    name = new_name()
    (tmp_path / "key.pub").write_text(f"{KEY}\n")
    (tmp_path / "user, data").write_text("#cloud-config\npackages: [nginx]\n")
    site.cli(
        "vm", "create", name, "--image", "agent", "--address", "10.77.0.40/24", "--gateway", "10.77.0.1",
        "--nameserver", "10.77.0.53", "--ssh-key", str(tmp_path / "key.pub"),
        "--user-data", str(tmp_path / "user, data"),
        "--hostname", "db.example.org", "--wait=agent",
    )  # fmt: skip
    vm = site.client.get("vms", name)
    try:
        assert vm["status"]["guest"] == {
            "hostname": "db.example.org", "addresses": ["10.77.0.40"], "memory_mib": None,
        }  # fmt: skip
        seeds = read_seed(site, vm)
        meta, network = json.loads(seeds["meta-data"]), json.loads(seeds["network-config"])
        assert meta == {"instance-id": vm["id"], "local-hostname": "db.example.org", "public-keys": [KEY]}
        assert seeds["user-data"] == "#cloud-configpackages: [nginx]"
        nic = network["ethernets"]["nic0"]
        assert nic["addresses"] == ["10.77.0.40/24"] and nic["routes"] == [{"to": "0.0.0.0/0", "via": "10.77.0.1"}]
        assert "packages" not in json.dumps(site.client.get("vms", name)), "user data is not shown again"
        assert "10.77.0.40" in site.cli("vm", "show", name).stdout
        reach_into(site, name, tmp_path)
    finally:
        site.client.delete("vms", vm["id"])
        until(lambda: all(seeds["id"] != vm["id"] for seeds in site.client.list("vms")), "it is deleted")


def reach_into(site: Platform, name: str, directory: Path) -> None:
    """Run programs in a guest, and move a file in and out."""
    assert site.cli("vm", "exec", name, "--env", "WORD=hello", "--", "/bin/sh", "-c", "echo $WORD").stdout == "hello\n"
    ended = site.client.run_in_guest(name, ["/bin/sh", "-c", "cat; echo no >&2; exit 3"], input=b"yes\n")
    assert (ended["exit_code"], ended["stdout"], ended["stderr"]) == (3, b"yes\n", b"no\n")
    sent, received = directory / "sent", directory / "received"
    sent.write_bytes(bytes(range(256)) * 5000)  # more than two pieces
    site.cli("vm", "push", name, str(sent), "/tmp/file")
    site.cli("vm", "pull", name, "/tmp/file", str(received))
    assert received.stat().st_mode & 0o077 == 0
    assert received.read_bytes() == sent.read_bytes()
    refused = site.cli("vm", "pull", name, "/no/such/file", str(directory / "none"), check=False)
    assert refused.returncode == 2 and "/no/such/file" in refused.stderr and not (directory / "none").exists()


@pytest.mark.slow
def test_a_guest_with_an_agent_reboots_and_powers_off_by_itself(site: Platform, new_vm: NewVm) -> None:
    vm = wait_for_guest_agent(site, new_vm(image="agent", cloud_init={}))
    name, pid = vm["name"], vm["status"]["pid"]
    site.cli("vm", "reboot", name, "--wait")
    until(lambda: count_boots(site, vm) == 2, "it has booted again", 60)
    wait_for_guest_agent(site, vm)
    site.cli("vm", "reset", name, "--wait")
    until(lambda: count_boots(site, vm) == 3, "it was reset", 60)
    assert wait_for_guest_agent(site, vm)["status"]["pid"] == pid
    site.cli("vm", "pause", name, "--wait")
    site.cli("vm", "resume", name, "--wait")
    started = time.monotonic()
    site.cli("vm", "stop", name, "--grace", "60", "--wait")
    assert time.monotonic() - started < 50, "it powered itself off"
    shown = site.cli("vm", "history", name).stdout
    assert all(word in shown for word in ("Created", "Reboot", "Reset", "Pause", "Stop"))


@pytest.mark.parametrize(
    ("kind", "script"),
    [
        pytest.param("silent", "exec 3<>$1; cat <&3 >/dev/null", marks=pytest.mark.slow),
        pytest.param("flooding", "exec 3<>$1; while :; do echo '{\"return\": {}}' >&3; done", marks=pytest.mark.slow),
        ("endless", "exec 3<>$1; tr '\\0' 'x' </dev/zero >&3"),
        ("lying", "exec 3<>$1; while read -r line <&3; do printf '\\377{\"return\": %s}\\n' "
                  "$(echo $line | sed 's/.*\"id\":\\([0-9]*\\).*/\\1/') >&3; done"),
    ],
)  # fmt: skip
def test_a_guest_whose_agent_is_hostile_harms_only_itself(
    site: Platform, new_vm: NewVm, kind: str, script: str
) -> None:
    vm = new_vm(image="agent", cloud_init={"user_data": f"#! {kind} is hostile\n{script}\n"})
    other = wait_for_guest_agent(
        site, new_vm(image="agent", cloud_init={}, node=site.wait_state(vm["id"], "running")["node"])
    )
    until(lambda: "ready" in site.console_log(site.client.get("vms", vm["id"])), "it has booted", 60)
    assert site.client.get("vms", vm["id"])["status"]["guest"] is None
    site.cli("vm", "pause", other["name"], "--wait", "--timeout", "30")
    site.cli("vm", "stop", vm["name"], "--grace", "5", "--wait", "--timeout", "60")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("ssh_keys", ["-----BEGIN OPENSSH PRIVATE KEY-----"]),
        ("ssh_keys", [f"{KEY}\nssh-rsa AAAA"]),
        ("user_data", "hello"),
        ("user_data", "#!" + "x" * 20_000),
        ("hostname", "a b"),
        ("hostname", "$(id)"),
        ("gateway", "fast"),
        ("nameservers", ["10.0.0.1", "x"]),
    ],
)
def test_bad_first_boot_data_is_refused_with_the_name_of_the_field(
    api: Api, new_name: Callable[[], str], field: str, value: Any
) -> None:
    body = {"name": new_name(), "image": "tiny", "cloud_init": {field: value}}
    assert api("POST", "/api/v1/vms", body).problem["field"].startswith(f"cloud_init.{field}")

"""The Ansible collection on real Debian hosts, over SSH: a playbook makes an installation with a VM, and a second run
changes nothing."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from deploy.debian.build import build
from deploy.debian.manifest import Debian
from lab import debian_hosts
from lab.debian_hosts import DebianHost
from lab.guide import booted
from tests.support.boot_sector import sector

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]

ROOT = Path(__file__).parents[2]
TOOLS = ROOT / ".ansible-tools/bin"
NEEDED = ("openssh-server", "python3", "python3-apt", "prometheus", "prometheus-alertmanager")
RECAP = re.compile(r"^(\S+)\s+: ok=(\d+)\s+changed=(\d+)\s+unreachable=(\d+)\s+failed=(\d+)", re.MULTILINE)
VM = """\
- name: Have a VM
  hosts: host-a
  gather_facts: false
  tasks:
    - name: Have its image
      ansible.builtin.command:
        cmd: novacron image import disk /root/disk.raw
      register: imported
      changed_when: imported.rc == 0
      failed_when: imported.rc != 0 and "holds an image" not in imported.stderr
    - name: Let the VM run
      novacron.platform.vm:
        name: web
        state: started
        spec: {image: disk, memory_mib: 128, tags: [shop]}
"""


class Controller:
    """Where playbooks are run: on this machine, in the network of the first host."""

    def __init__(self, hosts: list[DebianHost], directory: Path) -> None:
        self.hosts, self.directory = hosts, directory
        self.key = directory / "key"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.key], check=True, timeout=60)
        names = "".join(f"{host.host.address} {host.name}\n" for host in hosts)
        for host in hosts:
            host.write("/etc/hosts", f"127.0.0.1 localhost\n{names}")
            host.write("/root/.ssh/authorized_keys", self.key.with_suffix(".pub").read_text(), 0o600)
        groups = {"novacron_servers": hosts[:1], "novacron_nodes": hosts[1:], "novacron_monitoring": hosts[:1]}
        inventory = {
            name: {"hosts": {host.name: {"ansible_host": str(host.host.address)} for host in members}}
            for name, members in groups.items()
        }
        (directory / "inventory.yml").write_text(yaml.safe_dump(inventory))

    def run(self, *arguments: str) -> dict[str, tuple[int, int]]:
        """Run a playbook; return how many tasks of each host were in order, and how many changed something."""
        command = [
            *("ip", "netns", "exec", str(self.hosts[0].host.netns), str(TOOLS / "ansible-playbook")),
            *("-i", f"{self.directory}/inventory.yml", "--user", "root", "--private-key", str(self.key), *arguments),
            *("-e", f"server_packages_source={self.directory}/packages"),
            *("-e", f"agent_packages_source={self.directory}/packages"),
        ]
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=900, cwd=self.directory,
            env={"PATH": f"{TOOLS}:{os.environ['PATH']}", "HOME": str(self.directory), "ANSIBLE_NOCOLOR": "1",
                 "ANSIBLE_COLLECTIONS_PATH": str(self.directory / "collections"), "LC_ALL": "C.UTF-8",
                 "ANSIBLE_HOST_KEY_CHECKING": "False"},
        )  # fmt: skip
        print(done.stdout[-8000:], done.stderr[-2000:])
        assert done.returncode == 0, f"ansible-playbook {arguments} ended with {done.returncode}"
        return {host: (int(ok), int(changed)) for host, ok, changed, _, _ in RECAP.findall(done.stdout)}


def test_a_playbook_makes_an_installation_and_a_second_run_changes_nothing(tmp_path: Path, lacks: list[str]) -> None:
    lacks = [*lacks, *debian_hosts.missing()]
    if lacks:
        pytest.skip("; ".join(lacks))
    subprocess.run([ROOT / "script/collection", "--no-lint", tmp_path], check=True, timeout=600)
    (archive,) = tmp_path.glob("novacron-platform-*.tar.gz")
    subprocess.run(
        [TOOLS / "ansible-galaxy", "collection", "install", "--offline", "-p", tmp_path / "collections", archive],
        check=True, timeout=300, env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "LC_ALL": "C.UTF-8"},
    )  # fmt: skip
    build(tmp_path / "packages", [Debian.DEBIAN_12], 1)
    playbook = tmp_path / "vm.yml"
    playbook.write_text(VM)
    with booted(Debian.DEBIAN_12, 3, NEEDED) as hosts:
        controller = Controller(hosts, tmp_path)
        hosts[0].write("/root/disk.raw", sector("up").ljust(1 << 20, b"\0"))
        first = controller.run("novacron.platform.site")
        assert first.keys() == {host.name for host in hosts} and all(changed for _, changed in first.values())
        assert controller.run(str(playbook))["host-a"][1] == 2
        shown = hosts[0].run("novacron", "vm", "show", "web", "--output", "json").stdout
        assert '"state": "running"' in shown

        second = controller.run("novacron.platform.site")
        assert {host: changed for host, (_, changed) in second.items()} == {host.name: 0 for host in hosts}
        assert controller.run(str(playbook))["host-a"][1] == 0
        assert controller.run(str(playbook), "--check", "--diff")["host-a"][1] == 0

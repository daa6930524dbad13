"""The commands for any kind of object, and logging in, against a real server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyotp

from lab.platform import Platform
from novacron.client import Client
from novacron.client.config import load_config

SHOP = """\
kind: vm
name: {name}-vm
image: tiny
memory_mib: 256
power: stopped
tags: [shop]
nics: [{{network: {name}-net, groups: [{name}-open]}}]
---
kind: network
name: {name}-net
subnet: 10.93.4.0/24
tags: [shop]
---
kind: security-group
name: {name}-open
tags: [shop]
rules: [{{direction: in, protocol: tcp, ports: "443"}}]
---
kind: volume
name: {name}-data
size_mib: 64
tags: [shop]
---
kind: template
name: {name}-like
tags: [shop]
spec: {{image: tiny, memory_mib: 256, nics: [{{network: {name}-net}}]}}
---
kind: flavor
name: {name}-size
shared: true
spec: {{vcpus: 2, memory_mib: 512}}
"""


def test_files_say_how_objects_are(site: Platform, new_name: Callable[[], str], tmp_path: Path) -> None:
    name, file = new_name(), tmp_path / "shop.yaml"
    file.write_text(SHOP.format(name=name))
    prune = [word for kind in ("vm", "volume", "network", "template", "security-group") for word in ("--prune", kind)]
    prune += ["--prune-filter", f"name={name}-*", "--prune-filter", "tags=shop"]
    assert "6 to create" in site.cli("apply", "-f", str(file), "--dry-run").stdout
    planned = json.loads(site.cli("apply", "-f", str(file), "--dry-run", "--output", "json").stdout)
    assert {(step["action"], step["kind"]) for step in planned} >= {("create", "vm"), ("create", "network")}
    assert site.cli("get", "vm", f"{name}-vm", check=False).returncode == 3
    site.cli("apply", "-f", str(file))
    try:
        again = site.cli("apply", "-f", str(file), *prune).stdout
        assert again == "0 to create, 0 to change, 0 to delete, 6 as they should be\n"
        changed = (
            SHOP.format(name=name)
            .replace('ports: "443"', 'ports: "80"')
            .replace("memory_mib: 256", "memory_mib: 320")
            .replace("vcpus: 2, ", "vcpus: 4, ")
        )
        file.write_text(changed)
        said = site.cli("apply", "-f", str(file)).stdout
        assert f"~ vm {name}-vm\n    memory_mib: 256 -> 320" in said and "4 to change" in said
        assert site.client.get("flavors", f"{name}-size")["spec"]["vcpus"] == 4
        assert site.client.get("security-groups", f"{name}-open")["rules"][0]["ports"] == "80"
        assert site.cli("get", "vm", f"{name}-vm", "-o", "jsonpath=$.spec.memory_mib").stdout == "320\n"
        assert (
            f"{name}-data" in site.cli("get", "volumes", "--filter", "tags=shop", "--sort=-name", "-o", "wide").stdout
        )
        file.write_text(changed.replace("10.93.4.0/24", "10.93.5.0/24"))
        refused = site.cli("apply", "-f", str(file), check=False)
        assert refused.returncode == 4 and "subnet can't change" in refused.stderr
        _edit(site, f"{name}-data", tmp_path)
        assert "kind: vm" not in site.cli("explain", "vm").stdout
        assert "it can change" in site.cli("explain", "vm.memory_mib").stdout
    finally:
        file.write_text(f"kind: security-group\nname: {name}-open\nrules: []\n")
        refused = site.cli("apply", "-f", str(file), *prune, check=False)
        done = site.cli("apply", "-f", str(file), *prune, "--yes")
        site.client.delete("security-groups", f"{name}-open")
        site.client.delete("flavors", f"{name}-size")
    assert refused.returncode == 2 and "4 to delete" in refused.stderr
    assert f"vm {name}-vm in project default: deleted" in done.stdout


def _edit(site: Platform, volume: str, tmp_path: Path) -> None:
    editor = tmp_path / "editor"
    editor.write_text('#!/bin/sh\nsed -i "s/^size_mib: .*/size_mib: 128/" "$1"\n')
    editor.chmod(0o755)
    command = [sys.executable, "-m", "novacron", "edit", "volume", volume]
    environment = {**os.environ, "NOVACRON_CONFIG": str(site.config), "EDITOR": str(editor)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert "size_mib: 64 -> 128" in done.stdout
    assert (
        "nothing changed" in subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60).stdout
    )


def test_people_log_in_with_a_password_and_a_second_factor(
    site: Platform, new_name: Callable[[], str], tmp_path: Path
) -> None:
    name, password = new_name(), "correct horse battery staple"
    site.client.create_user(name, password=password)
    config, authority = tmp_path / "config.json", tmp_path / "ca.crt"
    authority.write_text(site.client.config.ca)
    environment = {**os.environ, "NOVACRON_CONFIG": str(config)}

    def run(*words: str, typed: str = "") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "novacron", *words]
        return subprocess.run(command, env=environment, input=typed, capture_output=True, text=True, timeout=60)

    login = ("login", site.client.config.url, "--user", name, "--ca", str(authority), "--as", "work")
    wrong = run(*login, typed="nonsense\n")
    assert wrong.returncode == 5 and "password is wrong" in wrong.stderr and not config.exists()
    assert run(*login).returncode == 2
    done = run(*login, typed=f"{password}\n")
    assert done.returncode == 0 and f"logged in to {site.client.config.url} as {name}" in done.stdout, done.stderr
    assert json.loads(run("whoami", "-o", "json").stdout)["user"] == name
    token = json.loads(config.read_text())["contexts"]["work"]["token"]
    with Client(load_config()._replace(url=site.client.config.url, ca=site.client.config.ca, token=token)) as own:
        begun = own.begin_second_factor("totp", "phone", password)
        code = pyotp.TOTP(begun["secret"]).now()
        recovery = own.confirm_second_factor(begun["id"], code=code)["recovery_codes"]
    half = run(*login, typed=f"{password}\n")
    assert half.returncode == 2 and "recovery code" in half.stderr
    again = run("login", "--user", name, typed=f"{password}\n{recovery[0]}\n")
    assert again.returncode == 0, again.stderr
    assert json.loads(config.read_text())["contexts"]["work"]["token"] != token
    assert run("logout").returncode == 0 and run("whoami").returncode == 6
    assert token not in "".join((done.stdout, done.stderr))

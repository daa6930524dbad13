"""The Ansible collection: its module and inventory say what the command line says, and change nothing in check mode."""

from __future__ import annotations

import importlib.util
import json
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from novacron import settings_file
from novacron.service_options import AgentOptions, ServerOptions

ROOT = Path(__file__).parents[2]
COLLECTION = ROOT / "deploy/ansible"
PACKAGE = "ansible_collections.novacron.platform.plugins.module_utils.command_line"
Json = Any


class Ended(Exception):
    """The module has reported."""


class FakeModule:
    """What Ansible gives a module: parameters, and a way to run programs."""

    def __init__(self, parameters: Json, *, check_mode: bool = False, has: Json = None) -> None:
        defaults: dict[str, Json] = {"state": "present", "spec": {}, "project": None, "context": None, "wait": True,
                                     "timeout_s": 30, "executable": "novacron"}  # fmt: skip
        self.params, self.check_mode = {**defaults, **parameters}, check_mode
        self.vm: Json = has
        self.ran: list[tuple[str, ...]] = []
        self.report: Json = None

    def run_command(self, command: list[str], data: str | None = None, **more: Json) -> tuple[int, str, str]:
        assert isinstance(command, list) and not more.get("use_unsafe_shell")
        self.ran.append(tuple(command[1:]))
        match command[1:]:
            case ["get", "vm", name, "--output", "json"]:
                if self.vm is None:
                    return 3, "", f"error: there is no vm {name}"
                return 0, json.dumps(self.vm), ""
            case ["apply", "--file", "-", "--output", "json", *rest]:
                return self._apply(json.loads(data or ""), dry_run=rest == ["--dry-run"])
            case ["vm", "delete", *_]:
                self.vm = None
                return 0, "", ""
        raise AssertionError(command)

    def _apply(self, document: Json, *, dry_run: bool) -> tuple[int, str, str]:
        if document.get("memory_mib") == 1:
            return 1, "", "error: memory_mib: at least 64"
        fields = {name: value for name, value in document.items() if name not in ("kind", "name")}
        has = None if self.vm is None else self.vm["fields"]
        changes = {} if has is None else {
            name: {"has": has.get(name), "wanted": value} for name, value in fields.items() if has.get(name) != value
        }  # fmt: skip
        action = "create" if has is None else "change" if changes else "keep"
        if not dry_run:
            state = "stopped" if {**(has or {}), **fields}.get("power") == "stopped" else "running"
            self.vm = {"fields": {**(has or {}), **fields}, "status": {"state": state}}
        step = {"action": action, "kind": "vm", "name": document["name"], "project": "", "changes": changes}
        return 0, json.dumps([step]), ""

    def exit_json(self, **report: Json) -> None:
        self.report = report
        raise Ended

    def fail_json(self, **report: Json) -> None:
        self.report = {"failed": True, **report}
        raise Ended


@pytest.fixture
def plugins(monkeypatch: pytest.MonkeyPatch) -> Iterator[types.SimpleNamespace]:
    """Load the collection's plugins, with stand-ins for the parts of Ansible that they use."""

    class Plugin:
        pass

    class ParserError(Exception):
        pass

    parts: dict[str, dict[str, Json]] = {
        "ansible": {}, "ansible.errors": {"AnsibleParserError": ParserError}, "ansible.module_utils": {},
        "ansible.module_utils.basic": {"AnsibleModule": FakeModule}, "ansible.plugins": {},
        "ansible.plugins.inventory": {"BaseInventoryPlugin": Plugin, "Constructable": type("Constructable", (), {})},
    }  # fmt: skip
    for name in ("ansible_collections", *(PACKAGE.rsplit(".", count)[0] for count in (4, 3, 2, 1))):
        parts.setdefault(name, {})
    for name, content in parts.items():
        module = types.ModuleType(name)
        for attribute, value in content.items():
            setattr(module, attribute, value)
        monkeypatch.setitem(sys.modules, name, module)

    def load(path: str, name: str) -> types.ModuleType:
        specification = importlib.util.spec_from_file_location(name, COLLECTION / path)
        assert specification is not None and specification.loader is not None
        module = importlib.util.module_from_spec(specification)
        monkeypatch.setitem(sys.modules, name, module)
        specification.loader.exec_module(module)
        return module

    load("plugins/module_utils/command_line.py", PACKAGE)
    yield types.SimpleNamespace(
        vm=load("plugins/modules/vm.py", "collection_vm"), vms=load("plugins/inventory/vms.py", "collection_vms")
    )


def run(plugins: types.SimpleNamespace, parameters: Json, **more: Json) -> FakeModule:
    module = FakeModule({"name": "web", **parameters}, **more)
    plugins.vm.AnsibleModule = lambda **_: module
    with pytest.raises(Ended):
        plugins.vm.main()
    return module


def test_a_vm_is_made_once_and_a_second_run_changes_nothing(plugins: types.SimpleNamespace) -> None:
    wanted = {"state": "started", "spec": {"image": "tiny", "memory_mib": 128}}
    first = run(plugins, wanted)
    assert first.report["changed"] and first.report["vm"]["status"]["state"] == "running"
    assert first.report["diff"]["after"]["memory_mib"] == 128
    second = run(plugins, wanted, has=first.vm)
    assert second.report["changed"] is False and second.report["actions"] == []


def test_a_change_is_shown_as_what_is_and_what_is_wanted(plugins: types.SimpleNamespace) -> None:
    has = {"fields": {"memory_mib": 128, "power": "running"}, "status": {"state": "running"}}
    done = run(plugins, {"state": "stopped", "spec": {"memory_mib": 256}}, has=has)
    assert done.report["diff"] == {
        "before": {"memory_mib": 128, "power": "running"}, "after": {"memory_mib": 256, "power": "stopped"},
    }  # fmt: skip
    assert done.report["vm"]["status"]["state"] == "stopped"


@pytest.mark.parametrize("state", ["present", "started", "stopped", "absent"])
@pytest.mark.parametrize("has", [None, {"fields": {"memory_mib": 64}, "status": {"state": "running"}}])
def test_check_mode_says_what_would_be_done_and_does_nothing(
    plugins: types.SimpleNamespace, state: str, has: Json
) -> None:
    wanted = {"state": state, "spec": {"memory_mib": 128}}
    checked = run(plugins, wanted, has=has, check_mode=True)
    assert checked.vm == has
    assert all("--dry-run" in words or words[0] == "get" for words in checked.ran)
    assert checked.report["changed"] == run(plugins, wanted, has=has).report["changed"]


def test_a_vm_that_is_gone_is_absent(plugins: types.SimpleNamespace) -> None:
    has = {"fields": {}, "status": {"state": "stopped"}}
    done = run(plugins, {"state": "absent"}, has=has)
    assert done.vm is None and done.report["changed"]
    assert run(plugins, {"state": "absent"}).report == {"changed": False, "vm": {}, "actions": []}


def test_the_command_lines_words_are_the_error(plugins: types.SimpleNamespace) -> None:
    assert run(plugins, {"spec": {"memory_mib": 1}}).report == {
        "failed": True, "msg": "novacron: error: memory_mib: at least 64",
    }  # fmt: skip
    assert "spec: power: write that beside spec" in run(plugins, {"spec": {"power": "running"}}).report["msg"]


def test_a_vm_that_fails_is_not_waited_for(plugins: types.SimpleNamespace) -> None:
    has = {"fields": {"power": "running"}, "status": {"state": "failed", "reason": "its image is gone"}}
    module = FakeModule({"name": "web"}, has=has)
    with pytest.raises(plugins.vm.CommandFailed, match="VM web is failed, not running: its image is gone"):
        plugins.vm.Vm(module).wait(("running",), 3600)


def test_vms_are_hosts_with_an_address_in_groups_of_what_they_are(plugins: types.SimpleNamespace) -> None:
    vm = {"name": "web", "project": "shop", "node": "host-b", "tags": ["front"], "spec": {"nics": [{"address": None}]},
          "status": {"state": "running", "guest": {"addresses": ["10.1.0.5/24"]}}}  # fmt: skip
    assert plugins.vms.groups_of(vm) == ["project_shop", "node_host-b", "state_running", "tag_front"]
    assert plugins.vms.address_of(vm) == "10.1.0.5"
    assert plugins.vms.address_of({"spec": {"nics": [{"address": "10.2.0.9"}]}, "status": {}}) == "10.2.0.9"
    assert plugins.vms.address_of({"spec": {}, "status": None}) is None


def test_the_modules_arguments_are_those_that_are_documented(plugins: types.SimpleNamespace) -> None:
    documented = yaml.safe_load(plugins.vm.DOCUMENTATION)["options"]
    taken: Json = {}

    def keep(argument_spec: Json, **_: Json) -> None:
        taken.update(argument_spec)
        raise Ended

    plugins.vm.AnsibleModule = keep
    with pytest.raises(Ended):
        plugins.vm.main()
    assert taken.keys() == documented.keys()
    for name, spec in taken.items():
        assert {key: documented[name].get(key) for key in ("type", "default", "choices") if key in spec} == {
            key: value for key, value in spec.items() if key != "required"
        }, name


@pytest.mark.parametrize("role", ["packages", "server", "agent", "database", "monitoring"])
def test_each_variable_of_a_role_has_its_name_and_is_used(role: str) -> None:
    directory = COLLECTION / "roles" / role
    defaults = yaml.safe_load((directory / "defaults/main.yml").read_text())
    used = "".join(path.read_text() for path in directory.rglob("*") if path.is_file() and "defaults" not in path.parts)
    for name in defaults:
        assert name.startswith(f"{role}_") and name in used, name


def test_settings_that_roles_give_exist() -> None:
    for role, options in (("server", ServerOptions), ("agent", AgentOptions)):
        defaults = yaml.safe_load((COLLECTION / f"roles/{role}/defaults/main.yml").read_text())
        assert set(defaults[f"{role}_settings"]) <= {setting.name for setting in settings_file.settings(options)}


def test_secrets_of_roles_are_in_no_log_and_on_no_command_line() -> None:
    for path in COLLECTION.glob("roles/*/tasks/*.yml"):
        for task in yaml.safe_load(path.read_text()):
            text = json.dumps({key: value for key, value in task.items() if key != "name"})
            makes = "join-token" in text or "cluster.join" in text or '"token", "create"' in text
            assert not makes or task.get("no_log") is True, task["name"]
            words = json.dumps(task.get("ansible.builtin.command", {}).get("argv", ""))
            for secret in ("agent_token", "database_join.content |", "monitoring_new_token"):
                assert secret not in words, task["name"]

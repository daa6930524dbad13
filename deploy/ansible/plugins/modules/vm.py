#!/usr/bin/python
# Copyright: NovaCron developers
# Licensed under the Apache License, Version 2.0
"""Module: a VM of NovaCron is as it should be."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: vm
short_description: Manage virtual machines of NovaCron
version_added: "0.1.0"
description:
  - Creates, changes, starts, stops and deletes a VM by its name.
  - Runs C(novacron) on the host that it is run on, with the settings of the command line there.
author:
  - NovaCron developers (@novacron)
options:
  name:
    description: Name of the VM.
    type: str
    required: true
  state:
    description:
      - V(present) creates the VM, and changes the fields of O(spec) that differ. A VM that is created is started.
      - V(started) and V(stopped) do that, and see to it that the VM runs, or is off.
      - V(absent) deletes the VM with its disks and snapshots.
    type: str
    choices: [present, started, stopped, absent]
    default: present
  spec:
    description:
      - Fields of the VM as the API takes them, such as C(image), C(flavor), C(vcpus), C(memory_mib), C(nics), C(tags).
      - C(novacron explain vm) lists them. Fields that are left out stay as they are.
    type: dict
    default: {}
  project:
    description: Project of the VM. By default that of the command line.
    type: str
  context:
    description: Context of the command line, which names an installation. By default the current one.
    type: str
  wait:
    description: Wait until the VM runs, is off, or is gone.
    type: bool
    default: true
  timeout_s:
    description: Longest wait, in seconds.
    type: int
    default: 300
  executable:
    description: The command line.
    type: str
    default: novacron
attributes:
  check_mode:
    support: full
    description: Says what would be done, and does nothing.
  diff_mode:
    support: full
    description: Shows the fields that change, and what they are now.
"""

EXAMPLES = r"""
- name: Have a web server
  novacron.platform.vm:
    name: web
    state: started
    spec:
      image: debian-12
      vcpus: 2
      memory_mib: 2048
      tags: [shop]

- name: Delete it
  novacron.platform.vm:
    name: web
    state: absent
"""

RETURN = r"""
vm:
  description: The VM as the API shows it; empty once it is deleted, and in check mode if it is not there.
  returned: success
  type: dict
actions:
  description: What was done, or would be done in check mode.
  returned: success
  type: list
  elements: dict
"""

import json
import time

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.novacron.platform.plugins.module_utils.command_line import (
    NOT_FOUND,
    CommandFailed,
    decoded,
    environment,
)

POLL_S = 2.0
POWER = {"started": "running", "stopped": "stopped"}
REACHED = {"started": ("running",), "present": ("running", "stopped", "paused"), "stopped": ("stopped",)}
FAILED = "failed"


class Vm:
    """A VM, reached by the command line."""

    def __init__(self, module):
        self._module, self._name = module, module.params["name"]
        self._environment = environment(module.params["context"], module.params["project"])

    def _run(self, *words, **more):
        command = [self._module.params["executable"], *list(words)]
        code, out, err = self._module.run_command(
            command, data=more.get("data"), environ_update=self._environment, use_unsafe_shell=False
        )
        return decoded(code, out, err, *more.get("allowed", ()))

    def show(self):
        """Return the VM; None: there is none."""
        return self._run("get", "vm", self._name, "--output", "json", allowed=(NOT_FOUND,))

    def apply(self, document, dry_run):
        """Create or change the VM as a document says; return what that is, or would be."""
        words = ("apply", "--file", "-", "--output", "json") + (("--dry-run",) if dry_run else ())
        steps = self._run(*words, data=json.dumps(document))
        return [step for step in steps or [] if step["action"] != "keep"]

    def delete(self, timeout_s):
        """Delete the VM, and wait until it is gone unless ``timeout_s`` is 0."""
        wait = ("--wait", "--timeout", str(timeout_s)) if timeout_s else ()
        self._run_plain("vm", "delete", self._name, "--yes", *wait)

    def _run_plain(self, *words):
        command = [self._module.params["executable"], *list(words)]
        code, out, err = self._module.run_command(command, environ_update=self._environment)
        if code not in (0, NOT_FOUND):
            raise CommandFailed((err.strip() or out.strip())[-2000:])

    def wait(self, states, timeout_s):
        """Wait until the VM is in one of these states, and return it."""
        deadline = time.time() + timeout_s
        while True:
            vm = self.show() or {}
            state = (vm.get("status") or {}).get("state", "absent")
            if state in states:
                return vm
            reason = (vm.get("status") or {}).get("reason") or ""
            if state == FAILED or time.time() > deadline:
                raise CommandFailed(f"VM {self._name} is {state}, not {states[0]}: {reason}")
            time.sleep(POLL_S)


def differences(actions):
    """Return what changes, as Ansible shows it."""
    before, after = {}, {}
    for step in actions:
        for field, change in step.get("changes", {}).items():
            before[field], after[field] = change["has"], change["wanted"]
    return before, after


def absent(module, vm):
    """Return what is to be reported once there is no such VM."""
    existing_vm = vm.show()
    if existing_vm is None:
        return {"changed": False, "vm": {}, "actions": []}
    if not module.check_mode:
        vm.delete(module.params["timeout_s"] if module.params["wait"] else 0)
    actions = [{"action": "delete", "kind": "vm", "name": module.params["name"]}]
    diff = {"before": {"state": "present"}, "after": {"state": "absent"}}
    return {"changed": True, "vm": {}, "actions": actions, "diff": diff}


def present(module, vm):
    """Return what is to be reported once the VM is as wanted."""
    state = module.params["state"]
    document = dict(module.params["spec"], kind="vm", name=module.params["name"])
    if module.params["project"]:
        document["project"] = module.params["project"]
    if state in POWER:
        document["power"] = POWER[state]
    actions = vm.apply(document, module.check_mode)
    before, after = differences(actions)
    if any(step["action"] == "create" for step in actions):
        before, after = {}, document
    report = {"changed": bool(actions), "actions": actions, "diff": {"before": before, "after": after}}
    if module.params["wait"] and not module.check_mode:
        report["vm"] = vm.wait(REACHED[state], module.params["timeout_s"])
    else:
        report["vm"] = vm.show() or {}
    return report


def main():
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["present", "started", "stopped", "absent"], "default": "present"},
            "spec": {"type": "dict", "default": {}},
            "project": {"type": "str"},
            "context": {"type": "str"},
            "wait": {"type": "bool", "default": True},
            "timeout_s": {"type": "int", "default": 300},
            "executable": {"type": "str", "default": "novacron"},
        },
        supports_check_mode=True,
    )
    taken = sorted({"kind", "name", "project", "power"} & set(module.params["spec"]))
    if taken:
        module.fail_json(msg="spec: {}: write that beside spec, as name, project or state".format(", ".join(taken)))
    try:
        vm = Vm(module)
        report = absent(module, vm) if module.params["state"] == "absent" else present(module, vm)
    except CommandFailed as failed:
        module.fail_json(msg=f"novacron: {failed}")
    module.exit_json(**report)


if __name__ == "__main__":
    main()

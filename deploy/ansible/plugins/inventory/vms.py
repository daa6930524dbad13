# Copyright: NovaCron developers
# Licensed under the Apache License, Version 2.0
"""Inventory: the VMs of NovaCron as hosts."""

from __future__ import annotations

DOCUMENTATION = r"""
---
name: vms
short_description: Virtual machines of NovaCron
version_added: "0.1.0"
description:
  - Has the VMs of a project, or of all that the token reaches, as hosts.
  - Each is in the groups C(project_NAME), C(node_NAME), C(state_NAME), and C(tag_NAME) for each of its tags.
  - A file of it ends with C(novacron.yml) or C(novacron.yaml).
author:
  - NovaCron developers (@novacron)
extends_documentation_fragment:
  - constructed
options:
  plugin:
    description: Name of the plugin.
    type: str
    required: true
    choices: [novacron.platform.vms]
  context:
    description: Context of the command line, which names an installation. By default the current one.
    type: str
  project:
    description: Project of the VMs. By default that of the command line.
    type: str
  running_only:
    description: Leave out VMs that do not run.
    type: bool
    default: false
  executable:
    description: The command line, on the controller.
    type: str
    default: novacron
  timeout_s:
    description: Longest wait for the list, in seconds.
    type: int
    default: 60
"""

EXAMPLES = r"""
# shop.novacron.yml: VMs of one project, and groups by their size
plugin: novacron.platform.vms
project: shop
running_only: true
keyed_groups:
  - key: novacron.spec.vcpus
    prefix: vcpus
compose:
  ansible_user: "'debian'"
"""

import os
import subprocess

from ansible.errors import AnsibleParserError
from ansible.plugins.inventory import BaseInventoryPlugin, Constructable
from ansible_collections.novacron.platform.plugins.module_utils.command_line import (
    CommandFailed,
    decoded,
    environment,
)


def address_of(vm):
    """Return an address of a VM: one that its network gave, or that its guest says; None: none is known."""
    network_addresses = [nic.get("address") for nic in vm.get("spec", {}).get("nics") or []]
    guest_addresses = ((vm.get("status") or {}).get("guest") or {}).get("addresses") or []
    return next((address.split("/")[0] for address in [*network_addresses, *guest_addresses] if address), None)


def groups_of(vm):
    """Return the groups of a VM, by what it is."""
    state = (vm.get("status") or {}).get("state")
    named = [("project", vm.get("project")), ("node", vm.get("node")), ("state", state)]
    named += [("tag", tag) for tag in vm.get("tags") or []]
    return [f"{kind}_{name}" for kind, name in named if name]


class InventoryModule(BaseInventoryPlugin, Constructable):
    """VMs as hosts."""

    NAME = "novacron.platform.vms"

    def verify_file(self, path):
        """Say whether a file is one of this plugin."""
        return super().verify_file(path) and path.endswith(("novacron.yml", "novacron.yaml"))

    def parse(self, inventory, loader, path, cache=True):
        """Add the VMs. Raises AnsibleParserError."""
        super().parse(inventory, loader, path, cache)
        self._read_config_data(path)
        for vm in self._vms():
            if not self.get_option("running_only") or (vm.get("status") or {}).get("state") == "running":
                self._add(vm)

    def _vms(self):
        command = [self.get_option("executable"), "vm", "list", "--output", "json"]
        chosen = dict(os.environ, **environment(self.get_option("context"), self.get_option("project")))
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, env=chosen,
                timeout=self.get_option("timeout_s"),
            )  # fmt: skip
            return decoded(done.returncode, done.stdout, done.stderr) or []
        except (CommandFailed, OSError, subprocess.TimeoutExpired) as error:
            raise AnsibleParserError(f"novacron: {error}") from error

    def _add(self, vm):
        name = self.inventory.add_host(vm["name"])
        self.inventory.set_variable(name, "novacron", vm)
        address = address_of(vm)
        if address:
            self.inventory.set_variable(name, "ansible_host", address)
        for group in groups_of(vm):
            self.inventory.add_host(name, group=self.inventory.add_group(self._sanitize_group_name(group)))
        strict, variables = self.get_option("strict"), self.inventory.get_host(name).get_vars()
        self._set_composite_vars(self.get_option("compose"), variables, name, strict=strict)
        self._add_host_to_composed_groups(self.get_option("groups"), variables, name, strict=strict)
        self._add_host_to_keyed_groups(self.get_option("keyed_groups"), variables, name, strict=strict)

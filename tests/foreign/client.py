"""Creates, lists, watches and deletes a VM with the client that openapi-python-client makes of the document."""

from __future__ import annotations

import ssl
import sys

import httpx
from nova_cron_client import AuthenticatedClient
from nova_cron_client.api.vms import create_vm, delete_vm, list_vms, show_vm
from nova_cron_client.models import CreateVm, Vm, VmList, VmState


def main(url: str, token: str, ca: str, name: str) -> None:
    trusted = ssl.create_default_context(cafile=ca)
    client = AuthenticatedClient(base_url=url, token=token, verify_ssl=trusted, timeout=httpx.Timeout(60))
    made = create_vm.sync(client=client, body=CreateVm(name=name, image="tiny", memory_mib=128), idempotency_key=name)
    assert isinstance(made, Vm), made
    page = list_vms.sync(client=client, name=name)
    assert isinstance(page, VmList) and [vm.id for vm in page.items] == [made.id], page
    vm = made
    while vm.status.state != VmState.RUNNING:
        newer = show_vm.sync(vm.id, client=client, newer_than=vm.revision, timeout_s=30)
        assert isinstance(newer, Vm), newer
        vm = newer
    print(vm.name, vm.status.state, vm.node)
    deleted = delete_vm.sync(vm.id, client=client, wait=30)
    assert isinstance(deleted, Vm) and deleted.deleting, deleted


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Creates, lists, watches and deletes a VM with an HTTP client and the types that datamodel-code-generator makes."""

from __future__ import annotations

import sys

import urllib3
from models import CreateVm, Vm, VmList, VmState


def main(url: str, token: str, ca: str, name: str) -> None:
    http = urllib3.PoolManager(ca_certs=ca, headers={"Authorization": f"Bearer {token}"})
    body = CreateVm(name=name, image="tiny", memory_mib=128).model_dump_json(exclude_unset=True)
    answer = http.request("POST", f"{url}/api/v1/vms", body=body, headers={**http.headers, "Idempotency-Key": name})
    assert answer.status == 201, answer.data
    vm = Vm.model_validate_json(answer.data)
    page = VmList.model_validate_json(http.request("GET", f"{url}/api/v1/vms", fields={"name": name}).data)
    assert [listed.id for listed in page.items] == [vm.id], page
    while vm.status.state != VmState.running:
        fields = {"newer_than": str(vm.revision), "timeout_s": "30"}
        vm = Vm.model_validate_json(http.request("GET", f"{url}/api/v1/vms/{vm.id}", fields=fields).data)
    print(vm.name, vm.status.state.value, vm.node)
    deleted = http.request("DELETE", f"{url}/api/v1/vms/{vm.id}", fields={"wait": "30"})
    assert Vm.model_validate_json(deleted.data).deleting


if __name__ == "__main__":
    main(*sys.argv[1:])

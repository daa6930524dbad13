"""Creates as the API stores them, for tests without an API."""

from __future__ import annotations

from typing import Any

from novacron.model.audit import AuditedRequest, AuditOutcome
from novacron.store import audit, idempotency, new_vms
from novacron.store.create_groups import QuickCreate


def quick_create(project: dict[str, Any], new: new_vms.NewVm, claim: idempotency.KeyClaim | None) -> QuickCreate:
    """Return the create of a VM that needs only its row. ``project``: its row."""
    vm = new_vms.quickly(project, new, "ann")
    assert vm is not None
    request = AuditedRequest(
        actor="ann", user_id=None, token=None, address="", method="POST", path="/api/v1/vms", action="create_vm",
        object=vm.of.id, name=vm.of.name, project=vm.of.project, outcome=AuditOutcome.DONE, status=201, request_id="r",
    )  # fmt: skip
    return QuickCreate(vm, audit.rows_of([request])[0], claim, {})

"""The page of reason codes, made of ``novacron.model.waiting``."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path

from novacron.model import waiting
from novacron.model.waiting import WaitCode

W = WaitCode
HINDRANCES: Mapping[str, tuple[WaitCode, ...]] = {
    "vm": (
        W.UNPLACED, W.NODE_LOST, W.NODE_CANT_STORE, W.IMAGE_MISSING, W.LEASE_ENDED, W.NETWORK_NOT_READY,
        W.START_QUEUED, W.DISK_BEING_MADE, W.DISK_BEING_COPIED, W.DISK_LOST, W.DISK_FULL, W.NO_SPACE, W.CRASH_BACK_OFF,
        W.CANT_GROW, W.CANT_SHRINK, W.GUEST_CLOCK_BEHIND, W.GUEST_SHUTS_DOWN, W.GUEST_REBOOTS, W.MEMORY_FOLLOWS,
        W.INTERFACE_CLOSED, W.MAY_BE_ELSEWHERE, W.ANOTHER_QEMU, W.RECORD_DAMAGED, W.REPOSITORY_AWAY,
        W.STEP_FAILED,
    ),
    "volume": (
        W.NODE_LOST, W.NODE_REMOVED, W.NODE_CANT_STORE, W.NO_SPACE, W.POOL_AWAY, W.IMAGE_MISSING, W.FILE_LOST,
        W.GUEST_HOLDS_IT, W.STEP_FAILED,
    ),
    "import": (
        W.NODE_LOST, W.NODE_REMOVED, W.NODE_CANT_STORE, W.NO_SPACE, W.FILE_REFUSED, W.DIGEST_WRONG,
        W.SOURCE_UNREACHABLE, W.ABORTED, W.QUOTA_EXCEEDED, W.TIME_LIMIT, W.STEP_FAILED,
    ),
    "export": (
        W.NODE_LOST, W.NODE_REMOVED, W.NODE_CANT_STORE, W.NO_SPACE, W.VM_GONE, W.FILE_LOST, W.STEP_FAILED,
    ),
    "backup": (
        W.NODE_LOST, W.NODE_REMOVED, W.NODE_CANT_STORE, W.NO_SPACE, W.VM_GONE, W.FILE_LOST, W.TIME_LIMIT,
        W.STEP_FAILED,
    ),
    "replica": (W.NODE_LOST, W.NODE_CANT_STORE, W.NO_SPACE, W.VM_GONE, W.STEP_FAILED),
    "snapshot": (
        W.NODE_LOST, W.NODE_CANT_STORE, W.NO_SPACE, W.VM_OFF, W.GUEST_SILENT, W.DOES_NOT_FIT, W.FILE_LOST,
        W.STEP_FAILED,
    ),
    "network": (W.NO_GATEWAY, W.NETWORK_NOT_READY, W.INTERFACE_CLOSED),
    "forward": (W.NETWORK_NOT_READY, W.PORT_IN_USE, W.PORT_NOT_ALLOWED, W.RULES_REFUSED),
    "floating-address": (W.NETWORK_NOT_READY, W.NOT_ROUTED, W.RULES_REFUSED),
    "drain": (
        W.BLOCKED, W.TIME_LIMIT, W.UNPLACED, W.MOVE_REFUSED, W.MOVE_FAILED, W.WOULD_NOT_CONVERGE, W.STEP_FAILED,
    ),
    "migration": (W.MIGRATION_QUEUED,),
    "plan": (
        W.UNPLACED, W.QUOTA_EXCEEDED, W.REFUSED, W.NODE_LOST, W.MIGRATION_QUEUED, W.MOVE_FAILED, W.VM_GONE,
        W.TIME_LIMIT, W.ABORTED,
    ),
    "proof": (W.UNPLACED, W.QUOTA_EXCEEDED, W.REFUSED, W.DISK_BEING_MADE, W.VM_GONE, W.TIME_LIMIT),
    "backup-policy": (W.NODE_LOST, W.QUOTA_EXCEEDED, W.REFUSED),
}  # fmt: skip
"""What may keep each kind of object from what was asked."""

HEAD = """# Reason codes

What keeps an object from being as it was asked to be is said in three places:

* in its status: `reason_code` for programs, beside the words for people (`status.reason` of VMs; `error` of volumes,
  imports, exports and snapshots; `reason` of networks, forwards, floating addresses and drains; `stays` of drains);
* in an event when it begins. Its reason is the code, or says what failed (`VolumeFailed`, `ImportFailed`,
  `ExportFailed`, `SnapshotFailed`, `DrainBlocked`, `DrainFailed`, `ImportAborted`; `Lost`, `Removed` of a node);
* in the error of a command that waits for it.

All are empty when nothing keeps it. Copies of images are no objects: how one ends is an event of the target node,
`ImageCopied` or `ImageCopyFailed`, whose message says why; a VM that needs the image has `ImageMissing` meanwhile.

Each pair of a code and a kind is tried by
`test_what_keeps_an_object_from_what_was_asked_is_said_with_a_code_and_words` or
`test_what_keeps_an_object_is_in_its_status_and_in_an_event`, those of VMs by `test_waiting`.

| code | kinds | meaning |
|---|---|---|
"""


def page() -> str:
    """Return the page's text."""
    meanings = _meanings()
    rows = []
    for code in WaitCode:
        kinds = ", ".join(kind for kind, codes in HINDRANCES.items() if code in codes)
        rows.append(f"| `{code.value}` | {kinds} | {meanings[code.name]} |")
    return HEAD + "\n".join(rows) + "\n"


def _meanings() -> dict[str, str]:
    """Return what is written below each code."""
    tree = ast.parse(Path(waiting.__file__).read_text())
    (body,) = (node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == WaitCode.__name__)
    meanings, name = {}, ""
    for node in body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and name:
            meanings[name] = str(node.value.value)
    return meanings

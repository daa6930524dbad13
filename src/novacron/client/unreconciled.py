"""What to do about a VM of which a node and the database disagree."""

from __future__ import annotations

from typing import Any


def way_out(item: dict[str, Any]) -> str:
    """Return what ends a contradiction, an object of ``/api/v1/unreconciled-vms``."""
    name, node = item["vm_name"], item["node"]
    remove = f"if that host is gone for good: novacron node remove {node} --force"
    if not item.get("proven", True):
        return (
            f"node {node} can't show that a server has told it so, and nobody waits for it: if that host may be in"
            f" wrong hands: novacron node remove {node} --force; if it has the VM: novacron vm adopt {name}"
            f" --node {node} --confirm {name}; if not: novacron vm forget {name}"
        )
    match item["contradiction"]:
        case "ending":
            return (
                f"it waits for node {node}, and then goes on by itself: let that agent connect; why it does not end it:"
                f" novacron events --object {node}; {remove}"
            )
        case "gone":
            return (
                f"if it was deleted: novacron vm adopt {name} --confirm {name}; if the database is right: novacron vm"
                f" forget {name}"
            )
        case "damaged":
            return (
                f"if another node has it, adopt it from there; if node {node} has it: novacron vm adopt {name}"
                f" --node {node} --confirm {name}; if the database is right: novacron vm forget {name}; {remove}"
            )
    return f"if the node is right: novacron vm adopt {name}; if the database is: novacron vm forget {name}"

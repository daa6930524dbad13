"""What backups a VM has, as lists of VMs show it."""

from __future__ import annotations

from novacron.cli import output
from novacron.cli.output import Object

NOTHING: Object = {"policies": [], "newest_at": None, "verified_at": None, "late_at": None}


def of(vm: Object) -> Object:
    """Return what is known of a VM's backups; servers of before know nothing."""
    known: Object = vm.get("backups") or NOTHING
    return known


def newest(vm: Object) -> str | None:
    """Return how old the newest backup of a VM is, and whether that is older than promised."""
    has = of(vm)
    age = output.age(has["newest_at"]) if has["newest_at"] else "none"
    if has["late_at"] is None:
        return age if has["newest_at"] else None
    return f"{age}, late" if output.is_past(has["late_at"]) else age


def restored(vm: Object) -> str | None:
    """Return how much of a VM's disk is on its node, of one that runs from a backup while the rest is fetched."""
    of, progress = vm.get("clone_of") or {}, vm["status"].get("restore")
    if not of.get("live"):
        return None
    percent = 100 * progress["done_bytes"] // progress["total_bytes"] if progress and progress["total_bytes"] else 0
    return f"{percent} %, from {of['source_name']}"

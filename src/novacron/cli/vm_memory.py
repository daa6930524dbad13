"""The memory that a VM has at the moment, in words."""

from __future__ import annotations

from novacron.cli.output import Object


def memory_now(vm: Object) -> str | None:
    """Return the memory of a VM that got some or gave some back while it ran, and what its guest uses of it."""
    hardware, guest = vm["status"].get("hardware"), vm["status"]["guest"] or {}
    left_mib, wanted_mib = vm["status"].get("balloon_mib"), vm["spec"].get("balloon_mib")
    if hardware and (left_mib is not None or wanted_mib is not None):
        all_mib = hardware["memory_mib"] + sum(hardware["dimms_mib"])
        asked = "" if wanted_mib in (None, left_mib) else f"; {wanted_mib} MiB are wanted"
        return f"{left_mib or all_mib} MiB of {all_mib}, the rest is given back{asked}"
    if not hardware or not hardware["dimms_mib"]:
        return None
    added_mib = sum(hardware["dimms_mib"])
    text = f"{hardware['memory_mib']} MiB and {added_mib} MiB added; "
    in_use_mib = guest.get("memory_mib")
    if in_use_mib is None:
        return text + "the guest does not say what it uses"
    has_all = in_use_mib >= hardware["memory_mib"] + added_mib
    return text + ("all in use" if has_all else f"the guest uses only {in_use_mib} MiB: reset it, or see its kernel")

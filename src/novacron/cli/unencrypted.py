"""What of a project that encrypts is not encrypted: it was there before."""

from __future__ import annotations

from typing import Any

from novacron.client import Client
from novacron.terminal import say

NAMED_MAX = 5


def warn(client: Client, project: str) -> None:
    """Say on standard error what of a project stays as it is."""
    own = Client(client.config._replace(project=project))
    for what, kind in (("VMs", "vms"), ("volumes", "volumes"), ("images", "images")):
        names = [item["name"] for item in own.list(kind) if item["project"] == project and not _key(item)]
        if names:
            more = f" and {len(names) - NAMED_MAX} more" if len(names) > NAMED_MAX else ""
            say(f"warning: not encrypted: {what} {', '.join(names[:NAMED_MAX])}{more}", err=True)


def _key(item: dict[str, Any]) -> str:
    return str(item.get("spec", item)["encryption_key"])

"""Names of what exists, for a shell that completes a word."""

from __future__ import annotations

from collections.abc import Callable

NAMES_MAX = 200
ANSWER_S_MAX = 1.0


def names_of(kind: str) -> Callable[[str], list[str]]:
    """Return what completes the name of an object of this kind, for example ``vms``."""

    def complete(incomplete: str) -> list[str]:
        from novacron.client import protocol
        from novacron.client.config import load_config
        from novacron.client.errors import ApiError, Unreachable
        from novacron.client.sync.transport import Transport

        query = {"fields": "name", "limit": str(NAMES_MAX)} if protocol.is_paged(kind) else {}
        if kind == "vms" and incomplete:
            query["name"] = f"{incomplete}*"
        try:
            config = load_config()
            path = protocol.in_project(
                f"/api/v1/{kind}" + (f"?{protocol.query(query)}" if query else ""), config.project
            )
            answer = Transport(config).send("GET", path, protocol.authorization(config), timeout_s=ANSWER_S_MAX)
            items = protocol.decode(answer, config.url)["items"]
        except (ApiError, Unreachable, OSError):
            return []  # there is nobody to tell: a shell shows what it gets as words
        return [item["name"] for item in items if item["name"].startswith(incomplete)]

    return complete


def contexts(incomplete: str) -> list[str]:
    """Return the names of the contexts of the settings that begin so."""
    from novacron import context_file
    from novacron.client.config import config_path

    try:
        return [name for name in context_file.read(config_path()).names() if name.startswith(incomplete)]
    except context_file.SettingsError:
        return []

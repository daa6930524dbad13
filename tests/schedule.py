"""Which process runs which tests, and in which order: each file whole, the longest first."""

from __future__ import annotations

from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling


def _integration(*names: str) -> tuple[str, ...]:
    return tuple(f"tests/integration/test_{name}.py" for name in names)


SHARED = {
    "guests on the shared platform": _integration(
        "snapshots", "clones", "firmware", "console", "guest", "lifecycle", "confinement", "devices",
        "guest_hardware", "features_kept",
    ),
    "backups on the shared platform": _integration(
        "vm_backups", "backup_files", "backup_proofs", "repository_prunes", "archive", "encryption",
        "encrypted_backups", "imports", "live_restores", "web_ui_backup_files",
    ),
    "the API of the shared platform": (
        *_integration(
            "volumes", "sharing", "hotplug", "access", "api", "api_http", "api_objects", "contract",
            "doctor", "documents", "foreign_clients", "manifests", "networks", "placement", "quotas", "rollout_smoke",
            "runbooks", "runbooks_of_releases", "sdk_page", "scheduled_moves", "server", "web_ui", "web_ui_columns",
            "web_ui_consoles", "web_ui_files", "web_ui_outages", "web_ui_undo", "wheel",
        ),
        "tests/security/test_overlay.py",
    ),
    "the watched platform": _integration("dashboards", "observed"),
    "attacks on one server": ("tests/security/",),
}  # fmt: skip
"""Files that run in one process, one after the other: they share a platform, which takes 10 s to start. Three processes
start ``site``: one would run its tests longer than all others run theirs. The first name that fits a file counts."""

LONGEST_FIRST = (
    "guests on the shared platform",
    "the API of the shared platform",
    "backups on the shared platform",
    "tests/e2e/test_kills.py",
    "tests/integration/test_outages.py",
    "tests/e2e/test_networks.py",
    "the watched platform",
    "attacks on one server",
    "tests/e2e/test_migration.py",
    "tests/e2e/test_leftovers.py",
    "tests/integration/test_bench.py",
    "tests/e2e/test_disks.py",
    "tests/integration/test_ownership.py",
    "tests/e2e/test_failover.py",
    "tests/integration/test_database_cluster.py",
    "tests/e2e/test_dwcp.py",
    "tests/integration/test_up.py",
    "tests/e2e/test_nodes.py",
    "tests/e2e/test_demo.py",
    "tests/e2e/test_images.py",
    "tests/e2e/test_key_rotation.py",
    "tests/e2e/test_drain.py",
    "tests/e2e/test_postcopy.py",
    "tests/e2e/test_warm.py",
    "tests/integration/test_coverage.py",
    "tests/integration/test_deploy.py",
    "tests/integration/test_macs.py",
    "tests/integration/test_network_encryption.py",
    "tests/integration/test_oidc.py",
    "tests/integration/test_rollouts.py",
    "tests/integration/test_workers.py",
    "tests/integration/test_shared.py",
)
"""What takes longest, as a run prints it at its end. What is not here takes seconds and comes last, so that all
processes end together."""


def scope_of(nodeid: str) -> str:
    """Return the name of what runs in one process together with a test."""
    path = nodeid.partition("::")[0]
    return next((name for name, paths in SHARED.items() if path.startswith(paths)), path)


class WholeFiles(LoadScopeScheduling):  # type: ignore[misc] # xdist has no types
    """A process that has nothing more to do takes the longest of the files that are left."""

    def __init__(self, config: pytest.Config, log: Any) -> None:
        super().__init__(config, log)
        config.option.loadscopereorder = False  # by the number of tests, which says little of how long they take

    def _split_scope(self, nodeid: str) -> str:
        return scope_of(nodeid)


def in_order(items: list[pytest.Item]) -> None:
    """Sort tests so that those of one scope are together, and the longest scopes first."""
    position = {name: number for number, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: position.get(scope_of(item.nodeid), len(position)))

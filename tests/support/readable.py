"""Which files of a platform other users of its hosts can read."""

from __future__ import annotations

import contextlib
import stat
from collections.abc import Iterator
from pathlib import Path

from lab.platform import Platform
from novacron.agent.host.instances import RUN_DIR
from novacron.agent.host.networks import NodeNetworks
from novacron.agent.settings import AgentSettings


def readable_by_others(root: Path) -> list[Path]:
    """Return the files and sockets below a directory that any user can reach and read, or connect to."""
    found = []
    try:
        entries = list(root.iterdir()) if root.stat().st_mode & 0o001 else []
    except FileNotFoundError:
        return []
    for path in entries:
        try:
            mode = path.lstat().st_mode
        except FileNotFoundError:  # it goes at this moment
            continue
        if path.name == "imports" and path.parent == root and (root / "agent").is_dir():
            continue  # files that operators put there
        if stat.S_ISDIR(mode):
            found += readable_by_others(path)
        elif mode & (0o002 if stat.S_ISSOCK(mode) else 0o004) and not stat.S_ISLNK(mode):
            found.append(path)
    return found


@contextlib.contextmanager
def nobody_reads(platform: Platform) -> Iterator[Platform]:
    """Yield a platform; at the end, fail if other users of its hosts can read anything that was written meanwhile."""
    yield platform
    found = everything_readable(platform)
    assert found == [], "other users of a host can read it: see docs/reference/on-disk-formats.md"


def everything_readable(platform: Platform) -> list[Path]:
    """Return the files of servers, agents and PostgreSQL that other users can read. The lab's own are left out: logs
    that it redirects, and images that are links to its cache."""
    found = [*readable_by_others(platform.directory / "s"), *readable_by_others(platform.directory / "pg")]
    for host in platform.lab.hosts:
        found += readable_by_others(platform.directory / host.name)
        instance = NodeNetworks(AgentSettings(platform.directory / host.name / "agent", Path(), "")).instance
        found += [
            path for path in readable_by_others(RUN_DIR) if path.relative_to(RUN_DIR).parts[0].startswith(instance)
        ]
    return sorted(set(found))

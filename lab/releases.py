"""Earlier versions of NovaCron, as they were: their source, to run beside the present one."""

from __future__ import annotations

import fcntl
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

from lab.hosts import LabFailed

ROOT = Path(__file__).parents[1]
TAG = re.compile(r"^v(\d+)\.(\d+)\.(\d+)\Z")
SERVED = 2
"""How many earlier versions have to work with the present one."""
BEFORE_THE_FIRST = {
    "0.1.0-before-proofs": "780b8388297afe214d7a5b8c1b1d23ca0741057c",
    "0.1.0-before-waves": "04591653dc8f33a6e40657f54ca3e7e1fe1c40ae",
}
"""Commits that stand in for releases while there are fewer than ``SERVED``, the oldest first."""
GIT_S_MAX = 120.0


class Release(NamedTuple):
    """An earlier version: how it is called, and the commit or tag that it is."""

    name: str
    ref: str

    def source(self, cache: Path) -> Path:
        """Return the directory of its packages, for ``PYTHONPATH``, made if it is not kept. Raises LabFailed."""
        commit = _git("rev-parse", "--verify", f"{self.ref}^{{commit}}").decode().strip()
        kept = cache / "releases" / commit
        kept.parent.mkdir(parents=True, exist_ok=True)
        with (kept.parent / f"{commit}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not kept.exists():
                fresh = kept.with_name(f".{commit}")
                shutil.rmtree(fresh, ignore_errors=True)
                fresh.mkdir()
                archive = _git("archive", commit, "src")
                subprocess.run(["tar", "-x", "-C", fresh], check=True, input=archive, timeout=GIT_S_MAX)
                fresh.rename(kept)
        return kept / "src"


def earlier() -> list[Release]:
    """Return the last versions before the present one, the oldest first: tags, and commits as long as there are few."""
    tags = sorted(
        (tuple(map(int, match.groups())), line)
        for line in _git("tag", "--list", "v*").decode().split()
        if (match := TAG.match(line)) is not None
    )
    released = [Release(tag[1:], tag) for _, tag in tags]
    stand_ins = [Release(name, commit) for name, commit in BEFORE_THE_FIRST.items()]
    return [*stand_ins, *released][-SERVED:]


def _git(*words: str) -> bytes:
    done = subprocess.run(
        ["git", "-c", "safe.directory=*", *words], check=False, capture_output=True, cwd=ROOT, timeout=GIT_S_MAX
    )
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip()
        raise LabFailed(f"git {' '.join(words)}: {said}; the whole history is needed: git fetch --unshallow --tags")
    return done.stdout

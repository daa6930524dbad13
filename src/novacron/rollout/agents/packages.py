"""Which files are a version's packages for a host, and whether there is a way back. Reads one directory."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from novacron.rollout.model import StepFailed

NAMES = ("novacron", "novacron-agent")
"""The packages of a node, in the order in which they are installed."""
FILE = re.compile(r"^(?P<name>novacron|novacron-agent)_(?P<version>[0-9A-Za-z.+~-]{1,64})_(amd64|all)\.deb\Z")
FOR_DEBIAN = re.compile(r"\+deb([0-9]{1,3})\Z")
BLOCK_BYTES = 1 << 20


class PackageFiles:
    """The Debian packages in a directory of this host."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def of(self, version: str, debian: str) -> list[Path]:
        """Return the files of a version, as people or dpkg write it, for a release of Debian. Raises StepFailed."""
        return [self._file(name, version, debian) for name in NAMES]

    def _file(self, name: str, version: str, debian: str) -> Path:
        try:
            names = sorted(path.name for path in self._directory.iterdir())
        except OSError as error:
            raise StepFailed(f"packages: can't read {self._directory}: {error.strerror}") from None
        matching = [
            file for file in names
            if (match := FILE.match(file)) and match["name"] == name and _fits(match["version"], version, debian)
        ]  # fmt: skip
        if len(matching) == 1:
            return self._directory / matching[0]
        if matching:
            raise StepFailed(f"version: {version} can be {' or '.join(matching)}: write its revision, like 1.2.0-1")
        raise StepFailed(
            f"packages: {self._directory} has no {name} of version {version} for Debian {debian}:"
            " put the packages of the new and of the present version there"
        )


def _fits(of_file: str, version: str, debian: str) -> bool:
    """Say whether a file's version is the one that is meant, and for this release."""
    release = FOR_DEBIAN.search(of_file)
    if release is not None and release[1] != debian:
        return False
    bare = of_file[: release.start()] if release is not None else of_file
    return version in (of_file, bare, bare.rpartition("-")[0])


def package_version(file: Path) -> str:
    """Return a package's version by the name of its file. Raises StepFailed."""
    match = FILE.match(file.name)
    if match is None:
        raise StepFailed(f"packages: {file.name} is not named like novacron-agent_1.2.0-1_amd64.deb")
    return match["version"]


def agent_version(package: str) -> str:
    """Return what the agent of a package's version calls itself: without revision and release."""
    bare = FOR_DEBIAN.sub("", package)
    return bare.rpartition("-")[0] or bare


def digest(file: Path) -> str:
    """Return the SHA-256 of a file. Raises StepFailed."""
    sha256 = hashlib.sha256()
    try:
        with file.open("rb") as opened:
            while block := opened.read(BLOCK_BYTES):
                sha256.update(block)
    except OSError as error:
        raise StepFailed(f"packages: can't read {file}: {error.strerror}") from None
    return sha256.hexdigest()

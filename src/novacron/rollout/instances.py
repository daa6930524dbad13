"""Servers as a rollout sees them: two places on this host, in each of which a version can be installed and run."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from novacron.child_environment import clean
from novacron.rollout.model import Colour, StepFailed

INSTALL_S_MAX = 900.0
VERSION_S_MAX = 60.0
DEBIAN_ENVIRONMENT = "opt/novacron/server"
"""Where the package novacron-server has its Python environment."""


class Instances(Protocol):
    """What runs the two servers. All methods can be repeated: what is so already stays so. All raise StepFailed."""

    def install(self, colour: Colour, version: str) -> None:
        """Make the next start of a colour run this version. Those that run are not touched."""

    def version(self, colour: Colour) -> str:
        """Return the version that the next start of a colour runs; empty: none."""

    def start(self, colour: Colour) -> None:
        """Start a server, or leave it if it runs."""

    def stop(self, colour: Colour, limit_s: float) -> None:
        """Let a server finish and end; kill it after a while."""

    def running(self, colour: Colour) -> bool:
        """Say whether its process runs, or is being started."""

    def last_words(self, colour: Colour) -> str:
        """Return the end of its log."""


def run(command: Sequence[str | Path], limit_s: float) -> str:
    """Run a command and return what it prints. Raises StepFailed."""
    words = [str(word) for word in command]
    try:
        done = subprocess.run(
            words, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=limit_s, env=clean()
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise StepFailed(f"{' '.join(words)}: {error}") from None
    if done.returncode != 0:
        raise StepFailed(f"{' '.join(words)} ended with {done.returncode}: {done.stderr.strip()[-800:]}")
    return done.stdout


class Environments:
    """Python environments of versions, and which of them each colour has.

    ``root/versions/VERSION`` are installed from packages; ``root/COLOUR`` is a link to an environment. ``preinstalled``
    are environments that the settings name, by version.
    """

    def __init__(self, root: Path, packages: Path | None, preinstalled: Mapping[str, Path]) -> None:
        self._root, self._packages, self._preinstalled = root, packages, preinstalled

    def link(self, colour: Colour) -> Path:
        return self._root / colour

    def python(self, colour: Colour) -> Path:
        return self.link(colour) / "bin/python"

    def give(self, colour: Colour, version: str) -> None:
        """Let a colour have a version, installed if it is not there yet. Raises StepFailed."""
        environment = self._preinstalled.get(version) or self._installed(version)
        installed_version = _version_of(environment / "bin/python")
        if installed_version != version:
            raise StepFailed(f"version: {environment} has version {installed_version} instead of {version}")
        fresh = self.link(colour).with_name(f".{colour}.new")
        try:
            self._root.mkdir(parents=True, exist_ok=True, mode=0o755)
            fresh.unlink(missing_ok=True)
            fresh.symlink_to(environment)
            fresh.replace(self.link(colour))
        except OSError as error:
            raise StepFailed(f"can't let {self.link(colour)} be {environment}: {error}") from None

    def version(self, colour: Colour) -> str:
        """Return the version that a colour has; empty: none. Raises StepFailed."""
        return _version_of(self.python(colour)) if self.python(colour).exists() else ""

    def _installed(self, version: str) -> Path:
        """Return a version's environment, made of its package if it is not there. Raises StepFailed."""
        home = self._root / "versions" / version
        environment = home / DEBIAN_ENVIRONMENT if (home / DEBIAN_ENVIRONMENT).is_dir() else home
        if (environment / "bin/python").exists():
            return environment
        if self._packages is None:
            raise StepFailed(
                f"version: {version} is not installed, and it is not said where packages are: --packages DIRECTORY"
            )
        fresh = home.with_name(f".{version}.{os.getpid()}")
        try:
            shutil.rmtree(fresh, ignore_errors=True)
            fresh.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
            self._unpack(version, fresh)
            shutil.rmtree(home, ignore_errors=True)  # without a Python: an attempt that was cut off
            fresh.replace(home)
        except OSError as error:
            raise StepFailed(f"can't install version {version} in {home}: {error}") from None
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
        return home / DEBIAN_ENVIRONMENT if (home / DEBIAN_ENVIRONMENT).is_dir() else home

    def _unpack(self, version: str, into: Path) -> None:
        assert self._packages is not None
        debs = sorted(self._packages.glob(f"novacron-server_{version}_*.deb"))
        if debs:
            run(("dpkg-deb", "--extract", debs[0], into), INSTALL_S_MAX)
            return
        if not list(self._packages.glob(f"novacron-{version}-*.whl")):
            raise StepFailed(
                f"packages: {self._packages} has neither novacron-server_{version}_*.deb nor novacron-{version}-*.whl"
            )
        run(("/usr/bin/python3", "-m", "venv", into), INSTALL_S_MAX)
        wheels = ("--no-index", "--find-links", self._packages, f"novacron[server]=={version}")
        run((into / "bin/python", "-m", "pip", "install", "--quiet", *wheels), INSTALL_S_MAX)


def _version_of(python: Path) -> str:
    said = run((python, "-I", "-m", "novacron", "--version"), VERSION_S_MAX).split()
    return said[-1] if said else ""

"""Debian packages of another version, made of those of this one; also of versions that have a defect."""

from __future__ import annotations

import re
import subprocess
import tempfile
from enum import StrEnum
from pathlib import Path

TIMEOUT_S = 300.0
VERSION = re.compile(r"^Version: (?P<upstream>[^-]+)-(?P<rest>.+)$", re.MULTILINE)
OF_THE_AGENT = 'if "agent" in sys.argv[1:2]:\n'


class ReleaseDefect(StrEnum):
    """What is wrong with a version's agent."""

    NONE = "none"
    DOES_NOT_START = "does-not-start"
    ENDS_GUESTS = "ends-guests"
    """It kills every QEMU of its host when it starts."""


DEFECTS = {
    ReleaseDefect.NONE: "",
    ReleaseDefect.DOES_NOT_START: f'\nimport sys\n\n{OF_THE_AGENT}    sys.exit("a defect of this release")\n',
    ReleaseDefect.ENDS_GUESTS: f"""
import os, sys
from pathlib import Path

{OF_THE_AGENT}    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cmdline").read_bytes().startswith(b"qemu-system"):
                os.kill(int(process.name), 9)
        except OSError:
            pass
""",
}


def repacked(deb: Path, version: str, into: Path, defect: ReleaseDefect = ReleaseDefect.NONE) -> Path:
    """Return a package like this one whose programs call themselves by another version."""
    into.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="novacron-repacked-") as scratch:
        tree = Path(scratch) / "tree"
        _run("dpkg-deb", "--raw-extract", deb, tree)
        control = tree / "DEBIAN/control"
        text = control.read_text()
        match = VERSION.search(text)
        assert match is not None, text
        control.write_text(VERSION.sub(f"Version: {version}-{match['rest']}", text))
        (tree / "DEBIAN/md5sums").unlink(missing_ok=True)
        for package in tree.glob("opt/novacron/*/lib/python*/site-packages/novacron/__init__.py"):
            package.write_text(f'"""NovaCron."""\n\n__version__ = "{version}"\n{DEFECTS[defect]}')
        made = into / deb.name.replace(f"_{match['upstream']}-", f"_{version}-")
        _run("dpkg-deb", "--root-owner-group", "-Zzstd", "-z1", "--build", tree, made)
    return made


def _run(*words: str | Path) -> None:
    subprocess.run([str(word) for word in words], check=True, capture_output=True, timeout=TIMEOUT_S)

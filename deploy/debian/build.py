"""Builds the wheel, the source archive and the Debian packages. The same files of the repository give the same bytes.

Every Python package comes from the lock file, as a wheel where there is one, checked by its hash. Nothing depends on
the Python, the time, the user or the umask of whoever builds.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import re
import shutil
import subprocess
import tempfile
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from deploy.debian.manifest import PACKAGES, ROOT, SETTINGS, Debian, File, Package, control, files, scripts
from lab import sbom

UV = ROOT / ".venv/bin/uv"
TIMEOUT_S = 600.0
LEFT_OUT = ("bin", "include", "share")
"""What wheels bring beside importable files: programs that would have this machine's paths in them, headers, pages."""
OF_THIS_MACHINE = ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json", "uv_cache.json")
"""What an installer notes of a package: where it came from; what it says of files is written anew (``RECORD``)."""
INSTALLER = "dpkg\n"
PROGRAM = """#!{root}/bin/python -I
import sys

from novacron.__main__ import main

sys.exit(main())
"""
PYVENV = "home = /usr/bin\ninclude-system-site-packages = false\nversion = {version}\n"


class BuildFailed(Exception):
    """A program that builds has failed: says which, and what it complained about."""


class Built(NamedTuple):
    """What is built, and of which version."""

    directory: Path
    version: str
    epoch_s: int


def _run(*arguments: str | Path, epoch_s: int) -> str:
    environment = {**os.environ, "SOURCE_DATE_EPOCH": str(epoch_s), "UV_NO_PROGRESS": "1", "TZ": "UTC"}
    command = [str(argument) for argument in arguments]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=TIMEOUT_S
    )
    if done.returncode != 0:
        raise BuildFailed(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr.strip()}")
    return done.stdout


def epoch_s() -> int:
    """Return the time that everything built bears: that of the last commit, unless ``SOURCE_DATE_EPOCH`` says it."""
    given = os.environ.get("SOURCE_DATE_EPOCH", "")
    if given.isdecimal():
        return int(given)
    return int(_run("git", "log", "-1", "--format=%ct", epoch_s=0))


def python_packages(directory: Path, epoch_s: int) -> Path:
    """Build the wheel and the source archive, and return the wheel."""
    _run(UV, "build", "--quiet", "--no-build-isolation", "--out-dir", directory, epoch_s=epoch_s)
    (directory / ".gitignore").unlink(missing_ok=True)
    return next(directory.glob("novacron-*.whl"))


def debian_packages(
    to: Built, wheel: Path, debians: Iterable[Debian], revision: int = 1, packages: Iterable[Package] = PACKAGES
) -> Iterator[Path]:
    """Build packages for each of these releases, and yield their files."""
    for debian in debians:
        version = f"{to.version}-{revision}+deb{debian}"
        for package in packages:
            with tempfile.TemporaryDirectory(prefix="novacron-package-") as scratch:
                tree = Path(scratch) / "tree"
                _environment(tree / package.root.lstrip("/"), package, debian, wheel, to.epoch_s)
                for file in files(package):
                    _write(tree, file)
                _control(tree, package, debian, version)
                _same_everywhere(tree, to.epoch_s)
                deb = to.directory / f"{package.name}_{version}_amd64.deb"
                _run(
                    *("dpkg-deb", "--root-owner-group", "--threads-max=1", "-Zzstd", "-z12", "--build", tree, deb),
                    epoch_s=to.epoch_s,
                )
                yield deb


def _environment(root: Path, package: Package, debian: Debian, wheel: Path, epoch_s: int) -> None:
    """Make the Python environment of a package, for where it will be installed and that release's own Python."""
    site = root / f"lib/python{debian.python}/site-packages"
    site.mkdir(parents=True)
    wanted = tuple(word for extra in package.extras for word in ("--extra", extra))
    locked = root / "requirements.txt"
    _run(
        *(UV, "export", "--quiet", "--frozen", "--no-default-groups", "--no-emit-project", "--no-annotate"),
        *wanted,
        *("--no-header", "--output-file", locked),
        epoch_s=epoch_s,
    )
    install = (
        *(UV, "pip", "install", "--quiet", "--target", site, "--link-mode", "copy", "--no-deps"),
        *("--python-version", debian.python, "--python-platform", debian.wheels),
    )
    sources = _without_sources(locked)
    if sources:
        from_source = root / "sources.txt"
        from_source.write_text(sources)
        _run(*install, "--no-build-isolation", "--require-hashes", "--requirement", from_source, epoch_s=epoch_s)
        from_source.unlink()
    _run(*install, "--only-binary", ":all:", "--require-hashes", "--requirement", locked, epoch_s=epoch_s)
    _run(*install, "--only-binary", ":all:", wheel, epoch_s=epoch_s)
    locked.unlink()
    for name in LEFT_OUT:
        shutil.rmtree(site / name, ignore_errors=True)
    for information in site.glob("*.dist-info"):
        _note_files(information)
    programs = root / "bin"
    programs.mkdir()
    (programs / "python3").symlink_to(f"/usr/bin/python{debian.python}")
    (programs / "python").symlink_to("python3")
    (programs / "novacron").write_text(PROGRAM.format(root=package.root))
    (programs / "novacron").chmod(0o755)
    (root / "pyvenv.cfg").write_text(PYVENV.format(version=debian.python))


def _published_as_source_only() -> set[str]:
    packages = tomllib.loads((ROOT / "uv.lock").read_text())["package"]
    return {package["name"] for package in packages if "sdist" in package and "wheels" not in package}


def _without_sources(locked: Path) -> str:
    """Remove from a file of requirements what was published as a source archive only, and return it."""
    only_sources = _published_as_source_only()
    entries = re.split(r"\n(?=\S)", locked.read_text().strip())  # lines of hashes are indented
    sources = [entry for entry in entries if entry.partition("==")[0] in only_sources]
    locked.write_text("".join(f"{entry}\n" for entry in entries if entry not in sources))
    return "".join(f"{entry}\n" for entry in sources)


def _note_files(information: Path) -> None:
    """Write what is installed of a package anew, without what this machine left out or added."""
    site, record = information.parent, information / "RECORD"
    rows = [row for row in csv.reader(io.StringIO(record.read_text())) if row and (site / row[0]).is_file()]
    kept = [row for row in rows if Path(row[0]).name not in OF_THIS_MACHINE and ".." not in Path(row[0]).parts]
    for name in OF_THIS_MACHINE:
        (information / name).unlink(missing_ok=True)
    (information / "INSTALLER").write_text(INSTALLER)
    own = [[f"{information.name}/{name}", "", ""] for name in ("INSTALLER", "RECORD")]
    with record.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(sorted([*kept, *own]))


def _write(tree: Path, file: File) -> None:
    path = tree / file.path.lstrip("/")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(file.content)
    path.chmod(file.mode)


def _control(tree: Path, package: Package, debian: Debian, version: str) -> None:
    contents = sorted(path for path in tree.rglob("*") if path.is_file() and not path.is_symlink())
    size_kib = sum(-(-path.stat().st_size // 1024) for path in contents)
    sums = [f"{_md5(path)}  {path.relative_to(tree)}\n" for path in contents]
    information = {"control": control(package, debian, version, size_kib), "md5sums": "".join(sums)}
    if package.settings is not None:
        information["conffiles"] = f"{SETTINGS}/{package.settings}\n"
    for name, text in information.items():
        _write(tree, File(f"/DEBIAN/{name}", text.encode()))
    for name, text in scripts(package):
        _write(tree, File(f"/DEBIAN/{name}", text.encode(), 0o755))


def _md5(path: Path) -> str:
    """Return the digest that dpkg compares files with: against accidents, not attackers."""
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def _same_everywhere(tree: Path, epoch_s: int) -> None:
    """Give every file the time of the build, and modes that follow from what it is, not from this machine's umask."""
    for path in (tree, *tree.rglob("*")):
        if path.is_symlink():
            pass
        elif path.is_dir():
            path.chmod(0o755)
        elif path.is_relative_to(tree / "opt"):
            path.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)
        os.utime(path, (epoch_s, epoch_s), follow_symlinks=False)


def build(directory: Path, debians: Iterable[Debian], revision: int = 1) -> list[Path]:
    """Build everything into a directory: packages, bill of materials, digests. Raises BuildFailed."""
    directory.mkdir(parents=True, exist_ok=True)
    to = Built(directory.resolve(), _version(), epoch_s())
    wheel = python_packages(to.directory, to.epoch_s)
    made = [wheel, next(to.directory.glob("novacron-*.tar.gz"))]
    made += debian_packages(to, wheel, debians, revision)
    bill = to.directory / f"novacron-{to.version}.cdx.json"
    bill.write_text(sbom.document())
    made.append(bill)
    sums: Mapping[str, str] = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in made}
    listed = to.directory / "SHA256SUMS"
    listed.write_text("".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items())))
    return [*made, listed]


def _version() -> str:
    version: str = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    return version

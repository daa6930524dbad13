"""The code keeps its shape: each number may only fall below today's count."""

from __future__ import annotations

import ast
import re
import subprocess
import symtable
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import grimp
import pytest
from complexipy import file_complexity

import novacron
from novacron.store import database
from tests import schedule
from tests.support.sources import parsed

SOURCE = Path(novacron.__file__).parent
TESTS = Path(__file__).parents[1]
FUNCTION_LINES_MAX = 60
PARAMETERS_MAX = 6
COMPLEXITY_MAX = 15
"""Cognitive complexity, as complexipy counts it."""
FILE_LINES_MAX = 500
GENERATED = {"client/bodies.py"}
"""Files that script/generate makes of others, however long these are."""
FOREIGN_SIGNATURES = {"telemetry/traces.py should_sample"}
"""Functions whose parameters somebody else prescribes."""
SITES = ("guests on the shared platform", "backups on the shared platform", "the API of the shared platform")
LOADED_WHEN_NEEDED = {"opentelemetry.exporter", "pycdlib", "redis", "webauthn", "zxcvbn"}
"""Packages that few processes need, and that take long to import."""
SHARED_CLASS_NAMES = {
    "AntiAffinityScope", "AuditOutcome", "BootDevice", "CapacityResource", "CpuKind", "CpuPolicy", "DiskBus", "Display",
    "DrainPolicy", "DrillName", "DrillVerdict", "Encryption",
    "Firmware", "HugePages", "ImageFormat", "Ipv6Addresses", "KeyName", "MigrationPolicy", "NicModel", "Os", "Power",
    "RebalanceBasis", "RebalanceMode", "Restart",
}  # fmt: skip
"""Enums of the model that the client, which does not load the model, has a generated copy of (client/choices.py)."""


IMPORTED_BY_NAME = {
    "cli/kinds.py": "one of the modules of commands, for the columns of a kind of object: loaded when it is asked for",
    "entry.py": "the one module of commands that was typed",
}
"""Files that import by a name that they put together, and what."""


HARMLESS = {"property", "staticmethod", "classmethod"}
"""Decorators that give a method to nobody."""
CALLED_BY_OTHERS = {
    "_coerce_value", "_missing_", "authenticate_request", "emit", "get_description", "get_reset_query", "seekable",
    "should_sample",
}  # fmt: skip
"""Methods that libraries call by these names."""
ENTRY_POINT = ("novacron.entry", "main")
"""What the program ``novacron`` calls."""


VAGUE = frozenset({"one", "found", "wanted", "told", "known", "kept", "said", "later", "before", "rest"})
"""Names that could stand for anything."""
VAGUE_VARIABLES = frozenset({"one", "found", "wanted", "told"})
OLD_NAMES = frozenset({
    "back", "door", "foresee", "gathering", "giver", "giving", "hot", "keeper", "late", "owning", "remainder", "taker",
    "taking", "telling", "theirs", "turns",
})  # fmt: skip
"""Names that the glossary has replaced: giving -> source, taking -> target, owning -> reconciler, telling ->
notifications or desired state, keeper -> guard or engine, ..."""
OTHERS_WORDS = {
    "backup/rest.py rest", "cli/agent_rollouts.py back", "cli/rollouts.py _back", "client/aio/connection.py one",
    "client/sync/connection.py one",
}  # fmt: skip
"""The protocol REST, the commands ``rollout back``, and the SDK's ``client.one(Vm, "web")``, which programs use."""


class Ceiling(NamedTuple):
    """How many there may be."""

    allowed: int
    goal: int
    """What it is to come down to: lower ``allowed`` with every step towards it."""


CEILINGS = {
    "circles between files": Ceiling(0, 0),
    "functions over 60 lines": Ceiling(0, 0),
    "functions over 6 parameters": Ceiling(0, 0),
    "functions of a complexity over 15": Ceiling(13, 13),
    "files over 500 lines": Ceiling(0, 0),
    "variables that are called one, found, wanted or told": Ceiling(2, 2),
    "ignored types without a reason": Ceiling(12, 0),
}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def files() -> Iterator[tuple[str, Path]]:
    """Return the source files with their names below ``novacron``; migrations are history and stay as they are."""
    for path in sorted(SOURCE.rglob("*.py")):
        name = path.relative_to(SOURCE).as_posix()
        if not name.startswith("store/schema/versions/"):
            yield name, path


def functions() -> Iterator[tuple[str, Function]]:
    for name, path in files():
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{name} {node.name}", node


def lines(function: Function) -> int:
    assert function.end_lineno is not None
    return function.end_lineno - function.lineno + 1


def parameters(function: Function) -> int:
    """Return how many there are; ``self`` and ``cls`` are not counted, nor what collects the rest."""
    arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    return sum(argument.arg not in ("self", "cls") for argument in arguments)


def circles() -> list[str]:
    """Return the groups of files that import one another, also only for types, each by the files in it."""
    graph = grimp.build_graph("novacron", exclude_type_checking_imports=False, cache_dir=None)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    reachable: dict[str, set[str]] = {}
    for module in imports:
        seen: set[str] = set()
        waiting = list(imports[module])
        while waiting:
            other = waiting.pop()
            if other not in seen:
                seen.add(other)
                waiting += imports[other]
        reachable[module] = seen
    groups = {
        tuple(sorted(other for other in reachable[module] if module in reachable[other]))
        for module in imports
        if module in reachable[module]
    }
    return [" - ".join(group) for group in sorted(groups)]


def complex_functions() -> list[str]:
    return [
        f"{name} {function.name}: {function.complexity}"
        for name, path in files()
        for function in file_complexity(str(path)).functions
        if function.complexity > COMPLEXITY_MAX
    ]


def offenders(what: str) -> list[str]:
    match what:
        case "circles between files":
            return circles()
        case "functions over 60 lines":
            return [f"{name}: {lines(node)}" for name, node in functions() if lines(node) > FUNCTION_LINES_MAX]
        case "functions over 6 parameters":
            return [
                f"{name}: {parameters(node)}"
                for name, node in functions()
                if parameters(node) > PARAMETERS_MAX and name not in FOREIGN_SIGNATURES
            ]
        case "functions of a complexity over 15":
            return complex_functions()
        case "files over 500 lines":
            counts = {name: len(path.read_text().splitlines()) for name, path in files() if name not in GENERATED}
            return [f"{name}: {count}" for name, count in counts.items() if count > FILE_LINES_MAX]
        case "variables that are called one, found, wanted or told":
            return [
                f"{name}:{node.lineno} {node.id}"
                for name, path in files()
                for node in ast.walk(parsed(path))
                if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id in VAGUE_VARIABLES
            ]
        case "ignored types without a reason":
            return [
                f"{name}:{number}"
                for name, path in files()
                for number, line in enumerate(path.read_text().splitlines(), 1)
                if re.search(r"# type: ignore\[[\w-]+\]$", line)
            ]
    raise ValueError(what)


@pytest.mark.parametrize("what", CEILINGS)
def test_the_shape_of_the_code_gets_no_worse(what: str) -> None:
    over = offenders(what)
    assert len(over) <= CEILINGS[what].allowed, f"{len(over)} {what}:\n" + "\n".join(over)


def test_no_ceiling_is_below_its_goal() -> None:
    assert all(ceiling.allowed >= ceiling.goal for ceiling in CEILINGS.values())


def test_no_function_class_or_module_has_a_name_that_says_nothing() -> None:
    named = set[tuple[str, str]]()
    for name, path in files():
        if path.stem != "__init__":
            named.add((name, path.stem))
        named |= {
            (name, node.name)
            for node in ast.walk(parsed(path))
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        }
    vague = {f"{where} {name}" for where, name in named if name.strip("_").lower() in VAGUE | OLD_NAMES}
    assert vague - OTHERS_WORDS == set(), "say what it is or does, in the words of the glossary"
    assert OTHERS_WORDS - vague == set(), "these have other names by now: take them out of the list"


def test_a_class_name_stands_for_one_thing() -> None:
    places = defaultdict[str, list[str]](list)
    for name, path in files():
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(name)
    shared = {name: where for name, where in places.items() if len(where) > 1}
    unexpected = {name: where for name, where in shared.items() if name not in SHARED_CLASS_NAMES}
    assert not unexpected, f"give each its own telling name: {unexpected}"
    assert shared.keys() == SHARED_CLASS_NAMES, f"shared no longer: {SHARED_CLASS_NAMES - shared.keys()}"


def sleeps(call: ast.Call) -> bool:
    if (call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")) != "sleep":
        return False
    return not (call.args and isinstance(call.args[0], ast.Constant) and call.args[0].value == 0)


def test_tests_wait_through_the_helpers_that_have_limits() -> None:
    """``sleep(0)`` lets other tasks run and waits for nothing."""
    sleeping = []
    for path in sorted(TESTS.rglob("*.py")):
        if path == TESTS / "waiting.py":
            continue
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.Call) and sleeps(node):
                sleeping.append(f"{path.relative_to(TESTS)}:{node.lineno}")
    assert not sleeping, f"use tests.waiting: {sleeping}"


def test_schema_versions_are_one_chain_that_ends_with_this_program_s() -> None:
    versions = sorted((Path(novacron.__file__).parent / "store/schema/versions").glob("[0-9]*.py"))
    numbers = [path.name.partition("_")[0] for path in versions]
    for path, number, before in zip(versions, numbers, [None, *numbers], strict=False):
        text = path.read_text()
        assert f'\nrevision = "{number}"\n' in text, path.name
        assert f"\ndown_revision = {'None' if before is None else chr(34) + before + chr(34)}\n" in text, path.name
    assert len(set(numbers)) == len(numbers), "two versions have one number"
    assert numbers[-1] == database.SCHEMA_VERSION


def test_what_few_processes_need_does_not_delay_the_start_of_all() -> None:
    code = "import sys, novacron.server.main, novacron.agent.main; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not LOADED_WHEN_NEEDED & set(loaded)


def test_vms_are_inserted_with_one_list_of_columns() -> None:
    """A column that a second list lacks would be empty in VMs that came that way."""
    inserts = [name for name, path in files() for _ in re.findall(r"INSERT\s+INTO\s+vms\b", path.read_text())]
    assert inserts == ["store/new_vms.py"]


def test_nothing_hides_an_import_behind_its_name() -> None:
    """No contract and no look for circles sees what is imported by a name that is put together."""
    hidden = {
        name for name, path in files()
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Call)
        and (node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", ""))
        in ("import_module", "__import__")
    }  # fmt: skip
    assert hidden == IMPORTED_BY_NAME.keys()


def test_each_package_and_module_stands_in_the_contracts_of_who_imports_whom() -> None:
    """``script/lint`` checks the contracts. What they leave out may import, and be imported by, anything."""
    contracts = tomllib.loads((TESTS.parent / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layered = {contract["containers"][0]: contract for contract in contracts if contract["type"] == "layers"}
    assert layered.keys() == {"novacron", "novacron.agent", "novacron.api"}
    for container, contract in layered.items():
        assert contract["exhaustive"] and "exhaustive_ignores" not in contract, container
        layers = {name.strip() for layer in contract["layers"] for name in re.split(r"[|:]", layer)}
        folder = SOURCE.parent.joinpath(*container.split("."))
        children = {path.stem for path in folder.glob("*.py")} | {path.parent.name for path in folder.glob("*/*.py")}
        assert layers == children - {"__init__"}, container


def own_files() -> Iterator[tuple[str, Path]]:
    """Return all source files but the SDK's, which others use."""
    return ((name, path) for name, path in files() if not name.startswith("client/"))


def methods() -> Iterator[tuple[str, str]]:
    """Return methods, each with its file; not what a decorator hands to somebody."""
    for name, path in own_files():
        for node in parsed(path).body:
            for each in node.body if isinstance(node, ast.ClassDef) else ():
                if isinstance(each, Function) and {ast.unparse(by) for by in each.decorator_list} <= HARMLESS:
                    yield each.name, name


def _names_of(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.ClassDef) or (isinstance(node, Function) and not node.decorator_list):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [each.id for target in targets for each in ast.walk(target) if isinstance(each, ast.Name)]


def read_names() -> set[str]:
    """Return the names that any source file reads of anything, also as a word."""
    names = set[str]()
    for _, path in files():
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Load):
                names.add(node.id if isinstance(node, ast.Name) else node.attr)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                names.add(node.value)
    return names


def module_of(file: str) -> str:
    return f"novacron.{file.removesuffix('.py').replace('/', '.')}".removesuffix(".__init__")


def read_in(module: str, path: Path, modules: set[str]) -> Iterator[tuple[str, str]]:
    """Yield what a file reads of modules, each with the module: its own names, imported ones, and ``module.name``."""
    tree = parsed(path)
    yield from ((module, name) for name in _own_names_read(path, tree))
    called = defaultdict[str, set[str]](set)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                if whole in modules:
                    called[alias.asname or alias.name].add(whole)
                else:
                    yield node.module, alias.name
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name | ast.Attribute):
            value = node.value.id if isinstance(node.value, ast.Name) else ast.unparse(node.value)
            yield from ((each, node.attr) for each in called.get(value, {value} & modules))


def _own_names_read(path: Path, tree: ast.Module) -> Iterator[str]:
    """Yield the names of a module that are read in it, also as words; not variables of functions called alike."""
    tables = [symtable.symtable(path.read_text(), str(path), "exec")]
    while tables:
        table = tables.pop()
        tables += table.get_children()
        yield from (
            symbol.get_name()
            for symbol in table.get_symbols()
            if symbol.is_referenced() and (table.get_type() == "module" or symbol.is_global())
        )
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        annotation = getattr(node, "annotation", None) or getattr(node, "returns", None)  # which symtable leaves out
        if annotation is not None:
            yield from (each.id for each in ast.walk(annotation) if isinstance(each, ast.Name))


def test_nothing_is_defined_that_the_product_does_not_use() -> None:
    """What only tests, benchmarks or the lab use is defined there."""
    modules = {module_of(name) for name, _ in files()}
    read_of_modules = {each for name, path in files() for each in read_in(module_of(name), path, modules)}
    dead = {
        (each, name)
        for name, path in own_files()
        for node in parsed(path).body
        for each in _names_of(node)
        if (module_of(name), each) not in read_of_modules and (module_of(name), each) != ENTRY_POINT
    }
    read = read_names()
    dead |= {(name, where) for name, where in methods() if name not in read}
    unexpected = sorted(
        f"{where} {name}" for name, where in dead if name not in CALLED_BY_OTHERS and not name.startswith("__")
    )
    assert not unexpected, f"remove or use these, or move them to where they are used: {unexpected}"
    assert {name for name, _ in dead if not name.startswith("__")} == CALLED_BY_OTHERS


def test_the_guard_tells_names_of_modules_from_others_that_are_called_alike(tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text(
        "from novacron.store import fleet as nodes\n"
        "def find(summary: Choice) -> None:\n"
        "    present = 1\n"
        "    summary.copy(present, nodes.load)\n"
    )
    assert set(read_in("own", file, {"novacron.store.fleet"})) == {
        ("own", "Choice"), ("own", "nodes"), ("novacron.store.fleet", "load"),
    }  # fmt: skip


def test_the_schedule_of_tests_names_existing_files() -> None:
    """A file that was renamed would run last, or start a platform of its own."""
    named = {path for paths in schedule.SHARED.values() for path in paths}
    named |= {name for name in schedule.LONGEST_FIRST if name not in schedule.SHARED}
    assert not [path for path in named if not (TESTS.parent / path).exists()]


def test_tests_that_share_a_platform_run_in_one_process() -> None:
    shared = {"site": SITES, "watched": ("the watched platform",)}
    wrong = set()
    for path in sorted({*TESTS.rglob("test_*.py")} - {*(TESTS / "unit").glob("*.py")}):
        name = path.relative_to(TESTS.parent).as_posix()
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                for fixture in shared.keys() & {argument.arg for argument in node.args.args}:
                    if schedule.scope_of(name) not in shared[fixture]:
                        wrong.add(
                            f"{name} uses {fixture}: name it in SHARED of tests/schedule.py, in {shared[fixture]}"
                        )
    assert not wrong

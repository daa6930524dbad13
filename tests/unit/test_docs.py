"""The documentation: its links lead somewhere, and the files and tests that it names exist."""

from __future__ import annotations

import functools
import json
import re
import subprocess
import types
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import cast, get_args

import msgspec
import pytest
from litestar.routes import HTTPRoute, WebSocketRoute

from novacron.agent.migration import phases
from novacron.agent.vm.journal import Record
from novacron.agent.vm.power import Step
from novacron.api.access.context import Services
from novacron.api.app import create_app
from novacron.api.edge import web_ui
from novacron.model.migration import MigrationPhase
from novacron.model.ownership import Claim
from novacron.model.snapshot import SnapshotPhase
from novacron.model.vm import VmState
from novacron.wire import messages, questions

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
INLINE_CODE = re.compile(r"`[^`\n]*`")
LINK = re.compile(r"\[[^\]\n]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#{1,6} (.+)$", re.MULTILINE)
NAMED_PATH = re.compile(
    r"`((?:src/novacron|tests|docs|deploy|lab|bench|script|model|store|wire|api|control|server|agent|qemu|dwcp|disk|net"
    r"|client|cli|local|telemetry)/[\w./-]+)`"
)
PACKAGE = ROOT / "src/novacron"
DIAGRAM = re.compile(r"^```mermaid\n((?:stateDiagram-v2|sequenceDiagram)\n.*?)^```", re.MULTILINE | re.DOTALL)
TEST_NAME = re.compile(r"\btest_\w+")
HISTORY = {"CHANGELOG.md"}
"""Pages that tell of what was: the files that they name may be gone."""


@functools.cache
def pages() -> tuple[Path, ...]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"], cwd=ROOT, capture_output=True,
        text=True, check=True,
    ).stdout.split()  # fmt: skip
    return tuple(ROOT / name for name in listed if (ROOT / name).exists())


@functools.cache
def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text())


def anchor(heading: str) -> str:
    """Return the anchor that GitHub gives a heading."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").lower()
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


@functools.cache
def anchors(page: Path) -> frozenset[str]:
    counts: dict[str, int] = {}
    for heading in HEADING.findall(prose(page)):
        name = anchor(heading.strip())
        counts[name] = counts.get(name, 0) + 1
    return frozenset(name if n == 0 else f"{name}-{n}" for name, count in counts.items() for n in range(count))


def links(page: Path) -> Iterator[str]:
    for target in LINK.findall(INLINE_CODE.sub("", prose(page))):
        if not re.match(r"[a-z]+:", target):
            yield target


def named_files(page: Path) -> Iterator[str]:
    """Yield the files of the repository that a page names, without those that stand for several."""
    for name in NAMED_PATH.findall(prose(page)):
        if not re.search(r"[A-Z]{2}", Path(name).name) or (ROOT / name).exists():
            yield name


@functools.cache
def defined_tests() -> frozenset[str]:
    names: set[str] = set()
    for path in (ROOT / "tests").rglob("*.py"):
        names.add(path.stem)
        names.update(names_of_tests(path))
    return frozenset(names)


def names_of_tests(path: Path) -> list[str]:
    return re.findall(r"\bdef (test_\w+)", path.read_text())


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    broken = []
    for target in links(page):
        path, _, fragment = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (fragment and file.suffix == ".md" and fragment not in anchors(file)):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_that_a_page_names_exists(page: Path) -> None:
    if page.name in HISTORY:
        return
    missing = [
        name
        for name in named_files(page)
        if not any((base / f"{name}{end}").exists() for base in (ROOT, PACKAGE) for end in ("", ".py"))
    ]
    assert missing == []


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_every_test_that_a_page_names_exists(page: Path) -> None:
    if page.name in HISTORY:
        return
    assert [name for name in TEST_NAME.findall(page.read_text()) if name not in defined_tests()] == []


def test_every_decision_is_in_the_index_with_its_title_and_has_a_status() -> None:
    index, records = (ROOT / "docs/adr/README.md").read_text(), sorted((ROOT / "docs/adr").glob("[0-9]*.md"))
    assert [int(record.name[:4]) for record in records] == list(range(1, len(records) + 1)), "one number each"
    for record in records:
        text = record.read_text()
        title = text.partition("\n")[0].partition(". ")[2]
        assert f"]({record.name}) | {title} |" in index, record.name
        for part in ("Status", "Context", "Decision", "Cost"):
            assert f"**{part}.**" in text, f"{record.name} has no {part.lower()}"


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_no_page_holds_what_a_merge_left(page: Path) -> None:
    assert not re.search(r"^(<{7} |>{7} |={7}$)", page.read_text(), re.MULTILINE)


def test_every_page_is_in_the_table_of_contents() -> None:
    contents = (ROOT / "docs/README.md").read_text()
    runbooks = (ROOT / "docs/runbooks/README.md").read_text()
    listed_elsewhere = {"adr", "dashboards"}
    for page in pages():
        inside = page.relative_to(ROOT)
        if inside.parts[0] == "docs" and inside.parts[1] not in listed_elsewhere | {"README.md"}:
            if inside.parts[1] == "runbooks" and len(inside.parts) > 3:
                assert f"]({inside.relative_to('docs/runbooks')})" in runbooks, str(inside)
            else:
                assert f"]({inside.relative_to('docs')})" in contents, str(inside)


def test_every_attack_that_is_kept_as_a_test_is_in_the_threat_model() -> None:
    page = (ROOT / "docs/security/threat-model.md").read_text()
    files = {str(path.relative_to(ROOT)) for path in (ROOT / "tests/security").glob("test_*.py")}
    attacks = {
        file for file in files if f"`{file}`" in page or any(name in page for name in names_of_tests(ROOT / file))
    }
    assert files - attacks == set(), "add the attack to the border that it crosses"


def test_every_attack_in_the_threat_model_names_what_proves_its_defence() -> None:
    page = (ROOT / "docs/security/threat-model.md").read_text()
    borders = page.partition("\n### B1")[2].partition("\n## ")[0]
    rows = [row for row in re.findall(r"^\| (.*) \|$", borders, re.MULTILINE) if not row.startswith(("attack |", "--"))]
    assert len(rows) > 40
    assert [row for row in rows if not re.search(r"`(tests/[\w/.]+|test_\w+)`", row.rpartition(" | ")[2])] == []


def _row_of(name: str) -> str:
    """Return the row about a message or a question on the page of the agent link."""
    page = (ROOT / "docs/reference/agent-link.md").read_text()
    rows = [
        line
        for line in page.splitlines()
        if re.match(r"\| `\w+`(, `\w+`)* \|", line) and f"`{name}`" in line[: line.index("|", 1)]
    ]
    assert len(rows) == 1, f"{name} is in {len(rows)} rows"
    return rows[0]


@pytest.mark.parametrize("message", get_args(messages.FromAgent | messages.FromServer), ids=lambda kind: kind.__name__)
def test_every_message_of_the_agent_link_is_described_with_its_fields(message: type[messages.Message]) -> None:
    row = _row_of(message.__name__.lower())
    own = [field for field in message.__struct_fields__ if field not in messages.Message.__struct_fields__]
    assert [field for field in own if f"`{field}`" not in row] == []


DESCRIBED_WHERE_THEY_ARE = {
    "Assignment", "BackupWanted", "DatabaseMark", "HeldVm", "Order", "OwnershipRecord", "Peer", "PeerSeen",
    "PointStands", "ReplicaKept", "ReplicaSent", "ReportedCondition", "Statement", "Task",
}  # fmt: skip
"""Structs that have no row of their own on the page of the agent link, because its text describes them."""


def _structs_in(info: msgspec.inspect.Type, known: dict[str, list[str]]) -> None:
    """Add the structs of a type, and of all that it consists of, with the names of their fields."""
    if isinstance(info, msgspec.inspect.StructType):
        if info.cls.__name__ in known:
            return
        known[info.cls.__name__] = [field.name for field in info.fields]
        for field in info.fields:
            _structs_in(field.type, known)
    for name in ("item_type", "key_type", "value_type", "type"):
        if isinstance(inner := getattr(info, name, None), msgspec.inspect.Type):
            _structs_in(inner, known)
    for inner in (*getattr(info, "types", ()), *getattr(info, "item_types", ())):
        _structs_in(inner, known)


def test_every_struct_in_a_message_is_described_with_its_fields() -> None:
    """A second agent could not be written with those of which only the name is known."""
    structs = dict[str, list[str]]()
    _structs_in(msgspec.inspect.type_info(messages.FromAgent | messages.FromServer), structs)
    page = (ROOT / "docs/reference/agent-link.md").read_text()
    schemas = json.loads((ROOT / "docs/reference/openapi.json").read_text())["components"]["schemas"]
    top = {message.__name__ for message in get_args(messages.FromAgent | messages.FromServer)}
    rows = {row[1]: row[0] for row in re.finditer(r"^\| `([A-Z]\w+)` \(.*$", page, re.MULTILINE)}
    missing = []
    for name, fields in structs.items():
        if name not in top and name not in schemas:
            text = page if name in DESCRIBED_WHERE_THEY_ARE else rows.get(name, "")
            missing += [f"{name}.{field}" for field in fields if f"`{field}`" not in text]
    assert missing == []
    assert structs.keys() >= DESCRIBED_WHERE_THEY_ARE | rows.keys()


@pytest.mark.parametrize("question", questions.ALL, ids=lambda kind: kind.__name__)
def test_every_question_is_described_with_its_fields_and_time_limit(question: type[questions.Question[object]]) -> None:
    row = _row_of(question.__name__)
    assert [field for field in question.__struct_fields__ if f"`{field}`" not in row] == []
    assert row.endswith(f"| {question.time_limit_s:.0f} s |")


def test_the_page_of_the_agent_link_is_about_the_protocol_that_is_spoken() -> None:
    title = (ROOT / "docs/reference/agent-link.md").read_text().partition("\n")[0]
    assert title == f"# The agent link, protocol {messages.PROTOCOL}"


@pytest.mark.parametrize(
    "machine",
    [VmState, MigrationPhase, phases.SourcePhase, SnapshotPhase, Claim, Step],
    ids=lambda machine: machine.__name__,
)
def test_every_state_is_on_the_page_of_state_machines(machine: type[StrEnum]) -> None:
    page = (ROOT / "docs/reference/state-machines.md").read_text()
    assert [state for state in machine if not re.search(rf"\b{state.replace('-', '[- ]')}", page)] == []


def test_every_journal_field_is_on_the_page_of_on_disk_formats() -> None:
    page = (ROOT / "docs/reference/on-disk-formats.md").read_text()
    assert [field for field in Record.__struct_fields__ if f"`{field}`" not in page] == []


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_diagrams_hold_no_character_that_ends_a_label(page: Path) -> None:
    lines = [line for diagram in DIAGRAM.findall(page.read_text()) for line in diagram.splitlines()]
    assert [line for line in lines if re.search(r"[;#]", line)] == []


@functools.cache
def commands() -> dict[str, str]:
    """Return what the reference says of each command."""
    parts = re.split(r"^#+ ", (ROOT / "docs/reference/cli.md").read_text(), flags=re.MULTILINE)[1:]
    heads = {part.partition("\n")[0].strip("`").removeprefix("The ").removesuffix(" command"): part for part in parts}
    return {head: part for head, part in heads.items() if head.startswith("novacron")}


def command_lines(page: Path) -> Iterator[str]:
    """Yield the command lines that a page shows."""
    text = page.read_text().replace("\\\n", " ")
    for block in re.findall(r"^```console\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for line in re.findall(r"^[#$] (novacron .*)$", block, re.MULTILINE):
            yield re.split(r"\s{2,}#| +\(", line)[0]
    yield from re.findall(r"`(novacron [^`]*)`", prose(page))


def test_every_package_and_module_of_the_first_levels_is_in_the_architecture() -> None:
    """A folder of which nobody says what it answers grows into whatever is at hand."""
    page = (ROOT / "docs/architecture.md").read_text()
    rows = [line.split("|")[1] for line in page.splitlines() if line[:2] == "| "]
    named = {path.rstrip("/") for cell in rows for path in re.findall(r"`((?:src/novacron/)?[\w/.]+)`", cell)}
    packages = {path.parent for room in ("*", "agent/*", "api/*") for path in PACKAGE.glob(f"{room}/__init__.py")}
    modules = {path for path in PACKAGE.glob("*.py") if path.name != "__init__.py"}
    missing = [
        path.relative_to(PACKAGE).as_posix()
        for path in sorted(packages | modules)
        if not named & {path.relative_to(ROOT).as_posix(), path.relative_to(PACKAGE).as_posix()}
    ]
    assert missing == []
    layers = page.partition("Within the agent, the lower")[2].partition("Within the API")[0]
    agent = {path.stem for path in (PACKAGE / "agent").glob("*.py")} | {
        path.parent.name for path in (PACKAGE / "agent").glob("*/__init__.py")
    }
    assert agent - {"__init__"} == {name for name in re.findall(r"`(\w+)/?`", layers) if name != "VmContext"}


def test_the_architecture_names_every_route_that_needs_no_token() -> None:
    app = create_app(cast(Services, types.SimpleNamespace()))
    public = {
        f"{method} {route.path}"
        for route in app.routes
        for method, handler in (
            [("WEBSOCKET", route.route_handler)]
            if isinstance(route, WebSocketRoute)
            else [(method, handler) for method, (handler, _) in cast(HTTPRoute, route).route_handler_map.items()]
        )
        if method != "OPTIONS" and handler.opt.get("exclude_from_auth")
    }
    page = (ROOT / "docs/architecture.md").read_text()
    rows = page.partition("| route | needs instead |")[2].partition("\n\n")[0].splitlines()
    named = {route for row in rows for route in re.findall(r"`([A-Z]+ /[^`]*)`", row)}
    assert named == public | {f"GET {web_ui.HOME}"}


WAITED_FOR = {
    "ListBackupFileSystems": "files of backups", "ListBackupFiles": "files of backups",
    "ReadBackupFile": "files of backups", "ReadConsoleLog": "console logs", "ReadExport": "exports",
    "ReadFirmwareState": "firmware state",
    "ReadGuestCommand": "commands and files in guests", "ReadGuestFile": "commands and files in guests",
    "ReadMetrics": "metrics", "RemoveImage": "removal of images", "SetLogLevel": "log levels",
    "StartGuestCommand": "commands and files in guests", "TakePiece": "uploads", "TakeScreenshot": "screenshots",
    "WriteGuestFile": "commands and files in guests",
}  # fmt: skip
"""The questions to agents that requests wait for, and what the page of the architecture calls them."""
ASKED_BY_CONTROLLERS = {"PruneRepository"}


def test_the_architecture_names_every_request_that_waits_for_an_agent() -> None:
    assert WAITED_FOR.keys() | ASKED_BY_CONTROLLERS == {question.__name__ for question in questions.ALL}
    page = (ROOT / "docs/architecture.md").read_text()
    waits = " ".join(page.partition("* Nothing waits for an agent, except")[2].partition("\n\n")[0].split())
    assert [words for words in WAITED_FOR.values() if words not in waits] == []


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_and_option_that_a_page_shows_exists(page: Path) -> None:
    if page.name in {*HISTORY, "cli.md"}:
        return
    unknown = []
    for line in command_lines(page):
        line = re.split(r"[|>;]", line)[0]
        words = re.sub(r"^novacron( --(project|context|time-zone) \S+)?", "novacron", line).split()
        command = next(" ".join(words[:n]) for n in range(len(words), 0, -1) if " ".join(words[:n]) in commands())
        options = re.findall(r"(?<![\w-])--[a-z][\w-]*|(?<!\S)-[a-z](?!\S)", " ".join(words).partition(" -- ")[0])
        is_group = command == "novacron" and any(not word.startswith("-") for word in words[1:])
        known = {*re.findall(r"(?<![\w-])--?[a-z][\w-]*", commands()[command]), "-h"}
        unknown += [line] if is_group or not known.issuperset(options) else []
    assert unknown == []


def shown_commands(source: str) -> Iterator[tuple[str, str]]:
    """Yield the commands that the web UI's code shows: the words before the first value, and all of it with its
    conditions (template literals of TypeScript, which may hold others)."""
    for match in re.finditer(r"`(novacron [^`$]*)", source):
        at, inside = match.start() + 1, ["`"]
        while inside:
            if source[at] == "`":
                inside.pop() if inside[-1] == "`" else inside.append("`")
            elif source.startswith("${", at) and inside[-1] == "`":
                inside.append("}")
            elif source[at] == "}" and inside[-1] == "}":
                inside.pop()
            at += 1
        yield match[1], source[match.start() : at]


def test_every_command_and_option_that_the_web_ui_shows_exists() -> None:
    unknown, seen = [], 0
    for path in sorted((ROOT / "web/src").rglob("*.ts*")):
        if ".test." in path.name:
            continue
        for before_values, whole in shown_commands(path.read_text()):
            words = before_values.split()
            heads = [" ".join(words[:n]) for n in range(len(words), 0, -1)]
            head = next(head for head in heads if any(f"{name} ".startswith(f"{head} ") for name in commands()))
            possible = [text for name, text in commands().items() if f"{name} ".startswith(f"{head} ")]
            known = {option for text in possible for option in re.findall(r"(?<![\w-])--[a-z][\w-]*", text)}
            options = re.findall(r"(?<![\w-])--[a-z][\w-]*", whole)
            unknown += [whole] if head == "novacron" or not known.issuperset(options) else []
            seen += 1
    assert unknown == [] and seen > 100

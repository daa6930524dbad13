"""Reads pages of runbooks: front matter, sections, and fenced blocks with attributes, which are steps."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from typing import NamedTuple

import msgspec
import yaml
from markdown_it import MarkdownIt

from novacron.runbooks import command_lines
from novacron.runbooks.command_lines import placeholders, words_of
from novacron.runbooks.expectations import expected_line
from novacron.runbooks.model import (
    HERE,
    FrontMatter,
    Runbook,
    RunbookCommand,
    RunbookError,
    RunbookPlace,
    RunbookStep,
    StepKind,
)

PAGE_CHARACTERS_MAX = 200_000
STEPS_MAX = 100
SECTIONS = (
    "Overview", "When to use", "Detection", "Diagnosis", "Recovery", "Verification", "Follow-up", "Escalation",
    "Related", "Testing history",
)  # fmt: skip
"""The sections of a page, in this order."""
WITH_STEPS = ("Diagnosis", "Recovery", "Verification")
STEP_NAME = re.compile(r"[a-z][a-z0-9-]{0,62}")
DURATION = re.compile(r"([1-9][0-9]{0,4})(s|m|h)")
SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}
DURATION_S_MAX = 24 * 3600.0
PROMPT = "$ "
ANY_EXIT = "any"
ATTRIBUTES = {
    StepKind.COMMAND: {"on", "exit", "limit", "destructive"},
    StepKind.CHECK: {"on", "exit", "limit", "wait"},
    StepKind.QUESTION: set[str](),
}


class Fence(NamedTuple):
    """A fenced block: what stands behind its first backticks, and what is in it."""

    info: str
    text: str
    section: str
    line: int


def parse(name: str, text: str) -> Runbook:
    """Return the runbook of a page. Raises RunbookError, which names page and line."""
    if len(text) > PAGE_CHARACTERS_MAX:
        raise RunbookError(f"{name}: a page may have {PAGE_CHARACTERS_MAX} characters, and this one has {len(text)}")
    front, body, offset = _front_matter(name, text)
    title, sections, fences = _structure(body, offset)
    if sections != list(SECTIONS):
        raise RunbookError(f"{name}: its sections must be: {', '.join(SECTIONS)}; they are: {', '.join(sections)}")
    steps = _steps(name, fences)
    _check(name, front, steps)
    return Runbook(name, title, front, tuple(steps))


def _steps(name: str, fences: list[Fence]) -> list[RunbookStep]:
    steps = list[RunbookStep]()
    for fence in fences:
        try:
            step = _step(fence)
        except (RunbookError, ValueError) as error:
            raise RunbookError(f"{name}, line {fence.line}: {error}") from None
        steps += [step] if step is not None else []
    return steps


def _front_matter(name: str, text: str) -> tuple[FrontMatter, str, int]:
    head, end, body = text.removeprefix("---\n").partition("\n---\n")
    if not text.startswith("---\n") or not end:
        raise RunbookError(f"{name}: it must begin with front matter between two lines of ---")
    try:
        front = msgspec.convert(yaml.safe_load(head), FrontMatter)
    except (yaml.YAMLError, msgspec.ValidationError, RecursionError) as error:
        raise RunbookError(f"{name}: the front matter is wrong: {error}") from None
    return front, body, head.count("\n") + 3


def _structure(body: str, offset: int) -> tuple[str, list[str], list[Fence]]:
    """Return the title, the sections and the fenced blocks of a page whose text begins below ``offset`` lines."""
    title, sections, fences = "", list[str](), list[Fence]()
    tokens = MarkdownIt("commonmark").parse(body)
    for token, following in zip(tokens, [*tokens[1:], None], strict=True):
        if token.type == "heading_open" and following is not None:
            if token.tag == "h1":
                title = title or following.content
            elif token.tag == "h2":
                sections.append(following.content)
        elif token.type == "fence":
            assert token.map is not None
            fences.append(Fence(token.info, token.content, sections[-1] if sections else "", token.map[0] + offset + 1))
    return title, sections, fences


def _step(fence: Fence) -> RunbookStep | None:
    """Return the step that a fenced block is; None: it has no attributes. Raises RunbookError, ValueError."""
    language, *words = shlex.split(fence.info) or [""]
    if not words:
        return None
    attributes = dict(word.partition("=")[::2] for word in words)
    kinds = [kind for kind in StepKind if kind.value in attributes]
    if len(kinds) != 1 or len(attributes) != len(words):
        raise RunbookError("a step has one of step=NAME, check=NAME and ask=NAME, and no attribute twice")
    kind = kinds[0]
    step_name = attributes.pop(kind.value)
    if not STEP_NAME.fullmatch(step_name):
        raise RunbookError(f"{step_name!r} is no name of a step: use lower-case letters, digits and dashes")
    if unknown := attributes.keys() - ATTRIBUTES[kind]:
        raise RunbookError(f"{kind.value}={step_name} can't have: {', '.join(sorted(unknown))}")
    if kind is StepKind.QUESTION:
        if language != "text" or not fence.text.strip():
            raise RunbookError("a question is a block of the language text, and says what is asked")
        return RunbookStep(kind, step_name, fence.section, fence.line, question=" ".join(fence.text.split()))
    if language != "console":
        raise RunbookError("a step with commands is a block of the language console")
    return _with_commands(kind, step_name, fence, attributes)


def _with_commands(kind: StepKind, name: str, fence: Fence, attributes: dict[str, str]) -> RunbookStep:
    place = RunbookPlace(attributes["on"]).value if "on" in attributes else HERE
    code = attributes.get("exit", "0")
    if attributes.get("destructive"):
        raise RunbookError("destructive has no value")
    return RunbookStep(
        kind,
        name,
        fence.section,
        fence.line,
        commands=tuple(_commands(fence.text, place != HERE)),
        place=place,
        destructive="destructive" in attributes,
        exit_code=None if code == ANY_EXIT else int(code),
        limit_s=_duration_s(attributes.get("limit", "2m")),
        wait_s=_duration_s(attributes["wait"]) if "wait" in attributes else 0.0,
    )


def _commands(text: str, elsewhere: bool) -> Iterator[RunbookCommand]:
    if not text.startswith(PROMPT):
        raise RunbookError("a step begins with a command, after '$ '")
    for part in f"\n{text}".split(f"\n{PROMPT}")[1:]:
        line, *below = part.splitlines()
        yield RunbookCommand(words_of(line, elsewhere), tuple(expected_line(said) for said in below if said.strip()))


def _duration_s(text: str) -> float:
    match = DURATION.fullmatch(text)
    seconds = int(match[1]) * SECONDS[match[2]] if match else 0.0
    if not 0 < seconds <= DURATION_S_MAX:
        raise RunbookError(f"{text!r} is no duration: write it like 30s, 5m or 1h, up to 24h")
    return seconds


def _check(name: str, front: FrontMatter, steps: list[RunbookStep]) -> None:
    if not 0 < len(steps) <= STEPS_MAX:
        raise RunbookError(f"{name}: a runbook has 1 to {STEPS_MAX} steps")
    if elsewhere := [step.name for step in steps if step.section not in WITH_STEPS]:
        raise RunbookError(f"{name}: step {elsewhere[0]} must be in one of the sections {', '.join(WITH_STEPS)}")
    names = [step.name for step in steps]
    if twice := sorted({step for step in names if names.count(step) > 1}):
        raise RunbookError(f"{name}: steps of the same name: {', '.join(twice)}")
    if not any(step.section == "Verification" and step.kind is StepKind.CHECK for step in steps):
        raise RunbookError(f"{name}: the section Verification needs a check")
    used = {value for step in steps for command in step.commands for value in placeholders(command.words)}
    if used != front.values.keys():
        wrong = ", ".join(sorted(used ^ front.values.keys()))
        raise RunbookError(f"{name}: values that are used and not declared, or declared and not used: {wrong}")
    for value, declared in front.values.items():
        if not command_lines.PLACEHOLDER.fullmatch(f"{{{value}}}"):
            raise RunbookError(f"{name}: {value!r} is no name of a value")
        if declared.default:
            command_lines.check_value(value, declared.default)

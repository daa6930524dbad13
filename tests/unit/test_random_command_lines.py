"""No command line ends in a traceback, whatever is in it, in the settings, in files that it names, or in answers."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import random
import time
import traceback
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from typer.core import TyperCommand, TyperGroup

from novacron.__main__ import app
from novacron.cli.root import HABITS
from novacron.client import protocol
from novacron.client.errors import Unreachable
from novacron.client.protocol import HttpReply
from tests.chance import fixed_seed

LOCAL = {"up", "doctor", "support-bundle", "agent", "server", "database", "setup", "build", "display"}
"""Commands that start or serve something on this machine, or look at it."""
HOSTILE = (
    "", "-", "--", "web", "0", "-1", "1e400", "99999999999999999999", "4G", "x=y", "=", ",", "[", "\udcff", "\u202e",
    "é", "a" * 5000, "a\nb", "\x1b[2J", "@none", "/nowhere/at/all", ".", "in:tcp:1", "10.0.0.1/8", "http://",
    "https://[", "2026-11-29T00:00:00Z", "100Mbit", "json", "table", "%s", "{0}", "../..", "NaN", "inf", "09:00-10:00",
    "*", "vm", "name!=w*", "jsonpath=$[", "jsonpath=$..*", "Europe/Berlin",
)  # fmt: skip
ANSWERS = (
    HttpReply(404, b'{"status": 404, "detail": "there is none"}'),
    HttpReply(400, b'{"status": 400, "detail": "no", "field": "memory_mib", "hint": "h"}'),
    HttpReply(500, b"<html>"),
    HttpReply(401, b"[]"),
    None,
)
NOTHING = HttpReply(200, b'{"items": [], "next": null}')
SAMPLE, MANY = 400, 20_000


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> random.Random:
    """Chance, with an API that answers by it, and files that are not what they should be."""
    chance = random.Random(fixed_seed())
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gzip").write_bytes(gzip.compress(b"#cloud-config"))
    (tmp_path / "zero").write_bytes(b"\0")
    (tmp_path / "text").write_text("text\n")
    (tmp_path / "yaml").write_text("kind: vm\nname: web\n---\nkind: grant\nuser: ann\n")
    monkeypatch.setenv("NOVACRON_CONFIG", str(tmp_path / "settings.json"))
    monkeypatch.setenv("NOVACRON_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("NOVACRON_TOKEN", "t")
    for name in ("NOVACRON_PROJECT", "NOVACRON_CONTEXT"):
        monkeypatch.setenv(name, "")

    def send(self: object, method: str, path: str, *_: object, **__: object) -> HttpReply:
        kind = path.partition("?")[0].removeprefix("/api/v1/")
        if method == "GET" and ("limit=" in path or kind in protocol.UNPAGED) and chance.random() < 0.3:
            return NOTHING
        answer = chance.choice(ANSWERS)
        if answer is None:
            raise Unreachable("no answer")
        return answer

    def stream(self: object, *_: object) -> Iterator[bytes]:
        raise Unreachable("cut off")

    def interrupt(_: float) -> None:
        """What is watched on this machine, such as contexts, does not end by a failure."""
        if chance.random() < 0.3:
            raise KeyboardInterrupt

    transport = "novacron.client.sync.transport.Transport"
    monkeypatch.setattr(f"{transport}.send", send)
    monkeypatch.setattr(f"{transport}.stream", stream)
    monkeypatch.setattr(f"{transport}.pause", lambda *_: None)
    monkeypatch.setattr("novacron.cli.lists.time", types.SimpleNamespace(sleep=interrupt, monotonic=time.monotonic))
    return chance


def commands(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], TyperCommand]]:
    if isinstance(command, TyperGroup):
        for name, below in command.commands.items():
            if name not in LOCAL:
                yield from commands(below, (*words, name))
    else:
        yield words, command


def line(chance: random.Random, words: tuple[str, ...], command: TyperCommand) -> list[str]:
    """Return a command line: most of it fits the command."""
    values = (*HOSTILE, "gzip", "zero", "text", "yaml")
    typed = [*words]
    if chance.random() < 0.1:
        typed[-1] = next((other for other, name in HABITS.items() if name == typed[-1]), typed[-1])
    for parameter in command.params:
        if not parameter.opts[0].startswith("-"):
            typed += [chance.choice(values) for _ in range(chance.choice((1, 1, 1, 1, 0, 2)))]
        elif chance.random() < (0.9 if parameter.required else 0.2):
            typed.append(chance.choice([*parameter.opts, *parameter.secondary_opts]))
            if chance.random() < 0.8:
                typed.append(chance.choice(values))
    while chance.random() < 0.1:
        typed.insert(chance.randrange(len(typed) + 1), chance.choice(values))
    return typed


def what_escapes(tree: Any, typed: list[str]) -> str | None:
    """Run a command line; return the traceback that it ends in."""
    out = io.TextIOWrapper(io.BytesIO(), "utf-8", errors="backslashreplace")
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            tree(typed, prog_name="novacron")
    except SystemExit:
        return None
    except BaseException:
        return f"{typed!r}\n{traceback.format_exc(limit=-4)}"
    return None


@pytest.mark.parametrize("count", [SAMPLE, pytest.param(MANY, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])])
def test_no_command_line_ends_in_a_traceback(scene: random.Random, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    tree = typer.main.get_command(app)
    known = list(commands(tree))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO()))
    escaped = []
    for number in range(count):
        words, command = known[number % len(known)] if number < len(known) else scene.choice(known)
        trace = what_escapes(tree, line(scene, words, command))
        if trace is not None:
            escaped.append(trace)
    assert not escaped, f"{len(escaped)} of {count}:\n\n" + "\n".join(escaped[:8])


@pytest.mark.parametrize(
    "settings", [b"", b"\0", b"{", b"[]", b"null", b'{"contexts": 5}', b'{"current": "a", "contexts": {"a": []}}',
                 b"\xff\xfe",
                 json.dumps({"current": "a", "contexts": {"a": {"url": "http://", "token": "t"}}}).encode()],
)  # fmt: skip
def test_broken_settings_are_said_with_what_to_do(
    scene: random.Random, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: bytes
) -> None:
    monkeypatch.delenv("NOVACRON_URL")
    monkeypatch.delenv("NOVACRON_TOKEN")
    (tmp_path / "settings.json").write_bytes(settings)
    tree = typer.main.get_command(app)
    for words in (
        ["vm", "list"],
        ["context", "list"],
        ["context", "show"],
        ["whoami"],
        ["--context", "x", "vm", "list"],
    ):
        assert what_escapes(tree, words) is None

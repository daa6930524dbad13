"""``novacron vm exec``, ``push`` and ``pull``: into guests, through their guest agents."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, TextIO

import typer

from novacron.cli import output
from novacron.cli.vms import VmRef
from novacron.client import Client
from novacron.client.protocol import Object
from novacron.terminal import CONSOLE, safe, say

EXIT_SIGNAL = 128
"""Shells add a signal's number to it."""
INPUT_BYTES_MAX = 512 << 10

Arguments = Annotated[
    list[str], typer.Argument(help="program and its arguments", metavar="COMMAND...", show_default=False)
]


def exec_(
    vm: VmRef,
    arguments: Arguments,
    env: Annotated[list[str] | None, typer.Option(help="NAME=value; can be repeated", show_default=False)] = None,
    stdin: Annotated[bool, typer.Option("--stdin", help="pass this command's standard input to the program")] = False,
    timeout: Annotated[int, typer.Option(min=1, max=86400, help="longest wait for the program, in seconds")] = 600,
) -> None:
    """Run a program in the guest and show its output; the exit code is the program's.

    The guest needs qemu-guest-agent, and no network. There is no shell in between; to use one:
    novacron vm exec web -- sh -c "df | tail -1"
    """
    with output.errors():
        ended = Client().run_in_guest(
            vm, arguments, environment=_variables(env or []), input=_input() if stdin else b"", timeout_s=timeout
        )
    _print(ended["stdout"], sys.stdout)
    _print(ended["stderr"], sys.stderr)
    if ended["truncated"]:
        say("novacron: the program printed more than 1 MiB; the rest is lost", err=True)
    raise typer.Exit(_exit_code(ended))


def push(
    vm: VmRef,
    file: Annotated[Path, typer.Argument(help="file on this machine", exists=True, dir_okay=False, show_default=False)],
    guest_path: Annotated[str, typer.Argument(help="path in the guest, absolute", show_default=False)],
) -> None:
    """Copy a file into the guest, overwriting an existing one."""
    with output.errors():
        say(f"{vm}: {guest_path}, {Client().push_file(vm, file, guest_path)} bytes")


def pull(
    vm: VmRef,
    guest_path: Annotated[str, typer.Argument(help="path in the guest, absolute", show_default=False)],
    file: Annotated[Path, typer.Argument(help="file on this machine", dir_okay=False, show_default=False)],
) -> None:
    """Copy a file out of the guest."""
    with output.errors():
        say(f"{file}: {Client().pull_file(vm, guest_path, file)} bytes")


def _print(data: bytes, to: TextIO) -> None:
    """Give programs every byte, and terminals nothing that a guest could control them with."""
    if to.isatty():
        to.write(safe(data.decode(errors="replace"), CONSOLE))
    else:
        to.buffer.write(data)
    to.flush()


def _variables(texts: list[str]) -> dict[str, str]:
    variables = dict(text.partition("=")[::2] for text in texts)
    for text in texts:
        if "=" not in text:
            raise output.fail(f"--env {text}: write it like NAME=value", output.EXIT_USAGE)
    return variables


def _input() -> bytes:
    data = sys.stdin.buffer.read(INPUT_BYTES_MAX + 1)
    if len(data) > INPUT_BYTES_MAX:
        raise output.fail("more than 512 KiB on standard input: use novacron vm push", output.EXIT_USAGE)
    return data


def _exit_code(ended: Object) -> int:
    if ended["exit_code"] is not None:
        return int(ended["exit_code"])
    return EXIT_SIGNAL + int(ended["signal"] or 0)

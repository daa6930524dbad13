"""Whether a command line is one that this program accepts, without running it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def check(command: Any, words: Sequence[str]) -> None:  # noqa: ANN401 - click's, which Typer brings in its own copy
    """Let a command's own parser read the arguments of ``novacron``; what it refuses, it raises."""
    context = command.make_context("novacron", list(words))
    while hasattr(command, "commands") and (rest := [*context._protected_args, *context.args]):
        name, command, below = command.resolve_command(context, rest)
        context = command.make_context(name, below, parent=context)
    if hasattr(command, "commands") and not command.invoke_without_command:
        raise ValueError(f"{' '.join(words)} is not a command")

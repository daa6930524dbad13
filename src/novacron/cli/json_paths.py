"""``-o jsonpath=EXPRESSION``: parts of answers, for programs (RFC 9535)."""

from __future__ import annotations

import json

import typer

from novacron.terminal import say


def _query(expression: str) -> str:
    """Return a query as RFC 9535 has it, of one that may be in braces or without ``$`` as kubectl's are."""
    text = expression.strip()
    if text.startswith("{") and text.endswith("}"):
        text = text[1:-1].strip()
    return f"${text}" if text.startswith((".", "[")) else text


def check(expression: str) -> None:
    """Raises typer.BadParameter if it is no query."""
    matches(expression, [])


def matches(expression: str, value: object) -> list[object]:
    """Return what a query finds. Raises typer.BadParameter."""
    import jsonpath  # loaded only by who wants it

    try:
        return list(jsonpath.findall(_query(expression), value))  # type: ignore[arg-type]  # JSON
    except (jsonpath.JSONPathError, RecursionError, ValueError) as error:
        reason = str(error).partition("\n")[0] or "too deep"
        raise typer.BadParameter(
            f"{expression!r} is not a JSONPath expression: {reason}; write it like $.status.state, for lists $[*].name"
        ) from None


def show(expression: str, value: object) -> None:
    """Print what a query finds, one a line: text as it is, the rest as JSON."""
    for part in matches(expression, value):
        say(part if isinstance(part, str) else json.dumps(part))

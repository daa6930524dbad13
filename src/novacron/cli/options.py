"""Options that several commands share, or that make up a request: declared once, as a list, and given to Typer."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from typing import Annotated, Any, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

import typer

from novacron.cli import output
from novacron.cli.output import Object, Output, OutputFormat
from novacron.terminal import safe, say

T = TypeVar("T")
Command = TypeVar("Command", bound=Callable[..., None])


class Option(NamedTuple):
    """An option that becomes a field of a request."""

    field: str
    """The API's name of it; ``placement.spread`` is field ``spread`` of ``placement``."""
    type: Any
    """What Typer is to parse: a type, or ``list[str] | None``."""
    default: Any
    info: Any
    """Its ``typer.Option``."""
    convert: Callable[[Any], Any] = lambda value: value
    """Makes what the API takes of what Typer parsed."""
    flag: str = ""
    """What people type."""


def option(
    field: str, type_: Any, flag: str | None = None, *, default: object = None,  # noqa: ANN401 - or a union
    convert: Callable[[Any], Any] = lambda value: value, **info: Any,  # noqa: ANN401 - what typer.Option takes
) -> Option:  # fmt: skip
    """Return an option; without a flag it is called as its field is. It is left out of the request while it is None.

    ``default=...`` makes it required; ``info`` is what ``typer.Option`` takes: help, min, max, panel.
    """
    name = flag or "--" + field.rpartition(".")[2].replace("_", "-")
    if default is ...:
        default, info["show_default"] = inspect.Parameter.empty, False
    panel = info.pop("panel", None)
    optional = type_ | None if default is None else type_
    return Option(
        field, optional, default, typer.Option(name, rich_help_panel=panel, **info), convert, name.partition("/")[0]
    )


Confirm = Annotated[
    str | None,
    typer.Option(metavar="NODE", help="name of the node that is gone, to confirm that its host is off"),
]


Yes = Annotated[bool, typer.Option("--yes", "-y", help="do not ask")]


def ask(yes: bool, in_use: bool, what: str, question: str = "Delete it with its data?") -> None:
    """Ask a person before something that is in use is deleted; programs say ``--yes``. Raises typer.Exit."""
    if yes or not in_use:
        return
    if not sys.stdin.isatty():
        raise output.fail(f"{what}: there is no terminal to confirm this", output.EXIT_USAGE, "to confirm, add --yes")
    if not typer.confirm(f"{safe(what)}. {question}", err=True):
        raise typer.Exit(output.EXIT_FAILED)


def ask_for_word(node: str) -> str | None:
    """Return what a person types as the word that a node's host is off; None where nobody can be asked."""
    if not sys.stdin.isatty():
        return None
    say(f"If the host of node {node} is on, its VMs may run twice and destroy their disks.", err=True)
    word: str = typer.prompt("Make sure that it is off, then type the node's name", err=True)
    return word.strip()


def zero_removes(value: int) -> int | None:
    """Return a limit as the API takes it: 0 on the command line is null, for no limit."""
    return value or None


def without_empty(values: list[str]) -> list[str]:
    """Return a list as the API takes it: an empty text on the command line stands for none."""
    return [value for value in values if value]


@dataclasses.dataclass(frozen=True)
class Wait:
    """Whether to wait for an end, for how long, and how to print it."""

    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="wait until it is done")] = False
    timeout_s: Annotated[float, typer.Option("--timeout", min=1, help="longest wait, in seconds")] = 120
    output: Output = OutputFormat.TABLE


@dataclasses.dataclass(frozen=True)
class QuietWait:
    """As ``Wait``, for commands that print one line."""

    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="wait until it is done")] = True
    timeout_s: Annotated[float, typer.Option("--timeout", min=1, help="longest wait, in seconds")] = 600


def expand(command: Callable[..., None]) -> Callable[..., None]:
    """Return a command for Typer whose parameters that stand for several options are these options.

    Such a parameter is a dataclass, whose fields are options, with an instance as default, or
    ``Annotated[Object, (Option, ...)]``: the command gets the fields of a request.
    """
    kept: list[inspect.Parameter] = []
    groups: dict[str, tuple[list[str], Callable[[dict[str, Any]], Any]]] = {}
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        group = _group(parameter)
        if group is None:
            kept.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        parameters, make = group
        kept += parameters
        groups[parameter.name] = ([expanded.name for expanded in parameters], make)

    def call(**values: object) -> None:
        for name, (names, make) in groups.items():
            values[name] = make({expanded: values.pop(expanded) for expanded in names})
        command(**values)

    call.__name__, call.__doc__, call.__module__ = command.__name__, command.__doc__, command.__module__
    call.__signature__ = inspect.Signature(kept)  # type: ignore[attr-defined]  # what inspect.signature() looks for
    call.__annotations__ = {}
    return call


def _group(
    parameter: inspect.Parameter,
) -> tuple[list[inspect.Parameter], Callable[[dict[str, Any]], Any]] | None:
    annotation = parameter.annotation
    if dataclasses.is_dataclass(annotation) and isinstance(annotation, type):
        return list(_fields(annotation, parameter.default)), lambda values: annotation(**values)
    if get_origin(annotation) is Annotated and isinstance(get_args(annotation)[1], tuple):
        options: tuple[Option, ...] = get_args(annotation)[1]
        return [_parameter(entry) for entry in options], functools.partial(request, options)
    return None


def _fields(group: type, default: object) -> Iterator[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    for field in dataclasses.fields(group):
        value = field.default if default is inspect.Parameter.empty else getattr(default, field.name)
        if value is dataclasses.MISSING:  # an option that has to be given
            value = inspect.Parameter.empty
        yield inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=value, annotation=hints[field.name])


def _name(entry: Option) -> str:
    return entry.field.replace(".", "_")


def _parameter(entry: Option) -> inspect.Parameter:
    return inspect.Parameter(
        _name(entry),
        inspect.Parameter.KEYWORD_ONLY,
        default=entry.default,
        annotation=Annotated[entry.type, entry.info],
    )


def typed(context: typer.Context, options: Iterable[Option], body: Object) -> Object:
    """Return a request without what nobody typed: without the defaults of options."""
    sources = {entry.field: context.get_parameter_source(_name(entry)) for entry in options}
    defaults = [field for field, source in sources.items() if source is None or source.name == "DEFAULT"]
    kept = {field: dict(value) if isinstance(value, dict) else value for field, value in body.items()}
    for field in defaults:
        *path, last = field.split(".")
        functools.reduce(lambda at, key: at.get(key, {}), path, kept).pop(last, None)
    return {field: value for field, value in kept.items() if value != {}}


def request(options: Iterable[Option], values: dict[str, Any]) -> Object:
    """Return the request that options make; those that were not given and have no default are left out."""
    body: Object = {}
    for entry in options:
        value = values[_name(entry)]
        if value is None:
            continue
        *path, field = entry.field.split(".")
        target = functools.reduce(lambda into, key: into.setdefault(key, {}), path, body)
        output.TYPED[field] = entry.flag
        try:
            converted = entry.convert(value)
        except typer.BadParameter as error:
            error.param_hint = error.param_hint or f"'{entry.flag}'"
            raise
        except UnicodeError:
            raise typer.BadParameter("this file is not UTF-8 text", param_hint=f"'{entry.flag}'") from None
        except (OSError, ValueError) as error:
            raise typer.BadParameter(str(error), param_hint=f"'{entry.flag}'") from None
        target[field] = converted.value if isinstance(converted, Enum) else converted
    return body

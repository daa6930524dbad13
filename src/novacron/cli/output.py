"""What people and programs see: tables, JSON, progress, errors, exit codes."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta, tzinfo
from enum import StrEnum
from typing import Annotated, Any

import typer

from novacron.cli import authorities
from novacron.client import ApiError, Unreachable
from novacron.client.errors import ArchiveError
from novacron.client.protocol import answer_ages
from novacron.terminal import safe, say, say_json, say_yaml

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_NOT_FOUND = 3
EXIT_REFUSED = 4
EXIT_UNAUTHENTICATED = 5
EXIT_UNREACHABLE = 6
EXIT_TIMEOUT = 7
EXIT_INTERRUPTED = 130


JSON_PATH = "jsonpath="


class OutputFormat(StrEnum):
    """How answers are printed; beside these ``jsonpath=EXPRESSION``."""

    TABLE = "table"
    WIDE = "wide"
    JSON = "json"
    YAML = "yaml"
    NAME = "name"

    @classmethod
    def _missing_(cls, value: object) -> OutputFormat | None:
        """Return a member that stands for a JSONPath. Raises typer.BadParameter if that is none."""
        if not isinstance(value, str) or not value.startswith(JSON_PATH):
            return None
        from novacron.cli import json_paths

        json_paths.check(value.removeprefix(JSON_PATH))
        member = str.__new__(cls, value)
        member._name_, member._value_ = "JSON_PATH", value
        return member

    @property
    def for_people(self) -> bool:
        return self in (OutputFormat.TABLE, OutputFormat.WIDE)


Output = Annotated[
    OutputFormat,
    typer.Option(
        "--output", "-o", metavar="table|wide|json|yaml|name|jsonpath=EXPR",
        help="table or wide for people; json, yaml, names, or a JSONPath such as jsonpath='$[*].id', for programs",
    ),
]  # fmt: skip
"""The option that every command which shows something has."""

TYPED: dict[str, str] = {}
"""The option with which each field of the request was given: errors name what was typed."""

Object = dict[str, Any]
Columns = dict[str, Callable[[Object], Any]]


def show(value: Object | list[Object], output: OutputFormat) -> None:
    """Print an object or a list of them for programs."""
    if output is OutputFormat.JSON:
        say_json(value)
    elif output is OutputFormat.YAML:
        say_yaml(value)
    elif output.startswith(JSON_PATH):
        from novacron.cli import json_paths

        json_paths.show(output.removeprefix(JSON_PATH), value)
    else:
        for item in value if isinstance(value, list) else [value]:
            say(str(item.get("name") or item.get("id") or ""))


def table(rows: Iterable[Object], columns: Columns) -> None:
    """Print a table for people; with no rows, only its head."""
    lines = [list(columns)] + [[text(get(row)) for get in columns.values()] for row in rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    for line in lines:
        say("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def rows(objects: Iterable[Object], columns: Columns, output: OutputFormat, more: Columns | None = None) -> None:
    """Print a list; a wide table has ``more`` columns, and those that all objects have."""
    if output is OutputFormat.TABLE:
        table(objects, columns)
    elif output is OutputFormat.WIDE:
        items = list(objects)
        table(items, widened(columns, more, items, output))
    else:
        show(list(objects), output)


def widened(columns: Columns, more: Columns | None, items: list[Object], output: OutputFormat) -> Columns:
    """Return the columns of a table: if it is a wide one, more of them."""
    if output is not OutputFormat.WIDE:
        return columns
    has = set(items[0]) if items else set[str]()
    common = {name: get for name, (field, get) in COMMON.items() if field in has and name not in columns}
    return {**columns, **(more or {}), **common}


def fields(details: Object, columns: Columns, output: OutputFormat) -> None:
    """Print one object, a field a line."""
    if not output.for_people:
        show(details, output)
        return
    width = max(len(name) for name in columns)
    for name, get in columns.items():
        say(f"{name.ljust(width)}  {text(get(details))}")


def text(value: object) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(text(v) for v in value) or "-"
    return safe(str(value))


COMMON: dict[str, tuple[str, Callable[[Object], Any]]] = {
    "PROJECT": ("project", lambda item: item["project"]),
    "DISPLAY NAME": ("display_name", lambda item: item["display_name"]),
    "TAGS": ("tags", lambda item: item["tags"]),
    "ID": ("id", lambda item: item["id"]),
    "CREATED": ("created_at", lambda item: when(item["created_at"])),
}
"""Further columns of wide tables, of objects that have the field."""
TIME_ZONE = "NOVACRON_TIME_ZONE"


SIZE = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,6})?) ?([kmgt]?)(?:ib|i)?", re.IGNORECASE)
MIB = {"k": 2**-10, "": 1, "m": 1, "g": 2**10, "t": 2**20}


def parse_mib(text: str) -> int:
    """Return the MiB of ``4G``, ``512M`` or ``4096``. Raises typer.BadParameter."""
    match = SIZE.fullmatch(text.strip())
    mib = float(match[1]) * MIB[match[2].lower()] if match else -1.0
    if mib < 0 or not mib.is_integer():
        raise typer.BadParameter(f"{text!r} is not a size: write it like 512M, 4G or 1.5T")
    return int(mib)


RATE_UNITS = {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9}


def parse_rate(text: str) -> int:
    """Return bytes a second of ``100Mbit`` or ``1.5Gbit``. Raises typer.BadParameter."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?(kbit|mbit|gbit)(?:/s)?", text.strip().lower())
    if match is None:
        raise typer.BadParameter(f"{text!r} is not a rate: write it like 100Mbit or 1.5Gbit")
    return int(float(match[1]) * RATE_UNITS[match[2]] / 8)


def rate(bytes_per_s: float | None) -> str:
    """Return a rate as networks state it, in bits."""
    return "-" if bytes_per_s is None else f"{bytes_per_s * 8 / 1e6:g} Mbit/s"


def size(count: float | None) -> str:
    if count is None:
        return "-"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError("unreachable")


def age(stamp: str) -> str:
    seconds = int((datetime.now(UTC) - datetime.fromisoformat(stamp)).total_seconds())
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{seconds // length}{unit}"
    return f"{max(seconds, 0)}s"


def is_past(stamp: str) -> bool:
    return datetime.fromisoformat(stamp) <= datetime.now(UTC)


def at(seconds: float) -> str | None:
    """Return seconds since 1970 as the API writes a time; None: 0, which stands for never."""
    return datetime.fromtimestamp(seconds, UTC).isoformat() if seconds else None


def when(stamp: str | None) -> str | None:
    """Return a time of the API as people read it: in the time zone that the command uses."""
    if not stamp:
        return None
    moment = datetime.fromisoformat(stamp).astimezone(time_zone())
    text = f"{moment:%Y-%m-%d %H:%M:%S}"
    return f"{text} UTC" if moment.utcoffset() == timedelta() else f"{text} {moment:%z}"


@functools.cache
def time_zone() -> tzinfo | None:
    """Return the zone of NOVACRON_TIME_ZONE, which ``--time-zone`` sets; None: this machine's."""
    name = os.environ.get(TIME_ZONE, "local")
    if name in ("", "local"):
        return None
    if name.upper() == "UTC":
        return UTC
    import zoneinfo  # most commands need none

    try:
        return zoneinfo.ZoneInfo(name)
    except (ValueError, OSError, zoneinfo.ZoneInfoNotFoundError):
        raise typer.BadParameter(
            f"there is no time zone {name!r}: write it like Europe/Berlin, UTC or local", param_hint="'--time-zone'"
        ) from None


def fail(message: str, code: int, hint: str = "") -> typer.Exit:
    say(f"error: {message}", err=True)
    if hint:
        say(hint, err=True)
    return typer.Exit(code)


def _say_age() -> None:
    """Say so when what was shown may be old."""
    age_s = max(answer_ages.values(), default=0)
    if age_s:
        say(f"note: this may be {age_s} s old: the server's database is away, and it answers from memory", err=True)


@contextmanager
def errors() -> Iterator[None]:
    """Turn the SDK's errors into one message and an exit code."""
    try:
        yield
        authorities.follow()
        _say_age()
    except ApiError as error:
        code = {401: EXIT_UNAUTHENTICATED, 404: EXIT_NOT_FOUND, 503: EXIT_UNREACHABLE}.get(error.status, EXIT_REFUSED)
        raise fail(_as_typed(error), EXIT_USAGE if error.status == 400 else code, error.hint) from None
    except Unreachable as error:
        raise fail(str(error), EXIT_UNREACHABLE) from None
    except ArchiveError as error:
        raise fail(str(error), EXIT_FAILED) from None
    except (FileExistsError, FileNotFoundError) as error:
        raise fail(str(error), EXIT_USAGE) from None
    except UnicodeError:
        raise fail("the input is not UTF-8 text", EXIT_USAGE) from None
    except TimeoutError as error:
        raise fail(str(error), EXIT_TIMEOUT) from None
    except BrokenPipeError:
        raise  # whoever reads the output has seen enough: Typer ends without a word
    except OSError as error:
        raise fail(str(error), EXIT_FAILED) from None
    except KeyboardInterrupt:
        raise typer.Exit(EXIT_INTERRUPTED) from None


def _as_typed(error: ApiError) -> str:
    """Return what an error says of the option that was typed, not of the API's field."""
    field = str(error.problem.get("field") or "")
    option = TYPED.get(field) or TYPED.get(field.partition(".")[0])
    return error.text if option is None else f"{option}: {error.problem.get('detail', 'refused')}"


def parse_labels(texts: Iterable[str]) -> dict[str, str]:
    """Return labels given as KEY=VALUE. Raises typer.BadParameter."""
    labels = {}
    for text in texts:
        key, sep, value = text.partition("=")
        if not sep:
            raise typer.BadParameter(f"{text!r} is not a label; write it like disk=ssd")
        labels[key] = value
    return labels

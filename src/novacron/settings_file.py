"""Settings files of server and agent: TOML, in which each option has its name on the command line without the dashes.

A value counts in this order: option, environment variable, file, default. The file is checked as a whole before
anything starts, and all that is wrong with it is said at once.
"""

from __future__ import annotations

import copy
import difflib
import json
import os
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, NamedTuple, NoReturn, TypeVar, get_args, get_origin, get_type_hints

import typer
import typer.core
from typer.models import OptionInfo

from novacron.terminal import say

Made = TypeVar("Made")
Options = TypeVar("Options", bound=type)
FILE_BYTES_MAX = 1 << 20
LINE_CHARACTERS_MAX = 100
ONCE = frozenset({"settings", "check-settings", "rejoin", "state-moved", "new-keys"})
"""Options that would be wrong at every start: they belong on the command line."""
PASSWORD = re.compile(r"(?<=://)[^\s:/@]*:[^\s/@]+(?=@)")
READABLE_BY_ALL = 0o004
FROM_FILE, FROM_ENVIRONMENT, FROM_COMMAND_LINE = "DEFAULT_MAP", "ENVIRONMENT", "COMMANDLINE"
NOTHING: Mapping[str, object] = {}
SOURCES = {FROM_FILE: "file", FROM_ENVIRONMENT: "environment", FROM_COMMAND_LINE: "command line"}


class Setting(NamedTuple):
    """An option of a service, as its settings file, the environment and its documentation have it."""

    name: str
    """As in a file; with two dashes in front as on the command line."""
    field: str
    """Its field of the options' class."""
    variables: tuple[str, ...]
    type: Any
    """One of ``bool``, ``int``, ``float``, ``str``, ``Path``, ``list`` and enums."""
    default: object
    help: str

    @property
    def kind(self) -> str:
        """Return in words what its value is."""
        if isinstance(self.type, type) and issubclass(self.type, Enum):
            return "one of " + ", ".join(f'"{member.value}"' for member in self.type)
        return {bool: "true or false", int: "a whole number", float: "a number", list: "a list of texts"}.get(
            self.type, "a text in quotes"
        )

    def takes(self, value: object) -> bool:
        """Say whether a value of a TOML file is of its kind; its limits are checked with those of options."""
        match self.type:
            case type() if self.type is bool:
                return isinstance(value, bool)
            case type() if self.type in (int, float):
                kinds = (int,) if self.type is int else (int, float)
                return isinstance(value, kinds) and not isinstance(value, bool)
            case type() if self.type is list:
                return isinstance(value, list) and all(isinstance(item, str) for item in value)
        return isinstance(value, str)


def settings(options: type) -> Iterator[Setting]:
    """Yield the settings of a class of options, in the order of its fields."""
    for field, hint in get_type_hints(options, include_extras=True).items():
        annotation, info = get_args(hint)[:2]
        assert isinstance(info, OptionInfo)
        variables = [info.envvar] if isinstance(info.envvar, str) else (info.envvar or [])
        yield Setting(
            name_of(field, info), field, tuple(variables), _base(annotation), getattr(options, field), info.help or ""
        )


def name_of(field: str, info: OptionInfo) -> str:
    """Return an option's name without the dashes."""
    declared = (info.default, *(info.param_decls or ()))  # in an annotation, Typer takes the first one for a default
    flags = [flag for flag in declared if isinstance(flag, str) and flag.startswith("--")]
    return (flags[0] if flags else field.replace("_", "-")).removeprefix("--")


def _base(annotation: Any) -> Any:  # noqa: ANN401 - types and unions of them
    members = [member for member in get_args(annotation) if member is not type(None)]
    if get_origin(annotation) is list:
        return list
    return _base(members[0]) if members else annotation


def with_variables(prefix: str) -> Callable[[Options], Options]:
    """Let each option of a class also be an environment variable: the prefix, and its name in capitals.

    Those that had a variable of their own before keep it.
    """

    def named(options: Options) -> Options:
        for field, hint in get_type_hints(options, include_extras=True).items():
            annotation, info = get_args(hint)
            assert isinstance(info, OptionInfo) and not isinstance(info.envvar, list)
            info = copy.copy(info)  # some are shared with other commands
            name = name_of(field, info)
            info.show_envvar = info.envvar is not None
            own = info.envvar
            info.envvar = [*([own] if isinstance(own, str) else []), f"{prefix}_{name.upper().replace('-', '_')}"]
            if field == "settings_file":
                info.callback = reader(options)
            options.__annotations__[field] = Annotated[annotation, info]
        return options

    return named


def reader(options: type) -> Callable[[typer.Context, typer.CallbackParam, Path | None], Path | None]:
    """Return what lets a command's options of this class that are given no other way have what a file says."""

    def read(context: typer.Context, parameter: typer.CallbackParam, file: Path | None) -> Path | None:
        del parameter
        if context.resilient_parsing:
            return file
        kinds = {setting.name: setting for setting in settings(options)}
        problems = list(_wrong_variables(context, kinds))
        if file is not None:
            from_file = parse(file)
            problems += [f"{file}: {problem}" for problem in problems_in(context, file, from_file, kinds)]
            context.default_map = {kinds[name].field: value for name, value in from_file.items() if name in kinds}
        if problems:
            fail(*problems)
        return file

    return read


def fail(*problems: str) -> NoReturn:
    """Say what is wrong, a line each, and end: in a service's log a frame around it would be in the way."""
    for problem in problems:
        say(f"error: {problem}", err=True)
    raise typer.Exit(2)


def parse(file: Path) -> dict[str, Any]:
    """Return what a settings file says; end the command if it can't be read."""
    try:
        with file.open("rb") as opened:
            text = opened.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        fail(f"can't read {file}: {error.strerror}")
    try:
        if len(text) > FILE_BYTES_MAX:
            raise ValueError(f"it is larger than {FILE_BYTES_MAX >> 20} MiB")
        return tomllib.loads(text.decode())
    except (ValueError, RecursionError) as error:
        fail(f"{file} can't be read as TOML: {error}")


def _wrong_variables(context: typer.Context, kinds: Mapping[str, Setting]) -> Iterator[str]:
    """Yield what is wrong with environment variables, by their own names."""
    for name, setting in kinds.items():
        variable = next((variable for variable in setting.variables if os.environ.get(variable)), None)
        if variable is not None and name not in ONCE:
            text = os.environ[variable]
            problem = _refusal(context, name, text.split() if setting.type is list else text)
            if problem:
                yield f"{variable}: {problem}"


def _refusal(context: typer.Context, name: str, value: object) -> str | None:
    """Return why the option with this name does not take a value; None: it does."""
    try:
        _option(context, name).process_value(context, value)
    except typer.BadParameter as error:
        return str(error.message).removeprefix("Value error, ").replace("Input should be", "must be", 1)
    return None


def _option(context: typer.Context, name: str) -> typer.core.TyperOption:
    declared = next(option for option in context.command.params if f"--{name}" in option.opts)
    assert isinstance(declared, typer.core.TyperOption)
    return declared


def problems_in(
    context: typer.Context, file: Path, found: Mapping[str, object], kinds: Mapping[str, Setting]
) -> Iterator[str]:
    """Yield what is wrong with what a file says."""
    for name, value in found.items():
        if name not in kinds:
            yield f"there is no setting {name}{_suggestion(name, kinds)}"
        elif name in ONCE:
            yield f"{name} can't be in a file, because it would count at every start: use --{name} once"
        elif not kinds[name].takes(value):
            yield f"{name} is {kinds[name].kind}, not {toml(value)}"
        elif value == "":
            yield f"{name} is empty: remove the line"
        elif isinstance(value, str) and PASSWORD.search(value) and file.stat().st_mode & READABLE_BY_ALL:
            yield f"{name} has a password, and every user can read the file: chmod o-r {file}"
        else:
            problem = _refusal(context, name, value)
            if problem:
                yield f"{name}: {problem}"


def options_of(context: typer.Context, options: type[Made], found: Mapping[str, object]) -> Made:
    """Return the options that a service has whose settings file says this, which must have no problems."""
    kinds = {setting.name: setting for setting in settings(options)}
    fields = {kinds[name].field: _option(context, name).process_value(context, value) for name, value in found.items()}
    return options(**fields)


def _suggestion(name: str, known: Mapping[str, Setting]) -> str:
    close = difflib.get_close_matches(name.replace("_", "-").lower(), known, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def blamed(context: typer.Context, error: typer.BadParameter) -> str:
    """Return what is wrong with an option, named as the user gave it: in a file, as a variable, or as an option."""
    hint = str(error.param_hint or "")
    option = next((option for option in context.command.params if hint in option.opts), None)
    source = context.get_parameter_source(str(option.name)) if option is not None else None
    if source is not None and source.name == FROM_FILE:
        hint = f"{context.params['settings_file']}: {hint.removeprefix('--')}"
    elif option is not None and source is not None and source.name == FROM_ENVIRONMENT:
        variables = [option.envvar] if isinstance(option.envvar, str) else option.envvar or []
        hint = next((variable for variable in variables if os.environ.get(variable)), hint)
    return f"{hint}: {error.message}"


def effective(context: typer.Context, options: object) -> Iterator[tuple[str, str, str]]:
    """Yield name, value and source of each option, without passwords."""
    for setting in settings(type(options)):
        if setting.name not in ONCE:
            source = context.get_parameter_source(setting.field)
            value = getattr(options, setting.field)
            shown = "" if value is None else without_password(toml(value))
            yield setting.name, shown, SOURCES.get(source.name if source else "", "default")


def without_password(text: str) -> str:
    """Return a text in which the passwords of URLs are hidden."""
    return PASSWORD.sub("[hidden]", text)


def toml(value: object) -> str:
    """Return a value as a settings file has it."""
    if isinstance(value, Enum):
        return f'"{value.value}"'
    if isinstance(value, list | tuple):
        return f"[{', '.join(toml(item) for item in value)}]"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int | float) else json.dumps(str(value), ensure_ascii=False)


def template(title: str, options: type, values: Mapping[str, object] = NOTHING) -> str:
    """Return a settings file with every setting of a service: comments, but for those with these values."""
    lines = [f"# {title}"]
    for setting in settings(options):
        if setting.name in ONCE:
            continue
        example = [] if setting.type is list else "" if setting.default is None else setting.default
        given = setting.name in values
        value = toml(values[setting.name] if given else example)
        lines += ["", *_wrapped(setting.help), f"{'' if given else '#'}{setting.name} = {value}"]
    return "\n".join(lines) + "\n"


def _wrapped(text: str) -> list[str]:
    lines = ["#"]
    for word in text.split():
        if len(lines[-1]) + len(word) >= LINE_CHARACTERS_MAX:
            lines.append("#")
        lines[-1] += f" {word}"
    return lines

"""Values of simple options without Typer's validation library, which takes longer to load than a command to run.

What is not plainly valid goes to Typer all the same, so errors are Typer's.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from enum import Enum
from typing import Any

import typer
from typer import core
from typer._coercion import RuntimeParam, TypeDescriptor, build_runtime_param

NUMBERS = {int: re.compile(r"-?[0-9]{1,15}"), float: re.compile(r"-?[0-9]{1,15}(\.[0-9]{1,15})?")}
UNKNOWN = object()


@dataclass(frozen=True)
class QuickParam(RuntimeParam):
    """Takes a value as it is if that is plainly right, and asks Typer otherwise."""

    descriptor: TypeDescriptor

    def _coerce_value(self, value: Any, param: Any, ctx: Any) -> Any:  # noqa: ANN401 - as Typer declares it
        known = self._plain(value, self.annotation)
        if known is UNKNOWN:
            known = build_runtime_param(self.descriptor).coerce(value, param=param, ctx=ctx)
        if isinstance(known, float) and not math.isfinite(known):
            raise typer.BadParameter(f"{value} is not a finite number", ctx=ctx, param=param)
        return known

    def _plain(self, value: object, annotation: object) -> object:
        info = self.parameter_info
        if info.parser is not None or info.clamp or not info.case_sensitive:
            return UNKNOWN
        if annotation is str and isinstance(value, str):
            return value
        if annotation == list[str] and isinstance(value, list | tuple) and all(isinstance(v, str) for v in value):
            return list(value)
        if annotation in NUMBERS:
            return self._number(value, annotation)
        if isinstance(annotation, type) and issubclass(annotation, Enum):
            try:
                return annotation(value)
            except ValueError:
                return UNKNOWN
        return UNKNOWN

    def _number(self, value: object, kind: Any) -> object:  # noqa: ANN401 - int or float
        if not isinstance(value, kind | str) or (isinstance(value, str) and not NUMBERS[kind].fullmatch(value)):
            return UNKNOWN
        number = kind(value)
        low, high = self.parameter_info.min, self.parameter_info.max
        return number if (low is None or low <= number) and (high is None or number <= high) else UNKNOWN


def quick(descriptor: TypeDescriptor) -> RuntimeParam:
    """Return how the values of an option are read."""
    if descriptor.file_annotation is not None:
        return build_runtime_param(descriptor)
    return QuickParam(descriptor.parameter_info, descriptor.annotation, descriptor)


def use() -> None:
    """Let Typer read the options of all commands so. It has no setting for that: a test notices when this ends."""
    core.build_runtime_param = quick  # type: ignore[attr-defined]  # not exported

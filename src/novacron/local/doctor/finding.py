"""What was found, and what to do about it."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class Grade(StrEnum):
    OK = "ok"
    WARNING = "warning"
    """It works, but not all of it, or not for long."""
    BAD = "bad"


class Finding(msgspec.Struct, frozen=True):
    """``about``: what was looked at; ``advice``: what to do, empty where nothing is to be done."""

    about: str
    grade: Grade
    found: str
    advice: str = ""


def ok(about: str, found: str) -> Finding:
    return Finding(about, Grade.OK, found)


def warning(about: str, found: str, advice: str) -> Finding:
    return Finding(about, Grade.WARNING, found, advice)


def bad(about: str, found: str, advice: str) -> Finding:
    return Finding(about, Grade.BAD, found, advice)

"""What can go wrong between a program and the API."""

from __future__ import annotations

from typing import Any


class ApiError(Exception):
    """The API refused: carries its problem document (RFC 9457)."""

    def __init__(self, problem: dict[str, Any]) -> None:
        self.problem = problem
        self.status = int(problem.get("status", 0))
        self.code = str(problem.get("code", "unknown"))
        detail, field = problem.get("detail", "refused"), problem.get("field")
        self.text = f"{field}: {detail}" if field else str(detail)
        self.hint = str(problem.get("hint") or "")
        super().__init__(f"{self.text}\n{self.hint}" if self.hint else self.text)


class ArchiveError(Exception):
    """A file is no archive that could be a VM, or could not be made one: says why."""


class Unreachable(Exception):
    """No answer from the API: says from where, and why."""

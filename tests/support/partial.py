"""Values of which only some fields count."""

from __future__ import annotations


def holds(expected: object, has: object) -> bool:
    """Say whether a value is as expected; an object may have more fields."""
    if isinstance(expected, dict):
        return isinstance(has, dict) and all(holds(value, has.get(field)) for field, value in expected.items())
    if isinstance(expected, list):
        return isinstance(has, list) and len(has) == len(expected) and all(map(holds, expected, has))
    return expected == has

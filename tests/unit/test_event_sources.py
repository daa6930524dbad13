"""Who causes events: a person, or one of those whose events are limited."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import novacron
from tests.support.sources import parsed

SOURCE = Path(novacron.__file__).parent
ACTOR_PLACE = {"NewEvent": 5, "record": 5}
"""Where a call names who did it, if not by keyword."""


def literal_actors() -> Iterator[tuple[str, str]]:
    """Yield each text in the source that is given as the actor of an event or of a request, and where."""
    for path in sorted(SOURCE.rglob("*.py")):
        for call in (node for node in ast.walk(parsed(path)) if isinstance(node, ast.Call)):
            name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
            given = [keyword.value for keyword in call.keywords if keyword.arg == "actor"]
            place = ACTOR_PLACE.get(name)
            if place is not None and len(call.args) > place:
                given.append(call.args[place])
            for value in given:
                if isinstance(value, ast.Constant | ast.JoinedStr):
                    yield f"{path.relative_to(SOURCE)}:{value.lineno}", ast.unparse(value)


def test_no_source_of_events_has_a_name_of_its_own_that_is_not_limited() -> None:
    """Those that are limited are in ``store/events.py``; ``tests/integration/test_events.py`` tries each."""
    assert list(literal_actors()) == []

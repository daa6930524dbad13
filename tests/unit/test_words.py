"""What is wrong with a value is said in words."""

from __future__ import annotations

import json
import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import msgspec
import pytest

from novacron.api.edge.words import PATTERNS, in_words

OPENAPI = Path(__file__).parents[2] / "docs/reference/openapi.json"


class Colour(StrEnum):
    RED = "red"


class Body(msgspec.Struct, forbid_unknown_fields=True):
    name: Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\Z")] = "a"
    odd: Annotated[str, msgspec.Meta(pattern=r"^\d\Z")] = "1"
    short: Annotated[str, msgspec.Meta(max_length=3)] = ""
    few: Annotated[tuple[int, ...], msgspec.Meta(min_length=1)] = (1,)
    count: Annotated[int, msgspec.Meta(ge=16, le=32)] = 16
    share: Annotated[float, msgspec.Meta(gt=0)] = 0.5
    colour: Colour = Colour.RED
    maybe: int | None = None


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"name": "A b"}, "must have 1 to 63 lower-case letters, digits and hyphens"),
        ({"odd": "x"}, r"must match ^\d\Z"),
        ({"short": "long"}, "must have at most 3 characters"),
        ({"few": []}, "must have at least 1 entries"),
        ({"count": 8}, "must be at least 16"),
        ({"count": 64}, "must be at most 32"),
        ({"count": "16"}, "must be a whole number, not text"),
        ({"share": 0}, "must be more than 0"),
        ({"colour": "blue"}, "'blue' is none of the allowed values"),
        ({"maybe": "x"}, "must be a whole number or null, not text"),
        ({"nmae": "x"}, "there is no such field"),
    ],
)
def test_what_the_validator_says_is_said_in_words(body: dict[str, Any], words: str) -> None:
    with pytest.raises(msgspec.ValidationError) as caught:
        msgspec.json.decode(msgspec.json.encode(body), type=Body)
    said = in_words(str(caught.value).partition(" - at ")[0])
    assert said.startswith(words) and "`" not in said


def patterns(node: Any) -> set[str]:
    if isinstance(node, list):
        return {pattern for item in node for pattern in patterns(item)}
    if not isinstance(node, dict):
        return set()
    own = {node["pattern"]} if isinstance(node.get("pattern"), str) else set()
    return own | {pattern for item in node.values() for pattern in patterns(item)}


def test_every_pattern_of_a_request_has_words() -> None:
    used = patterns(json.loads(OPENAPI.read_text())["components"]["schemas"])
    only_answers = {"^[A-Za-z]{0,40}$"}  # reason codes
    assert {re.sub(r"\$$", r"\\Z", pattern) for pattern in used - only_answers} - PATTERNS.keys() == set()

"""What people write about objects: display name, description and tags. They change nothing that an object does."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, UnsetType

from novacron.model import limits
from novacron.model.errors import InvalidInput

TAG = r"[^\s,\x00-\x20\x7f-\xa0\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]"
"""Of a tag: no spaces, commas, controls or marks of direction, so that two tags that look alike are alike."""

DisplayName = Annotated[str, Meta(max_length=limits.DISPLAY_NAME_LENGTH_MAX)]
Description = Annotated[str, Meta(max_length=limits.DESCRIPTION_LENGTH_MAX)]
Tag = Annotated[str, Meta(pattern=rf"^{TAG}{{1,{limits.TAG_LENGTH_MAX}}}\Z")]
Tags = Annotated[tuple[Tag, ...], Meta(max_length=limits.TAGS_MAX)]


class Metadata(msgspec.Struct, frozen=True, kw_only=True):
    """What every kind of object in ``KINDS`` has: the one list of it."""

    display_name: DisplayName = ""
    """How people call the object; it need not be unique. Empty: by its name."""
    description: str = ""
    """What it is for."""
    tags: tuple[str, ...] = ()
    """Words by which lists can be filtered."""


class MetadataChanges(msgspec.Struct, forbid_unknown_fields=True):
    """What to change; what is left out stays. ``tags`` replaces all of them."""

    display_name: DisplayName | UnsetType = UNSET
    description: Description | UnsetType = UNSET
    tags: Tags | UnsetType = UNSET


FIELDS = Metadata.__struct_fields__
KINDS = (
    "vm", "volume", "network", "snapshot", "project", "node", "security-group", "floating-address", "forward", "image",
    "flavor", "template",
)  # fmt: skip
"""The kinds of objects that have it."""


def canonical_tags(tags: Sequence[str]) -> tuple[str, ...]:
    """Return tags as they are stored and compared: each once, in Unicode's composed form."""
    return tuple(dict.fromkeys(unicodedata.normalize("NFC", tag) for tag in tags))


def wanted_tags(text: str | None) -> tuple[str, ...]:
    """Return the tags that a filter names, with commas between them. Raises InvalidInput."""
    if text is None:
        return ()
    tags = text.split(",")
    if len(tags) > limits.TAGS_MAX or not all(tags):
        raise InvalidInput(
            f"{text[: limits.TAG_LENGTH_MAX]!r} is not a list of tags", field="tag",
            hint="write tags with commas between them: an object must have all of them",
        )  # fmt: skip
    return canonical_tags(tags)

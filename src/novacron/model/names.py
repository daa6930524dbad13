"""Names that users give to objects."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from novacron.model import limits

NAME_PATTERN = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\Z"

Name = Annotated[
    str,
    Meta(
        pattern=NAME_PATTERN,
        max_length=limits.NAME_LENGTH_MAX,
        description="1 to 63 lower-case letters, digits and hyphens; starts and ends with a letter or digit",
    ),
]

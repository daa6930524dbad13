"""Numbers that nodes and peers send: neither infinite nor NaN, which JSON can't hold and comparisons don't expect."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

FINITE_MAX = 1e300

Finite = Annotated[float, Meta(ge=-FINITE_MAX, le=FINITE_MAX)]
"""A decoder refuses others. Every float of a message of the agent link is one of these, or has narrower bounds."""

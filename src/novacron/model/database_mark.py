"""How far a database had come, as a server or a node saw it: what tells that an older copy was put back. Pure.

A server counts up in its own row of the database, writes the number beside its certificates, and says it to the nodes
with each acknowledgement. A database that knows less than that was put back. See docs/adr/0047-older-databases.md.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

NUMBER_MAX = 2**53
PROOF_LENGTH_MAX = 32


class DatabaseMark(msgspec.Struct, frozen=True):
    """How far a server has counted in the database."""

    server: Annotated[str, Meta(max_length=32, pattern=r"^[0-9a-f]+\Z")]
    number: Annotated[int, Meta(ge=0, le=NUMBER_MAX)]
    proof: Annotated[str, Meta(max_length=PROOF_LENGTH_MAX)] = ""
    """That a server has counted so far; empty where no node is told of it, and from older servers."""

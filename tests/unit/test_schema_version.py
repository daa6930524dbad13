"""The version of a database's schema, and the one that this program knows."""

from __future__ import annotations

import pytest

from novacron.model.errors import InvalidInput
from novacron.store.database import SCHEMA_VERSION, refuse_later


def test_a_server_refuses_a_schema_that_a_later_one_has_made_and_says_what_to_do() -> None:
    refuse_later("0001")
    refuse_later(SCHEMA_VERSION)
    later = f"{int(SCHEMA_VERSION) + 1:04}"
    with pytest.raises(InvalidInput, match=f"its schema is version {later}") as refused:
        refuse_later(later)
    assert refused.value.field == "database" and "put back a backup" in str(refused.value.hint)

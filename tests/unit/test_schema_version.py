"""The version of a database's schema, and the one that this program knows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from novacron.model.errors import InvalidInput
from novacron.store import schema
from novacron.store.database import SCHEMA_VERSION, refuse_later

VERSIONS = Path(schema.__file__).parent / "versions"
SAYS_WHO_IS_SERVED = "0067"
TAKES_AWAY = re.compile(
    r"\bDROP\s+(TABLE|COLUMN|TYPE|VIEW)|\bRENAME\b|\bSET\s+NOT\s+NULL\b|\bALTER\s+COLUMN\s+\w+\s+(SET\s+DATA\s+)?TYPE\b"
    r"|\bdrop_(table|column)\(",
    re.IGNORECASE,
)


def test_a_server_refuses_a_schema_that_a_later_one_has_made_and_says_what_to_do() -> None:
    refuse_later("0001")
    refuse_later(SCHEMA_VERSION)
    later = f"{int(SCHEMA_VERSION) + 1:04}"
    with pytest.raises(InvalidInput, match=f"its schema is version {later}") as refused:
        refuse_later(later)
    assert refused.value.field == "database" and "restore an earlier backup" in str(refused.value.hint)


def test_a_server_starts_over_a_later_schema_that_still_serves_it() -> None:
    later = f"{int(SCHEMA_VERSION) + 1:04}"
    refuse_later(later, SCHEMA_VERSION)
    refuse_later(later, "0001")
    with pytest.raises(InvalidInput, match=f"its schema is version {later}"):
        refuse_later(later, later)


def test_a_version_that_takes_something_away_says_which_servers_it_ends() -> None:
    later = sorted(path for path in VERSIONS.glob("[0-9]*.py") if path.name[:4] >= SAYS_WHO_IS_SERVED)
    assert later and later[-1].name.startswith(SCHEMA_VERSION)
    for path in later:
        text = path.read_text()
        assert not TAKES_AWAY.search(text) or "schema_serves" in text, (
            f"{path.name}: older servers can't work over it: it has to set schema_serves.oldest (see 0067)"
        )


@pytest.mark.parametrize(
    "statement",
    ["DROP TABLE a", "ALTER TABLE a DROP COLUMN b", "ALTER TABLE a RENAME COLUMN b TO c",
     "ALTER TABLE a ALTER COLUMN b TYPE text", "ALTER TABLE a ALTER b SET NOT NULL", "op.drop_column('a', 'b')"],
)  # fmt: skip
def test_what_takes_something_away_is_seen(statement: str) -> None:
    assert TAKES_AWAY.search(statement)

"""The list of attacks names a test for each, and the mends that are switched off are those of the code."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.security.mutations import MUTATIONS, Mutation
from tests.unit.test_docs import TEST_NAME, defined_tests

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/reference/attacks.md"
ROWS_MIN = 30


def test_each_attack_has_a_test_that_exists() -> None:
    cells = [line.strip("| ").split(" | ") for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    rows = [row for row in cells if row[0] != "attack"]
    assert len(rows) >= ROWS_MIN
    for attack, holds, tests in rows:
        assert holds and TEST_NAME.findall(tests), f"nothing keeps: {attack}"
        assert set(TEST_NAME.findall(tests)) <= set(defined_tests()), attack


def test_the_page_lists_the_mends_that_are_switched_off() -> None:
    listed = [line.removeprefix("* ") for line in PAGE.read_text().splitlines() if line.startswith("* ")]
    assert listed == [mutation.mend for mutation in MUTATIONS]


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.mend)
def test_a_mend_that_is_switched_off_is_still_there(mutation: Mutation) -> None:
    assert (ROOT / "src/novacron" / mutation.file).read_text().count(mutation.text) == 1
    file, _, name = mutation.test.partition("::")
    assert f"def {name}(" in (ROOT / file).read_text()

"""The tests of mends fail without the mends."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.security.mutations import MUTATIONS, ROOT, TIMEOUT_S, Mutation, survives

BY_MEND = [pytest.param(mutation, id=mutation.mend.replace(" ", "-")) for mutation in MUTATIONS]


@pytest.mark.parametrize("mutation", BY_MEND)
def test_each_mutation_changes_code_that_is_there_and_names_a_test_that_is_there(mutation: Mutation) -> None:
    source = (ROOT / "src/novacron" / mutation.file).read_text()
    assert source.count(mutation.text) >= 1, "the mend reads otherwise now: write the mutation anew"
    ast.parse(source.replace(mutation.text, mutation.instead, 1))
    file, _, name = mutation.test.partition("::")
    tests = ast.parse(Path(ROOT / file).read_text())
    names = {node.name for node in ast.walk(tests) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))}
    assert name in names


@pytest.mark.slow
@pytest.mark.timeout(TIMEOUT_S + 60)
@pytest.mark.parametrize("mutation", BY_MEND)
def test_a_test_fails_when_its_mend_is_switched_off(mutation: Mutation) -> None:
    assert not survives(mutation), f"{mutation.test} passes although this is not so: {mutation.mend}"

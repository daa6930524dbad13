"""Random histories with real QEMU: a few in the slow matrix; ``python -m lab.histories`` runs as many as one likes."""

from __future__ import annotations

import pytest

from lab.histories.__main__ import run
from tests.chance import new_seed

HISTORIES = 4


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_random_histories_end_with_every_vm_running_once_and_nothing_left_over(lacks: list[str]) -> None:
    if lacks:
        pytest.skip("; ".join(lacks))
    first = new_seed() % 2**31
    print(f"seeds {first} to {first + HISTORIES - 1}")
    assert run(first, HISTORIES) == 0, "see what was printed: each says how to run it again"

"""The examples of docs/reference/sdk.md, as they stand there: types fit, and they do on a platform what they say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lab.platform import Platform

ROOT = Path(__file__).parents[2]
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs/reference/sdk.md").read_text(), re.MULTILINE | re.DOTALL)


def test_the_examples_of_the_sdk_s_page_have_types_that_fit(tmp_path: Path) -> None:
    for number, example in enumerate(EXAMPLES):
        (tmp_path / f"example_{number}.py").write_text(example)
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", *map(str, sorted(tmp_path.iterdir()))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("number", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in range(1, len(EXAMPLES)))])
def test_the_examples_of_the_sdk_s_page_work(
    site: Platform, tmp_path: Path, new_name: Callable[[], str], number: int
) -> None:
    name = new_name()
    program = tmp_path / "example.py"
    program.write_text(re.sub(r'"web\b', f'"{name}', EXAMPLES[number]))
    done = subprocess.run(
        [sys.executable, "-I", str(program)], capture_output=True, text=True, timeout=240, check=False,
        env={**os.environ, "NOVACRON_CONFIG": str(site.config)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert name in done.stdout, done.stdout
    site.until_clean()

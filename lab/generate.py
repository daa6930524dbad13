"""Writes the files that follow from others: run it with ``script/generate``; a test fails while one is out of date."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
CLIENT = ROOT / "src/novacron/client"
BY_HAND = {"__init__.py", "transport.py"}
TO_SYNC = (
    (r"\b(async|await) ", ""),
    (r"\bAsync([A-Z])", r"\1"),
    (r"__a(enter|exit)__", r"__\1__"),
    (r"\bclient\.aio\b", "client.sync"),
)
"""What a call for asyncio has that a blocking one has not."""


def sync_client() -> dict[Path, str]:
    """Return the blocking calls, made of those for asyncio."""
    files = {}
    for source in sorted((CLIENT / "aio").glob("*.py")):
        if source.name in BY_HAND:
            continue
        text = source.read_text()
        for pattern, replacement in TO_SYNC:
            text = re.sub(pattern, replacement, text)
        note = f"# Made of aio/{source.name} by script/generate: change that, and run it.\n"
        files[CLIENT / "sync" / source.name] = _formatted(note + text)
    return files


def generated() -> dict[Path, str]:
    """Return all generated files with their text."""
    return sync_client()


def _formatted(text: str) -> str:
    for command in (("check", "--select", "I", "--fix", "--quiet"), ("format", "--quiet")):
        arguments = [sys.executable, "-m", "ruff", *command, "--stdin-filename", "src/novacron/client/sync/x.py", "-"]
        done = subprocess.run(arguments, input=text, capture_output=True, text=True, check=True, cwd=ROOT)
        text = done.stdout
    return text


def main() -> None:
    for path, text in generated().items():
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
            print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()

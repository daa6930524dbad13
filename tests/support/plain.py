"""What lies on a disk as it is."""

from __future__ import annotations

from pathlib import Path


def files_with(root: Path, marker: bytes) -> set[str]:
    """Return the names of the files that hold something in the clear."""
    return {
        path.name
        for path in root.rglob("*")
        if path.is_file() and not path.is_symlink() and marker in path.read_bytes()
    }

"""Python sources as syntax trees."""

from __future__ import annotations

import ast
import functools
import gc
from pathlib import Path


@functools.cache
def parsed(path: Path) -> ast.Module:
    """Parse a file, once. Change nothing in the tree: all tests of a process share it.

    Nothing is collected meanwhile: what a collected object says can be a traceback, whose text Python 3.11 finds by
    parsing, and a parser that runs within a parser fails there (python/cpython#106905).
    """
    text = path.read_text()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        return ast.parse(text)
    finally:
        if was_enabled:
            gc.enable()

"""English texts for measurements: docstrings of the standard library and of installed packages."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import random
import sysconfig
from collections.abc import Iterator
from pathlib import Path

SHORTEST, LONGEST = 200, 2000
"""Bytes of UTF-8."""


def docstrings(count: int, seed: int = 17) -> list[str]:
    """`count` distinct docstrings of 200 to 2,000 bytes, drawn with a seed."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    for name in ("numpy", "scipy", "sklearn"):
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin is not None:
            files += sorted(Path(spec.origin).parent.rglob("*.py"))
    found = {text for path in files for text in _of_file(path)}
    return random.Random(seed).sample(sorted(found), count)  # noqa: S311 - no secret


def _of_file(path: Path) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            text = inspect.cleandoc(ast.get_docstring(node) or "")
            if SHORTEST <= len(text.encode()) <= LONGEST:
                yield text

"""A digest of the code behind a class, so that a changed formula never meets an old score."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import sys
from functools import cache
from pathlib import Path

# The contracts and the errors change without changing what any part computes.
_NEUTRAL = {"karat", "karat.parts", "karat.errors", "karat.fitting", "karat.code_digest", "karat.lazy"}


def code_digest(cls: type) -> str:
    """Digest of the modules that define `cls` and its bases, and of what they import.

    Imports are followed within their own package, into karat and into modules that are not installed (the
    user's own helpers); the versions of installed libraries are for `Part.environment`. Comments, formatting
    and docstrings do not count. A class without a source file (typed into a session) is named only, which is
    noted in its digest.
    """
    given = sys.stdlib_module_names | {"pydantic"}
    names = [base.__module__ for base in cls.__mro__]
    return modules_digest(*(name for name in names if name.partition(".")[0] not in given))


def modules_digest(*names: str) -> str:
    """The same for modules; nothing is imported but the packages that hold them."""
    modules: set[str] = set()
    for name in names:
        _collect(name, modules)
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(modules):
        digest.update(f"{name}={_module_digest(name)};".encode())
    return digest.hexdigest()


def _collect(name: str, found: set[str]) -> None:
    if name in found or name in _NEUTRAL:
        return
    found.add(name)
    source = _source(name)
    if source is None:
        return
    package = name.partition(".")[0]
    for child in _imports(ast.parse(source), name):
        top = child.partition(".")[0]
        if (top in (package, "karat") or _own(top)) and _source(child) is not None:
            _collect(child, found)


@cache
def _own(top: str) -> bool:
    """Whether a top-level module is the user's own code, and neither Python's nor an installed library."""
    if not top or top in sys.stdlib_module_names:
        return False
    path = _file(top)
    return path is not None and not {"site-packages", "dist-packages"} & set(path.parts)


def _imports(tree: ast.AST, importer: str) -> set[str]:
    """Every absolute module name that an import anywhere in the tree may load."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = importer.split(".")
                if not _is_package(importer):
                    parents = parents[:-1]
                parents = parents[: len(parents) - node.level + 1]
                base = ".".join([*parents, *filter(None, [node.module])])
            names.add(base)
            names.update(f"{base}.{alias.name}" for alias in node.names)
    return names


@cache
def _module_digest(name: str) -> str:
    source = _source(name)
    if source is None:
        return "no source"
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                node.body = node.body[1:]
    return hashlib.blake2b(ast.dump(tree).encode(), digest_size=16).hexdigest()


def _file(name: str) -> Path | None:
    loaded = sys.modules.get(name)
    origin = getattr(loaded, "__file__", None)
    if origin is None:
        try:
            spec = importlib.util.find_spec(name)
        except (ImportError, ValueError):
            return None
        origin = spec.origin if spec else None
    path = Path(origin) if origin else None
    return path if path and path.suffix == ".py" and path.is_file() else None


def _is_package(name: str) -> bool:
    path = _file(name)
    return path is not None and path.name == "__init__.py"


def _source(name: str) -> str | None:
    path = _file(name)
    return path.read_text(encoding="utf-8") if path else None

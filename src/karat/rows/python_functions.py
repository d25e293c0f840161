"""Documented functions of installed Python packages, found by parsing: nothing is imported or executed."""

from __future__ import annotations

import ast
import importlib.util
import io
import os
import sysconfig
import tokenize
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

STDLIB = "stdlib"

# Tests repeat the same few shapes, and vendored copies belong to another package.
SKIPPED_FOLDERS = frozenset(
    {"test", "tests", "idlelib", "idle_test", "lib2to3", "turtledemo", "ensurepip", "__pycache__"}
    | {"site-packages", "dist-packages", "vendor", "_vendor", "vendored", "_vendored", "vendored_deps"}
    | {"extern", "externals", "third_party"}
)


@dataclass(frozen=True)
class SourceFile:
    """One .py file of a package; `path` is inside the package, with forward slashes."""

    package: str
    module: str
    root: Path
    path: str
    size: int


@dataclass(frozen=True)
class Function:
    """A function or method with its docstring; `source` is dedented and holds no docstring."""

    name: str
    line: int
    docstring: str
    source: str


def source_files(package: str) -> list[SourceFile]:
    """The .py files of an installed top-level package ("stdlib": the standard library), sorted by path.

    Empty where the package is not installed or has no Python source on disk. Folders in
    SKIPPED_FOLDERS and files named test_*.py, *_test.py and conftest.py are left out.
    """
    found: dict[str, SourceFile] = {}
    for root in _roots(package):
        for path in [root] if root.is_file() else _walk(root):
            base = root.parent if root.is_file() else root
            inside = path.relative_to(base).as_posix()
            steps = inside.removesuffix(".py").removesuffix("__init__").strip("/").split("/")
            prefix = [] if package == STDLIB or root.is_file() else [package]
            module = ".".join([*prefix, *filter(None, steps)]) or package
            found.setdefault(inside, SourceFile(package, module, base, inside, path.stat().st_size))
    return [found[path] for path in sorted(found)]


def _roots(package: str) -> list[Path]:
    """Folders (or the one file) that hold a package; finding a top-level name does not import it."""
    if package == STDLIB:
        return [Path(sysconfig.get_path("stdlib"))]
    try:
        spec = importlib.util.find_spec(package)
    except ValueError:  # already imported by hand, without a spec
        return []
    if spec is None:
        return []
    if spec.submodule_search_locations is not None:
        return [root for root in map(Path, spec.submodule_search_locations) if root.is_dir()]
    origin = Path(spec.origin or "")
    return [origin] if origin.suffix == ".py" and origin.is_file() else []


def _walk(root: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if name not in SKIPPED_FOLDERS)
        for name in sorted(files):
            test = name.startswith("test_") or name.endswith("_test.py") or name == "conftest.py"
            path = Path(folder, name)
            if name.endswith(".py") and not test and path.is_file():
                yield path


def functions_of(raw: bytes) -> list[Function]:
    """Functions and methods with a docstring and a body, in the order of the file.

    Functions inside functions are left out, and so are bodies of nothing but `pass`, `...` and a
    docstring. Raises SyntaxError (also for a wrong encoding), ValueError or RecursionError where the
    file cannot be parsed.
    """
    encoding, _ = tokenize.detect_encoding(io.BytesIO(raw).readline)
    text = io.TextIOWrapper(io.BytesIO(raw), encoding=encoding).read()
    if '"""' not in text and "'''" not in text and "def " not in text:
        return []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes are the package's business
        tree = ast.parse(text)
    lines = text.split("\n")  # the parser's lines; str.splitlines() would also break at form feeds
    made = [_function(node, name, lines) for node, name in _definitions(tree)]
    return sorted(filter(None, made), key=lambda found: found.line)


_Def = ast.FunctionDef | ast.AsyncFunctionDef


def _definitions(tree: ast.Module) -> Iterator[tuple[_Def, str]]:
    """Definitions at module and class level, also inside if, try and with, with their qualified names."""
    todo: list[tuple[ast.AST, str]] = [(tree, "")]
    while todo:
        parent, scope = todo.pop()
        below: list[tuple[ast.AST, str]] = []
        for node in ast.iter_child_nodes(parent):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield node, scope + node.name
            elif isinstance(node, ast.ClassDef):
                below.append((node, f"{scope}{node.name}."))
            elif isinstance(node, ast.stmt | ast.excepthandler):
                below.append((node, scope))
        todo.extend(below)


def _function(node: _Def, name: str, lines: list[str]) -> Function | None:
    docstring = ast.get_docstring(node)
    if not docstring or all(map(_says_nothing, node.body[1:])):
        return None
    first = min([node.lineno, *(mark.lineno for mark in node.decorator_list)])
    doc = node.body[0]
    if _shares_a_line(doc, lines):
        return None
    kept = lines[first - 1 : doc.lineno - 1] + lines[doc.end_lineno or doc.lineno : node.end_lineno]
    source = _dedent(kept, lines[node.lineno - 1][: node.col_offset]).strip("\n") + "\n"
    return Function(name, node.lineno, docstring, source)


def _says_nothing(node: ast.stmt) -> bool:
    return isinstance(node, ast.Pass) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))


def _shares_a_line(doc: ast.stmt, lines: list[str]) -> bool:
    """Whether code stands on the docstring's first or last line, so that its lines cannot be cut out."""
    end = doc.end_lineno or doc.lineno
    before = lines[doc.lineno - 1].encode()[: doc.col_offset]
    after = lines[end - 1].encode()[doc.end_col_offset or 0 :].strip()
    return bool(before.strip()) or bool(after and not after.startswith(b"#"))


def _dedent(lines: list[str], indent: str) -> str:
    """Take the definition's own indent away; lines without it lie inside a string and stay."""
    return "\n".join(line.removeprefix(indent) if indent else line for line in lines)

"""Names of a package that are imported when they are first used, so that `karat --help` stays quick."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def lazy_members(package: str, table: Mapping[str, str]) -> Callable[[str], Any]:
    """A module-level `__getattr__` over a table of public name -> "module:Name"; `dir` shows them."""

    def __getattr__(name: str) -> Any:  # noqa: N807 - this is the hook's own name
        if name not in table:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module, _, attribute = table[name].partition(":")
        return getattr(importlib.import_module(module), attribute)

    namespace = vars(sys.modules[package])
    namespace.setdefault("__dir__", lambda: sorted({*namespace, *table}))
    return __getattr__


def by_class_name(members: Mapping[str, str]) -> dict[str, str]:
    """The same table keyed by class name: {"zip_fit": "m:ZipFit"} -> {"ZipFit": "m:ZipFit"}."""
    return {path.partition(":")[2]: path for path in members.values()}

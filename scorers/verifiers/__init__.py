"""Everything that decides whether a response is right."""

from __future__ import annotations

from karat.lazy import by_class_name, lazy_members

MEMBERS: dict[str, str] = {}
__getattr__ = lazy_members(__name__, by_class_name(MEMBERS))

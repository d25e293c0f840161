"""How weights reach the gradient: the loss, the callback and the checks."""

from __future__ import annotations

from typing import TYPE_CHECKING

if __name__ != "karat.trainers":
    raise ImportError(
        f"this folder is the package karat.trainers; import it by that name, not as {__name__!r}"
    )

from karat.lazy import lazy_members

if TYPE_CHECKING:
    from karat.trainers.callback import ReweightCallback as ReweightCallback

__getattr__ = lazy_members(__name__, {"ReweightCallback": "karat.trainers.callback:ReweightCallback"})

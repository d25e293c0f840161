"""Texts that end a response."""

from __future__ import annotations

from collections.abc import Sequence


def cut(text: str, stop: Sequence[str]) -> str | None:
    """The text before the first stop text in it, or None where there is none."""
    places = [place for one in stop if (place := text.find(one)) >= 0]
    return text[: min(places)] if places else None

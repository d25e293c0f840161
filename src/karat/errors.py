"""The one kind of error that karat raises for what a person can put right."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class KaratError(Exception):
    """Something that the user can mend: what was wrong, where, what was expected and what to do.

    The parts are kept apart so that the command line can print them as a block and a program can
    read them; `str(error)` joins them into one line.
    """

    def __init__(self, problem: str, *, where: str | None = None, hint: str | None = None) -> None:
        self.problem = problem
        self.where = where
        self.hint = hint
        super().__init__(problem)

    def __str__(self) -> str:
        text = f"{self.where}: {self.problem}" if self.where else self.problem
        return f"{text} ({self.hint})" if self.hint else text

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.problem, self.where, self.hint))


class ConfigError(KaratError):
    """A setting is unknown, missing or impossible; `where` names the key and the line."""


class DataError(KaratError):
    """Rows could not be read as they are; `where` names file and row, `key` the setting if one is wrong."""

    def __init__(
        self, problem: str, *, where: str | None = None, hint: str | None = None, key: tuple[str, ...] = ()
    ) -> None:
        super().__init__(problem, where=where, hint=hint)
        self.key = key


class ScoreError(KaratError):
    """A scorer broke its contract, or its inputs cannot be scored."""


class SelectionError(KaratError):
    """A budget, quota or column makes the selection impossible."""


class WeightError(KaratError):
    """A weight could not reach the gradient; raised before the first step."""


class StoreError(KaratError):
    """The store cannot be read or written."""


def _rebuild(kind: type[KaratError], problem: str, where: str | None, hint: str | None) -> KaratError:
    return kind(problem, where=where, hint=hint)


def closest(name: str, known: Iterable[str]) -> str:
    """A hint for a mistyped name: the nearest known one, or the whole list when none is near."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if near:
        return f"did you mean {near[0]!r}?"
    shown = [name if len(name) <= 60 else name[:57] + "..." for name in names[:20]]
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return f"known: {', '.join(shown)}{more}" if names else "there are none"

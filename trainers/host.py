"""Finding what a callback is not told: its Trainer, and the data set before columns were dropped."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from types import FrameType
from typing import Any

from karat.errors import WeightError
from karat.trainers.attach import rows_of
from karat.trainers.columns import is_table, names


@dataclass(frozen=True)
class Host:
    """The Trainer that a callback runs in, as far as it could be found."""

    trainer: Any | None
    resumed_from: Path | None


def find(callback: object) -> Host:
    """The Trainer whose loop is calling, read from the stack.

    transformers hands a callback neither the Trainer nor the original data set nor the checkpoint it
    resumes from, and all three decide whether weights arrive. Walking the calling frames needs nothing
    from the user and works for callbacks added late; a Trainer counts only if it holds this callback.
    """
    from transformers import Trainer

    trainer: Any | None = None
    resumed: Path | None = None
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, Trainer) and any(one is callback for one in owner.callback_handler.callbacks):
            trainer = owner
            path = frame.f_locals.get("resume_from_checkpoint")
            if resumed is None and isinstance(path, (str, PathLike)):
                resumed = Path(path)
        frame = frame.f_back
    return Host(trainer, resumed)


Wrapper = Callable[[Callable[..., Any]], Callable[..., Any]]


def wrap(owner: Any, name: str, wrapper: Wrapper) -> Callable[[], None]:
    """Exchange a method of one object for `wrapper(method)`; returns what undoes it."""
    own = owner.__dict__.get(name)
    owner.__dict__[name] = wrapper(getattr(owner, name))

    def undo() -> None:
        del owner.__dict__[name]
        if own is not None:
            owner.__dict__[name] = own

    return undo


def _same_rows(served: Any, original: Any) -> bool:
    """Whether two tables hold the same rows in the same order, looked at in up to 64 places."""
    if len(served) != len(original):
        return False
    shared = [name for name in served.column_names if name in original.column_names]
    if not shared or len(served) == 0:
        return len(served) == 0
    step = max(1, len(served) // 63)
    places = sorted({*range(0, len(served), step), len(served) - 1})
    tables = [
        table.select_columns(shared).select(places).with_format("arrow")[:] for table in (served, original)
    ]
    return bool(tables[0].equals(tables[1]))


def sources(loader: Any, trainer: Any | None, args: Any) -> list[Any]:
    """Data sets to look for columns in: the one the loader serves, then the Trainer's with all columns.

    Raises WeightError if the columns were dropped and the rows that still have them cannot be trusted to
    be the same.
    """
    served = rows_of(loader)
    original: Any = getattr(trainer, "train_dataset", None)
    if not is_table(served):
        return [served]
    if trainer is None:
        if args.remove_unused_columns:
            raise WeightError(
                "the Trainer dropped the columns its model does not read, and could not be found to ask it",
                hint="set TrainingArguments(remove_unused_columns=False)",
            )
        return [served]
    if original is served or not is_table(original) or not set(names(original)) - set(names(served)):
        return [served]
    if not _same_rows(served, original):
        raise WeightError(
            f"the data loader serves {len(served)} rows that are not those of train_dataset "
            f"({len(original)} rows)",
            hint="set TrainingArguments(remove_unused_columns=False), so that weights stay with their rows",
        )
    return [served, original]

"""What a sample is: a row, a segment of a packed row, or a pair of a preference trainer."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from karat.errors import WeightError
from karat.trainers.verification.probe import Batch


def trl_class(trainer: Any, name: str) -> Any | None:
    """TRL's own class of this name among the trainer's, without what a subclass changed."""
    found = (c for c in type(trainer).__mro__ if c.__name__ == name and c.__module__.startswith("trl."))
    return next(found, None)


class Rows:
    """One row of the data set is one sample."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def of(self, batch: Batch) -> list[tuple[Any, int]]:
        """The samples of a micro-batch: what the collator is given of each, and its row number."""
        indices = batch.indices if batch.indices is not None else [-1] * len(batch.features)
        return list(zip(batch.features, indices, strict=True))

    def plant(self, trainer: Any, callback: Any, dataset: Any) -> None:
        """Put another data set in the place of this one; the caller restores."""
        trainer.train_dataset = dataset


class Segments(Rows):
    """Rows that an SFTTrainer has packed: each segment was a row, or a part of one, of the given set."""

    def __init__(self, trainer: Any, callback: Any) -> None:
        """Tokenises the given set once more, to find segments in it by their tokens."""
        given = None if callback is None else callback.options.dataset
        given = given if given is not None else vars(trainer).get("_karat_given")
        if given is None:
            raise WeightError(
                "packing forgets which rows there were, and the set that the trainer was given is not known",
                where="SFTTrainer",
                hint="say ReweightCallback(dataset=...) with it",
            )
        super().__init__(given)
        whole = copy.copy(trainer.args)
        whole.max_length, whole.shuffle_dataset = None, False
        tokens = trainer._prepare_dataset(
            given, trainer.processing_class, whole, False, trainer._formatting_func, "train"
        )
        self._texts = [_bytes(ids) for ids in tokens.with_format(None)["input_ids"]]
        self._taken: dict[int, int] = {}

    def of(self, batch: Batch) -> list[tuple[Any, int]]:
        """Cut at the lengths that the packed rows carry."""
        found = []
        for feature in batch.features:
            start = 0
            for length in feature["seq_lengths"]:
                piece = {
                    name: value[start : start + length] if _per_token(value, feature) else value
                    for name, value in feature.items()
                }
                found.append(({**piece, "seq_lengths": [length]}, self._row(piece["input_ids"])))
                start += length
        return found

    def _row(self, ids: Any) -> int:
        """The row whose tokens these are; of equal rows the one that was found least often."""
        wanted = _bytes(ids)
        rows = [row for row, text in enumerate(self._texts) if text == wanted]
        rows = rows or [row for row, text in enumerate(self._texts) if wanted in text]
        if not rows:
            raise WeightError("a packed segment is no part of a row of the given set", where="SFTTrainer")
        row = min(rows, key=lambda one: self._taken.get(one, 0))
        self._taken[row] = self._taken.get(row, 0) + 1
        return row

    def plant(self, trainer: Any, callback: Any, dataset: Any) -> None:
        """As if the trainer had been given another set of the same texts."""
        vars(trainer)["_karat_given"] = dataset
        if callback is not None and callback.options.dataset is not None:
            callback.options = replace(callback.options, dataset=dataset)


def units_of(trainer: Any, callback: Any) -> Rows:
    """How this trainer's rows are cut into samples."""
    if trl_class(trainer, "SFTTrainer") is not None and trainer.args.packing:
        return Segments(trainer, callback)
    return Rows(trainer.train_dataset)


def _bytes(ids: Any) -> bytes:
    return np.asarray(ids, dtype=">i4").tobytes()


def _per_token(value: Any, feature: Mapping[str, Any]) -> bool:
    return hasattr(value, "__len__") and len(value) == len(feature["input_ids"])

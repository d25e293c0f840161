"""Packed rows: which sample each of their segments was, as TRL's packing does not say."""

from __future__ import annotations

import copy
import functools
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from karat.errors import WeightError

if TYPE_CHECKING:
    import datasets

Segments = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Row and length of every segment, and where those of each packed row begin; int64."""

_GIVEN = "_karat_given"
_WATCHED = "_karat_watches"


def remember_given() -> None:
    """Let every SFTTrainer made from now on remember the data set that it was given.

    Packing keeps tokens and forgets rows, columns and order, before any callback is asked. So where TRL is
    loaded, its `_prepare_dataset` notes its argument on the trainer, and changes nothing else.
    """
    if "trl" not in sys.modules:  # its trainers load when they are first used, which may be after this
        return
    from trl.trainer.sft_trainer import SFTTrainer

    trainer: Any = SFTTrainer
    if getattr(trainer, _WATCHED, False):
        return
    prepare = trainer._prepare_dataset

    @functools.wraps(prepare)
    def noting(self: Any, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        self.__dict__.setdefault(_GIVEN, dataset)  # the training set comes first
        return prepare(self, dataset, *args, **kwargs)

    trainer._prepare_dataset = noting
    setattr(trainer, _WATCHED, True)


def given(trainer: Any) -> Any:
    """The data set that an SFTTrainer was made with, or a refusal."""
    found = trainer.__dict__.get(_GIVEN)
    if found is None:
        raise WeightError(
            "the rows were packed before a ReweightCallback was there to see them",
            where="SFTTrainer",
            hint="import trl before the ReweightCallback is made, or say ReweightCallback(dataset=...) with "
            "the data set that the trainer was given",
        )
    return found


def segments_of(trainer: Any, dataset: datasets.Dataset) -> Segments:
    """Pack again, with each token's row in place of its label, and read the rows off.

    Raises WeightError where the packed tokens are not those that the trainer serves.
    """
    import datasets
    from trl.data_utils import pack_dataset

    args = trainer.args
    if isinstance(dataset, datasets.IterableDataset):
        raise streamed()
    whole = copy.copy(args)
    whole.max_length, whole.shuffle_dataset = None, False
    tokens = trainer._prepare_dataset(
        dataset, trainer.processing_class, whole, False, trainer._formatting_func, "train"
    )
    if len(tokens) != len(dataset):
        raise _other_rows(f"{len(dataset)} rows were tokenised into {len(tokens)}")
    marked = _marked(tokens)
    if args.shuffle_dataset:
        marked = marked.shuffle(seed=args.seed)
    packed = pack_dataset(marked, args.max_length, args.packing_strategy, {"num_proc": args.dataset_num_proc})
    if args.shuffle_dataset:
        packed = packed.shuffle(seed=args.seed)
    served, again = _flat(trainer.train_dataset, "input_ids"), _flat(packed, "input_ids")
    if not all(np.array_equal(one, other) for one, other in zip(served, again, strict=True)):
        raise _other_rows("the packed rows are not those of the data set")
    owners, counts = _flat(packed, "labels")
    return _runs(owners, counts)


def streamed() -> WeightError:
    """Packed rows of a stream have no columns but their tokens."""
    return WeightError(
        "packing a stream loses its ids and weights",
        where="SFTTrainer",
        hint="set packing=False, or use a map-style data set",
    )


def _other_rows(problem: str) -> WeightError:
    return WeightError(
        problem,
        where="SFTTrainer",
        hint="give ReweightCallback(dataset=...) the rows that the trainer was given, in their order",
    )


def _marked(tokens: datasets.Dataset) -> datasets.Dataset:
    """The tokens, with the number of its row at each in place of the labels."""
    import datasets
    import pyarrow as pa

    flat, counts = _flat(tokens, "input_ids")
    offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]), pa.int64())
    rows = np.repeat(np.arange(len(counts)), counts)
    columns = {
        name: pa.LargeListArray.from_arrays(offsets, pa.array(values))
        for name, values in (("input_ids", flat), ("labels", rows))
    }
    return datasets.Dataset(pa.table(columns))


def _flat(dataset: Any, name: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """All values of a column of lists, one after the other, and the length of each list."""
    import pyarrow as pa
    import pyarrow.compute as pc

    column = dataset.select_columns([name]).with_format("arrow")[:][name]
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    values, counts = pc.list_flatten(column), pc.list_value_length(column)
    return (
        np.asarray(values.to_numpy(zero_copy_only=False), np.int64),
        np.asarray(counts.to_numpy(zero_copy_only=False), np.int64),
    )


def _runs(owners: np.ndarray[Any, Any], counts: np.ndarray[Any, Any]) -> Segments:
    """Stretches of one owner inside each packed row."""
    starts = np.concatenate([[0], np.cumsum(counts)])
    begins = np.ones(len(owners), bool)
    begins[1:] = owners[1:] != owners[:-1]
    begins[starts[:-1][counts > 0]] = True
    places = np.flatnonzero(begins)
    lengths = np.diff(np.append(places, len(owners)))
    return (
        torch.from_numpy(owners[places]),
        torch.from_numpy(lengths),
        torch.from_numpy(np.searchsorted(places, starts)),
    )


def given_segments(dataset: Any) -> Segments:
    """Of rows that were packed by their user: column `seq_lengths`; each segment is a row of its own."""
    flat, counts = _flat(dataset, "seq_lengths")
    starts = np.concatenate([[0], np.cumsum(counts)])
    return torch.arange(len(flat)), torch.from_numpy(flat), torch.from_numpy(starts)

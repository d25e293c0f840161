"""Rows of text as the fixed-size blocks that a language model trains on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from karat.errors import DataError

if TYPE_CHECKING:
    import datasets
    import polars as pl
    import torch

    from karat.trainers.language_model import LanguageModel


@dataclass(frozen=True)
class Blocks:
    """The training set: `input_ids`, `weight`, and `group` where rows have one."""

    dataset: datasets.Dataset
    rows: int
    """Rows of positive weight with a text."""
    left_out: dict[str, int]
    """Rows that do not train, by reason."""
    split: int
    """Rows longer than one block."""
    stages: pl.Series | None = None
    """Stage of every block, where rows have one."""
    ids: pl.Series | None = None
    """The number of the block in its row, a space, and the row's id, beside `stages`."""
    of_row: pl.Series | None = None
    """Id of the row of every block, where rows have ids."""


def blocks(lm: LanguageModel, rows: pl.DataFrame, max_length: int) -> Blocks:
    """Split BOS + text + EOS of each row into blocks of `max_length` tokens; the row's weight goes with each.

    Neighbouring blocks share one token, so that every token of a row is predicted once in an epoch and
    nothing is cut off. rows: `text`, and optionally `weight` (absent: 1), `group`, and `stage` with `id`.
    Raises DataError where no row is left, or some rows have a group (a stage) and some have none.
    """
    import datasets
    import polars as pl

    if "weight" not in rows.columns:
        rows = rows.with_columns(weight=pl.lit(1.0))
    if rows["weight"].null_count():
        first = rows.filter(pl.col("weight").is_null())["id"][0]
        raise DataError("a weight is null", where=f"row {first!r}", hint="0 leaves a row out")
    textless = pl.col("text").is_null() | (pl.col("text") == "")
    chosen = rows.filter((pl.col("weight") != 0) & ~textless)
    left_out = {
        "weight 0": rows.filter(pl.col("weight") == 0).height,
        "no text": rows.filter((pl.col("weight") != 0) & textless).height,
    }
    if chosen.is_empty():
        raise DataError("no row to train on", hint=f"of {rows.height} rows: {left_out}")
    lists = [list(split(ids, lm, max_length)) for ids in lm.encode(chosen["text"].to_list())]
    copies = pl.Series([len(parts) for parts in lists])
    columns = chosen.select("weight", *(["group"] if _has_groups(chosen) else []))
    table = columns.select(pl.all().repeat_by(copies).explode(empty_as_null=True))
    flat = pl.Series("input_ids", [part for parts in lists for part in parts], dtype=pl.List(pl.Int32))
    data = datasets.Dataset(table.insert_column(0, flat).to_arrow())
    made = Blocks(data, chosen.height, {k: n for k, n in left_out.items() if n}, int((copies > 1).sum()))
    if "id" in chosen.columns:
        made = replace(made, of_row=chosen["id"].repeat_by(copies).explode())
    return _staged(made, chosen, copies) if "stage" in chosen.columns else made


def _staged(made: Blocks, rows: pl.DataFrame, copies: pl.Series) -> Blocks:
    """With the stage and an id of every block."""
    import polars as pl

    if rows["stage"].null_count():
        first = rows.filter(rows["stage"].is_null())["id"][0]
        raise DataError("has no stage to be trained in", where=f"row {first!r}")
    table = rows.select("stage", "id", number=pl.int_ranges(pl.lit(copies))).explode("number")
    ids = table.select(pl.format("{} {}", "number", "id")).to_series()
    return replace(made, stages=table["stage"], ids=ids)


def split(ids: Sequence[int], lm: LanguageModel, max_length: int) -> Iterator[list[int]]:
    """Blocks of BOS + ids + EOS in which every token but BOS is a target once."""
    sequence = [lm.bos, *ids, lm.eos]
    for start in range(0, len(sequence) - 1, max_length - 1):
        yield sequence[start : start + max_length]


def _has_groups(rows: pl.DataFrame) -> bool:
    if "group" not in rows.columns or rows["group"].null_count() == rows.height:
        return False
    if rows["group"].null_count():
        first = rows.filter(rows["group"].is_null())["id"][0]
        raise DataError("some rows have a group and some have none", where=f"row {first!r}")
    return True


class Collate:
    """Pad a batch on the right; padding is no label."""

    def __init__(self, pad: int) -> None:
        self.pad = pad

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """input_ids, attention_mask, labels: [B, T]."""
        import torch

        ids = [torch.as_tensor(example["input_ids"], dtype=torch.long) for example in examples]
        pad = torch.nn.utils.rnn.pad_sequence
        mask = pad([torch.ones_like(one) for one in ids], batch_first=True)
        inputs = pad(ids, batch_first=True, padding_value=self.pad)
        return {"input_ids": inputs, "attention_mask": mask, "labels": inputs.masked_fill(mask == 0, -100)}

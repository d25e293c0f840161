"""The Trainer of a config's training stage on some of its rows, to be verified and thrown away."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from karat.trainers.blocks import blocks
from karat.trainers.evaluate import HeldOut
from karat.trainers.language_model import language_model
from karat.trainers.train import _surroundings_kept, _trainer

if TYPE_CHECKING:
    import polars as pl

    from karat.trainers.settings import TrainSettings

HELD_OUT = 2
"""Texts that stand in for the held-out ones, should an evaluation fall into the steps."""


@contextmanager
def stage_trainer(rows: pl.DataFrame, settings: TrainSettings) -> Iterator[Any]:
    """As `train_arm` makes it. rows: `id`, `text`, and optionally `weight`, `group`.

    Where groups or stages come from scores, which are not known here, rows get some in turn. Raises
    DataError where no row has a text, ConfigError where the model cannot be loaded.
    """
    import polars as pl
    from transformers import set_seed

    if settings.groups is not None:
        turn = pl.int_range(pl.len()) % settings.groups.bins
        rows = rows.with_columns(group=turn.cast(pl.String))
    if settings.order == "rank":
        rows = rows.with_columns(stage=(pl.int_range(pl.len()) * (settings.stages or 4) // pl.len()))
    with _surroundings_kept(), tempfile.TemporaryDirectory(prefix="karat-verify-") as folder:
        set_seed(settings.seeds[0])
        lm = language_model(settings.model, settings.max_length)
        data = blocks(lm, rows, settings.max_length)
        texts = [text for text in rows["text"].to_list() if text][:HELD_OUT]
        held = HeldOut.encode(lm, texts)
        made = _trainer(lm, data, held, settings, settings.seeds[0], folder, None)
        yield made[0]

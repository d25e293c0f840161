"""The ledger of a training as scores for the next round."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import polars as pl
from pydantic import Field

from karat.fitting import Fitting
from karat.ledger_file import ledger_path, read_ledger
from karat.measured import Measured
from karat.parts import ItemScorer

UNSEEN = "failed: never visited in that training"
UNSCORED = "failed: no token of it was scored in that training"
BROKEN = "failed: its loss or weight was not finite in that training"


class TrainingLedger(ItemScorer):
    """How often a training came to a row, with what weight, and what the row's loss did meanwhile.

        loss_drop = first_loss - last_loss

    Losses are nats per scored token when the row was first and last scored, in training mode and under
    weights that change from step to step: first losses fall with the step in which a row happened to come
    first, so rows compare best within one epoch. Of ids that stand for several entries (blocks of a long
    row) the visits are those of all of them, the weight their mean over visits and the losses their means
    over entries. A row that never came has 0 visits and no other number.

    path: the Parquet file that ReweightCallback or `karat run` wrote, a Trainer's output_dir or a run's
    folder. Raises DataError where there is no ledger.

    Related: Toneva et al. 2019, arXiv 1812.05159, count forgetting events; Swayamdipta et al. 2020 ("Dataset
    Cartography"), arXiv 2009.10795, take mean and spread over epochs; this takes the two ends.
    """

    kind: ClassVar[str] = "ledger"
    summary: ClassVar[str] = "visits, mean weight, first and last loss of a row in an earlier training"
    formula: ClassVar[str] = "loss_drop = first_loss - last_loss, nats per scored token"
    paper: ClassVar[str] = "none; related: Swayamdipta et al. 2020 (Dataset Cartography), arXiv 2009.10795"
    neutral: ClassVar[frozenset[str]] = frozenset({"path"})
    """`environment` holds the content of the file."""
    source: ClassVar[str] = "ledger"
    lack: ClassVar[str] = "no line in the ledger"

    path: Path = Field(description="karat_ledger.parquet, a run's ledger.parquet, or the folder of either")

    def columns(self) -> dict[str, pl.DataType]:
        """Visits, mean weight over them, nats per scored token at the last and the first, the difference."""
        return {
            "ledger.visits": pl.Int64(),
            "ledger.mean_weight": pl.Float64(),
            "ledger.last_loss": pl.Float64(),
            "ledger.first_loss": pl.Float64(),
            "ledger.loss_drop": pl.Float64(),
        }

    def environment(self) -> dict[str, str]:
        """The content of the ledger."""
        from karat.store import file_digest

        path = self._file()
        if not path.is_file():
            read_ledger(path)  # says what is missing
        return {"ledger": file_digest(path)}

    def measure(self, fitting: Fitting) -> Measured:
        """The ledger's lines as items, sorted by id: their order in the file says nothing."""
        numbers = pl.col("mean_weight", "last_loss", "first_loss")
        table = read_ledger(self._file()).sort("id")
        broken = pl.any_horizontal(~numbers.is_finite())
        told = (
            pl.when(pl.col("visits") == 0)
            .then(pl.lit(UNSEEN))
            .when(pl.col("last_loss").is_null())
            .then(pl.lit(UNSCORED))
            .when(broken)
            .then(pl.lit(BROKEN))
        )
        finite = pl.when(numbers.is_finite()).then(numbers)
        items = table.with_columns(told.alias(self.status_column()), finite.name.keep()).select(
            pl.col("id").alias("item"),
            pl.col("visits").cast(pl.Int64).alias("ledger.visits"),
            pl.col("mean_weight").alias("ledger.mean_weight"),
            pl.col("last_loss").alias("ledger.last_loss"),
            pl.col("first_loss").alias("ledger.first_loss"),
            (pl.col("first_loss") - pl.col("last_loss")).alias("ledger.loss_drop"),
            self.status_column(),
        )
        return Measured(items)

    def _file(self) -> Path:
        return ledger_path(self.path.expanduser())

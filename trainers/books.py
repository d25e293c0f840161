"""The ledger of a Trainer's run: told of every micro-batch, kept in checkpoints, written at the end."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from karat.errors import WeightError
from karat.ledger_file import FILE
from karat.trainers.facts import names_of
from karat.trainers.ledger import Ledger

if TYPE_CHECKING:
    import polars as pl

    from karat.trainers.cargo import Cargo
    from karat.trainers.options import Options
    from karat.trainers.prepare import Prepared

log = logging.getLogger(__name__)

STATE = "karat_ledger.safetensors"
"""Its name in a checkpoint."""


class Books:
    """What happened to each row of the training set."""

    def __init__(self, options: Options, prepared: Prepared, args: Any, state: Any) -> None:
        self._path = None if options.ledger is False else _path(options, args)
        self._settings = {
            "reweighter": options.reweighter.model_dump(mode="json"),
            "reduction": options.reduction,
        }
        self._ledger = Ledger(None if prepared.stream else prepared.n_rows)
        self._ids, self._state, self._device = prepared.ids, state, torch.device(args.device)
        self._whole: Ledger | None = None

    def seen(self, cargo: Cargo, means: torch.Tensor | None, weights: torch.Tensor) -> None:
        """A weighted micro-batch; means: [n] nats per scored token, None where no loss is known."""
        if self._path is None:
            return
        losses = torch.full_like(weights, torch.nan) if means is None else means
        absent = cargo.static.to(weights.device) == 0
        self._ledger.add(
            cargo.rows, weights, losses.masked_fill(absent, torch.nan), self._state.global_step + 1
        )
        if cargo.ids is not None:
            self._ledger.names(cargo.rows, names_of(cargo.ids))

    def fold(self) -> None:
        """Take in what waits, where somebody waits for the device anyway."""
        self._ledger.fold()

    def save(self, folder: Path | None) -> None:
        """Put the ledger of all ranks into a checkpoint. Collective; folder: None on other ranks."""
        if self._path is None:
            return
        from safetensors.torch import save_file

        state = self._ledger.merged(self._meeting_place()).state()
        if folder is not None:
            partial = folder / f"{STATE}.part"
            save_file({name: value.contiguous() for name, value in state.items()}, partial)
            partial.replace(folder / STATE)

    def load(self, folder: Path) -> None:
        """Go on from a checkpoint's ledger; without one it starts here, and says so."""
        if self._path is None:
            return
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        path = folder / STATE
        if not path.is_file():
            log.warning("%s has no ledger: visits are counted from here on", folder)
            return
        try:
            self._ledger.load(load_file(path))
        except SafetensorError as error:
            raise WeightError(
                f"the ledger cannot be read: {error}", where=str(path), hint="use another checkpoint"
            ) from error

    def close(self, first_rank: bool) -> None:
        """Merge over ranks and write the file. Collective."""
        if self._path is None:
            return
        self._whole = self._ledger.merged(self._meeting_place())
        if first_rank:
            self._whole.write(self._path, self._names(), self._settings)
            log.info("ledger of the training: %s", self._path)

    def table(self) -> pl.DataFrame:
        """A line for each row, in their order; of all ranks once training has ended."""
        return (self._whole or self._ledger).table(self._names())

    def _names(self) -> list[str] | None:
        return None if self._ids is None else [str(name) for name in self._ids]

    def _meeting_place(self) -> torch.device | None:
        return self._device if self._device.type == "cuda" else None


def _path(options: Options, args: Any) -> Path:
    return Path(args.output_dir) / FILE if options.ledger is True else Path(str(options.ledger))

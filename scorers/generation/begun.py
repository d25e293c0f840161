"""What was missing when a chunk of asks was begun: a killed run goes on with the batches of that plan.

    <folder>/<key>/begun-<digest of the chunk>.parquet   query, number; there until the chunk has ended

Logits differ in their last bits between batches of different shape. Batches that are cut from what is missing
after a kill are others than those of an undisturbed run, and now and then another token would be drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from karat.errors import StoreError
from karat.scorers.generation.records import ORDER, SCHEMA
from karat.scorers.generation.samples import Ask
from karat.store import UNREADABLE, key_of, write_parquet


class Begun:
    """The note of one chunk. chunk: all its asks, distinct and sorted; folder: that of the ledger.

    Raises StoreError where the note cannot be written or read.
    """

    def __init__(self, folder: Path, chunk: Sequence[Ask]) -> None:
        self.chunk = {(ask.query, ask.number): ask for ask in chunk}
        self.path = folder / f"begun-{key_of([list(of) for of in self.chunk])}.parquet"

    def among(self, missing: Sequence[Ask]) -> list[Ask]:
        """The asks that the batches are cut from: what was missing at the first call, and is now."""
        now = [(ask.query, ask.number) for ask in missing]
        try:
            first = pl.read_parquet(self.path, glob=False).select(ORDER).rows()
        except FileNotFoundError:
            note = pl.DataFrame(now, schema={name: SCHEMA[name] for name in ORDER}, orient="row")
            write_parquet(note, self.path)
            return list(missing)
        except UNREADABLE as error:
            raise StoreError(
                "is damaged and cannot be read",
                where=str(self.path),
                hint="remove it: no response is lost, but batches may be cut otherwise",
            ) from error
        return [self.chunk[of] for of in sorted({*first, *now})]

    def end(self) -> None:
        """Nothing of the chunk is missing any more, or what is has failed."""
        self.path.unlink(missing_ok=True)

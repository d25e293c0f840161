"""Getting the responses that are still missing, kept as they arrive."""

from __future__ import annotations
from collections.abc import Sequence
import polars as pl
from karat.progress import Reporter
from karat.scorers.generation.ledger import Ledger
from karat.scorers.generation.samples import Ask, Sampler


def generate(
    sampler: Sampler, asks: Sequence[Ask], ledger: Ledger, report: Reporter | None = None
) -> pl.DataFrame:
    """One row for each ask, by query and number: query, number, text, finish, tokens.

    Text is null where `finish` says `failed: why`.
    """
    raise NotImplementedError

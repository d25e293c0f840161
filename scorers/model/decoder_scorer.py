"""A scorer that asks a causal language model; equal models are asked once for all of them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import polars as pl

from karat.fitting import Arrays
from karat.parts import Scorer
from karat.scorers.model.holding import Held
from karat.scorers.model.source import ModelScorer

if TYPE_CHECKING:
    from karat.scorers.model.asking import Asking
    from karat.scorers.model.states import States


class DecoderScorer(ModelScorer):
    """What a scorer adds: what it asks of a row, the few numbers that it wants of the states, and the score.

    The status is "ok", "truncated" (scored on what fits into `max_tokens`, or into the model if that knows
    fewer positions) or "failed: why". A number that is NaN or infinite is a failed score.
    """

    @abstractmethod
    def ask(self, row: Mapping[str, str | None], tokenizer: Any) -> Asking | str:
        """The sequences that a row asks about, or why it cannot be scored."""

    @abstractmethod
    def reduce(self, states: States) -> Any:
        """The few numbers that are wanted of one sequence; its states are gone afterwards.

        May be called again for the same sequence, where memory ran out in between.
        """

    @abstractmethod
    def conclude(self, reduced: Sequence[Any]) -> dict[str, Any] | str:
        """The row's values from those of its sequences, or why there are none."""

    def shares(self) -> Hashable | None:
        """Scorers of the same model are asked in the same pass."""
        return (self.model_kind(), *self.source())

    def model_kind(self) -> str:
        """What is loaded of the model: see `karat.scorers.model.loading.load`."""
        return "causal"

    def prepare(self, reference: pl.DataFrame | None, fitted: Arrays | None = None) -> Any:
        """Load the model, unless a scorer of the same model has; or what a served one is asked through."""
        if self.server is not None:
            from karat.scorers.server.served_runner import connect

            return connect(self)
        held = Held(self, self.model_kind())
        with held.borrowed():
            return held

    def score(self, rows: pl.DataFrame, prepared: Any) -> pl.DataFrame:
        """Ask the model about each row."""
        return self.score_together([self], rows, [prepared])[0]

    @classmethod
    def score_together(
        cls, scorers: Sequence[Scorer], rows: pl.DataFrame, prepared: Sequence[Any]
    ) -> list[pl.DataFrame]:
        """One pass over the model for all of them."""
        from karat.scorers.model.asking import score_in_one_pass

        askers = [cast("DecoderScorer", scorer) for scorer in scorers]
        with prepared[0].borrowed() as asked:
            return score_in_one_pass(askers, rows, asked.tokenizer, asked.runner)

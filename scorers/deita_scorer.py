"""What deita's two scorers have in common: a prompt for each turn, and a digit after it."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import polars as pl
from pydantic import Field, PrivateAttr

from karat.fitting import Arrays
from karat.scorers.deita_prompts import expectation
from karat.scorers.deita_tokens import digit_ids, fitted
from karat.scorers.model.decoder_scorer import DecoderScorer

if TYPE_CHECKING:
    from karat.scorers.model.asking import Asking
    from karat.scorers.model.states import States


@dataclass(eq=False)
class _Digits:
    """Token ids of the digits, known once a tokenizer has been seen; no part of what a scorer is."""

    ids: tuple[int, ...] = ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Digits)

    __hash__ = None  # type: ignore[assignment]


class DeitaScorer(DecoderScorer):
    """Asks for a digit from 1 to 6 about each turn of a conversation, and takes its expectation."""

    paper: ClassVar[str] = "Liu et al. 2024, What Makes Good Data for Alignment (DEITA), arXiv 2312.15685"
    served: ClassVar[bool] = True
    """Six log-probabilities are enough, so that a server can answer."""

    turns: Literal["sum", "mean"] = Field(
        "sum", description="score of a conversation: sum over its turns, as deita does, or their mean"
    )

    _digits: _Digits = PrivateAttr(default_factory=_Digits)

    @abstractmethod
    def prompt(self) -> Callable[..., str]:
        """The function from the parts of a turn to the prompt."""

    @abstractmethod
    def parts(self, instruction: str, response: str) -> tuple[str, ...]:
        """What of a turn is asked about."""

    def _digit_ids(self, tokenizer: Any) -> tuple[int, ...]:
        return digit_ids(tokenizer, self.prompt()(*self.parts("x", "x")))

    def columns(self) -> dict[str, pl.DataType]:
        """`<kind>.score`, and `<kind>.turns`: the score of each turn, 1 to 6, in order."""
        return {f"{self.kind}.score": pl.Float64(), f"{self.kind}.turns": pl.List(pl.Float64())}

    def prepare(self, reference: pl.DataFrame | None, fitted: Arrays | None = None) -> Any:
        """Load the model; raises ScoreError where its tokenizer has no single tokens for the digits."""
        ready = super().prepare(reference, fitted)
        with ready.borrowed() as asked:
            self._digit_ids(asked.tokenizer)
        return ready

    def ask(self, row: Mapping[str, Any], tokenizer: Any) -> Asking | str:
        """One sequence for each turn, without what was said before."""
        from karat.rows.view import turns_of
        from karat.scorers.model.asking import Asking
        from karat.scorers.model.runner import Request

        turns = turns_of(row)
        if not turns:
            return "no instruction"
        self._digits.ids = self._digit_ids(tokenizer)
        requests, truncated = [], False
        for number, (instruction, response) in enumerate(turns, 1):
            if not instruction:
                return "no instruction" if len(turns) == 1 else f"turn {number} has no instruction"
            parts = self.parts(instruction, response)
            found = fitted(tokenizer, self.prompt(), parts, self.max_tokens)
            if isinstance(found, str):
                return found
            requests.append(Request(found.ids, (len(found.ids) - 1,)))
            truncated |= found.truncated
        return Asking(tuple(requests), truncated)

    def reduce(self, states: States) -> float | str:
        """The expectation of one turn, or why there is none."""
        told = getattr(states, "next_log_probabilities", None)  # a server knows no logits
        logs = told(self._digits.ids) if told else digit_logits(states, self._digits.ids)
        return logs if isinstance(logs, str) else expectation(logs)

    def conclude(self, reduced: Sequence[float | str]) -> dict[str, Any] | str:
        """Sum or mean over the turns."""
        why = next((turn for turn in reduced if isinstance(turn, str)), None)
        if why is not None:
            return why
        scores = [turn for turn in reduced if not isinstance(turn, str)]
        if not all(map(math.isfinite, scores)):
            return "the model gave NaN"
        total = math.fsum(scores)
        score = total if self.turns == "sum" else total / len(scores)
        return {f"{self.kind}.score": score, f"{self.kind}.turns": scores}


def digit_logits(states: States, ids: Sequence[int]) -> tuple[float, ...]:
    """Logits of some tokens after the last position."""
    import torch

    wanted = torch.tensor(ids, dtype=torch.long, device=states.hidden_nd.device)
    return tuple(states.head.logits(states.hidden_nd[-1:], wanted)[0].double().tolist())

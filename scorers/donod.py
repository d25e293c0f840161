"""DONOD: what one update on a sample does to the norm of the output layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

import polars as pl
from pydantic import Field

from karat.scorers.model.decoder_scorer import DecoderScorer

if TYPE_CHECKING:
    from karat.scorers.model.asking import Asking
    from karat.scorers.model.head import Head
    from karat.scorers.model.states import States


class Donod(DecoderScorer):
    """DON and NOD of the output layer W under one SGD step on the sample's mean loss.

        W' = W - lr G,   don = ||W'|| - ||W||,   nod = ||W' - W||   (Frobenius norms)

    G is the gradient of the mean cross-entropy over the response's tokens with respect to W. Both follow in
    closed form from last hidden states and logits: nod = lr ||G||, and with q = -2 lr <W, G> + lr² ||G||²
    don = q / (sqrt(||W||² + q) + ||W||), which loses no digits where the naive difference is rounding
    noise. No backward pass, no vocabulary × hidden tensor. Larger `don` and smaller `nod` are preferred:
    Topsis(columns={"donod.don": "max", "donod.nod": "min"}, budget="30%").

    Where the output layer is tied to the input embedding, only its role as output layer is counted. Biases,
    logit scales and soft caps are taken into account.

    Hu et al. 2025, "Efficient and Generalizable Instruction Fine-Tuning via Model-Intrinsic Dataset
    Pruning" (DONOD), arXiv 2504.14810. The paper leaves optimiser, learning rate and weights open; the
    selection does not depend on an ordinary learning rate. No public code was found.
    """

    reads: ClassVar[tuple[str, ...]] = ("text", "prompt", "response")
    summary: ClassVar[str] = "change of the output layer's norm, and norm of its change, in one step"
    formula: ClassVar[str] = "don = ||W - lr G|| - ||W||, nod = lr ||G||, G = d mean loss / d W"
    paper: ClassVar[str] = "DONOD 2025, arXiv 2504.14810"

    lr: float = Field(1e-5, gt=0, description="learning rate of the step")

    def columns(self) -> dict[str, pl.DataType]:
        """`donod.don` and `donod.nod`, in units of the weights."""
        return {"donod.don": pl.Float64(), "donod.nod": pl.Float64()}

    def ask(self, row: Mapping[str, str | None], tokenizer: Any) -> Asking | str:
        """Prompt and response as one sequence."""
        from karat.scorers.model.asking import asking
        from karat.scorers.model.tokens import response_given_prompt

        return asking(response_given_prompt(row, tokenizer, self.max_tokens))

    def reduce(self, states: States) -> tuple[float, float]:
        """DON and NOD."""
        from karat.scorers.output_step import output_gradient, step_norms

        return step_norms(output_gradient(states), _norm(states.head), self.lr)

    def conclude(self, reduced: Sequence[tuple[float, float]]) -> dict[str, Any] | str:
        """The only sequence's."""
        don, nod = reduced[0]
        return {"donod.don": don, "donod.nod": nod}


@lru_cache(maxsize=8)
def _norm(head: Head) -> float:
    from karat.scorers.output_step import frobenius

    return frobenius(head)

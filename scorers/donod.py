"""DONOD: what one update on a sample does to the norm of the output layer."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self
from weakref import WeakKeyDictionary

import polars as pl
from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from karat.scorers.model.decoder_scorer import DecoderScorer

if TYPE_CHECKING:
    from karat.scorers.model.asking import Asking
    from karat.scorers.model.head import Head
    from karat.scorers.model.states import States


class Donod(DecoderScorer):
    """DON and NOD of the output layer W under one step on the sample's mean loss.

        W' = W - lr U,   don = ||W'|| - ||W||,   nod = ||W' - W||   (Frobenius norms)

    sgd: U = G, the gradient of the mean cross-entropy over the response's tokens with respect to W; tokens
    of the prompt and a bias of the layer have no part in it. Both numbers follow in closed form from last
    hidden states and logits, without a backward pass and without a vocabulary × hidden tensor: nod =
    lr ||G||, and with q = -2 lr <W, G> + lr² ||G||², don = q / (sqrt(||W||² + q) + ||W||). The naive
    difference of two norms is rounding noise for models of ordinary size, this form is not, also where the
    model runs in 16 bits. Logit scales and soft caps are differentiated through; an output layer that is
    not linear, or quantised, is refused with a ScoreError.

    Larger `don` and smaller `nod` are preferred: Topsis(columns={"donod.don": "max", "donod.nod": "min"},
    budget="30%"). With sgd the selection hardly depends on lr as long as lr ||G||² is small beside
    2 |<W, G>|; don is about -lr <W, G> / ||W||, cross-entropy less entropy with its sign turned.

    tied, for models whose output layer is the input embedding as well: `head` counts its role as output
    layer only. `exact` adds the gradient of its other role, as a real update would. That takes one
    backward pass through the decoder for each row, row by row, and a pass of its own: several times the
    time and memory of `head`. No difference where there are two matrices.

    adamw is another criterion, not a refinement: AdamW's first step from a state of zeros is U = G / (|G| +
    eps) + weight_decay W elementwise, whatever the betas, so each weight moves by lr unless its gradient
    is down at eps. nod then counts weights whose gradient is above eps, and don asks about signs. It needs
    every element of G, made in chunks over the vocabulary: about the time of a backward pass of the layer.

    Hu et al. 2025, "Efficient and Generalizable Instruction Fine-Tuning via Model-Intrinsic Dataset
    Pruning" (DONOD), arXiv 2504.14810. Its method section could not be read: the definition follows public
    reviews of it, and optimiser, learning rate and weights are open there. No public code was found.
    """

    reads: ClassVar[tuple[str, ...]] = ("text", "prompt", "response")
    summary: ClassVar[str] = "change of the output layer's norm, and norm of its change, in one step"
    formula: ClassVar[str] = "don = ||W - lr U|| - ||W||, nod = lr ||U||; sgd: U = G = d mean loss / d W"
    paper: ClassVar[str] = "DONOD 2025, arXiv 2504.14810"

    lr: float = Field(1e-5, gt=0, description="learning rate of the step")
    optimizer: Literal["sgd", "adamw"] = Field("sgd", description="sgd, or the first step of AdamW")
    tied: Literal["head", "exact"] = Field(
        "head", description="tied embeddings: the output role only, or both (a backward pass for each row)"
    )
    eps: float = Field(1e-8, gt=0, description="eps of AdamW")
    weight_decay: float = Field(0.0, ge=0, description="decoupled weight decay of AdamW")

    @model_validator(mode="after")
    def _settings_have_an_effect(self) -> Self:
        if self.optimizer == "sgd" and (self.eps != 1e-8 or self.weight_decay):
            raise PydanticCustomError("optimizer", "`eps` and `weight_decay` belong to optimizer: adamw")
        return self

    def columns(self) -> dict[str, pl.DataType]:
        """`donod.don` and `donod.nod`, in units of the weights."""
        return {"donod.don": pl.Float64(), "donod.nod": pl.Float64()}

    def shares(self) -> Hashable | None:
        """`tied: exact` has a pass of its own."""
        return super().shares() if self.tied == "head" else None

    def ask(self, row: Mapping[str, str | None], tokenizer: Any) -> Asking | str:
        """Prompt and response as one sequence."""
        from karat.scorers.model.asking import asking
        from karat.scorers.model.tokens import response_given_prompt

        return asking(response_given_prompt(row, tokenizer, self.max_tokens))

    def score(self, rows: pl.DataFrame, prepared: Any) -> pl.DataFrame:
        """Ask the model about each row."""
        if self.tied == "head":
            return super().score(rows, prepared)
        from karat.scorers.model.asking import score_in_one_pass
        from karat.scorers.tied_step import TiedRunner

        with prepared.borrowed() as asked:
            runner = asked.runner
            if runner.head.tied:
                runner = TiedRunner(asked.model, runner)
            return score_in_one_pass([self], rows, asked.tokenizer, runner)[0]

    def reduce(self, states: States) -> tuple[float, float]:
        """DON and NOD."""
        from karat.scorers.output_step import adamw_direction, sgd_direction, step_norms
        from karat.scorers.tied_step import TiedStates

        embedding = states.embedding if isinstance(states, TiedStates) else None
        if self.optimizer == "sgd":
            direction = sgd_direction(states, embedding)
        else:
            direction = adamw_direction(states, self.eps, self.weight_decay, embedding)
        return step_norms(direction, _norm(states.head), self.lr)

    def conclude(self, reduced: Sequence[tuple[float, float]]) -> dict[str, Any] | str:
        """The only sequence's."""
        don, nod = reduced[0]
        return {"donod.don": don, "donod.nod": nod}


# The norm of each output layer in use, and the version of its weights, which a trainer may change.
_NORMS: WeakKeyDictionary[Head, tuple[int, float]] = WeakKeyDictionary()


def _norm(head: Head) -> float:
    from karat.scorers.output_step import frobenius

    version = 0 if head.weight_vd.is_inference() else head.weight_vd._version
    known = _NORMS.get(head)
    if known is None or known[0] != version:
        known = _NORMS[head] = (version, frobenius(head))
    return known[1]

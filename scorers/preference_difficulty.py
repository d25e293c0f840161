"""How clearly a model itself prefers the chosen answer to the rejected one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import polars as pl

from karat.scorers.model.decoder_scorer import DecoderScorer

if TYPE_CHECKING:
    from karat.scorers.model.asking import Asking
    from karat.scorers.model.states import States


class PreferenceDifficulty(DecoderScorer):
    """The reference margin of a preference pair: a model's log-probabilities, chosen against rejected.

        margin = log p(chosen | prompt) - log p(rejected | prompt)        nats, summed over the tokens
        margin_per_token = log p(chosen | prompt) / n - log p(rejected | prompt) / m

    n, m: tokens of the two answers. Small or negative margins are the hard pairs. The summed margin is what
    DPO's loss holds the policy's against, and is length in part; the mean per token is not. `chosen_nats`
    and `rejected_nats` are the answers' -log p, summed. Prompt, a line break and answer are tokenised apart,
    as for Loss. Where one of the answers is over `max_tokens` its beginning counts ("truncated").

    Margins choose pairs in several papers, which differ in whose margin and which end is kept. Diwan et
    al. 2025, "Clear Preferences Leave Traces", arXiv 2501.15109: the reference model's probabilities tell
    clear pairs, which are kept; that is the margin here. Qi et al. 2025, "Difficulty-Based Preference Data
    Selection by DPO Implicit Reward Gap", arXiv 2508.04149: small gaps of DPO's implicit rewards are kept.
    Deng et al. 2025, "Less is More", arXiv 2502.14560: large margins, implicit ones together with those of
    reward models. An implicit reward's margin is β (a policy's margin - its reference's): score with both
    models and subtract. As they disagree, direction and budget are left to the selector. `margin_per_token`
    is the reward margin of SimPO (Meng et al. 2024, arXiv 2405.14734) without its factor.
    """

    reads: ClassVar[tuple[str, ...]] = ("prompt", "response", "rejected")
    summary: ClassVar[str] = "log-probability of the chosen answer less that of the rejected one"
    formula: ClassVar[str] = "log p(chosen | prompt) - log p(rejected | prompt), summed and per token"
    paper: ClassVar[str] = "Diwan et al. 2025, Clear Preferences Leave Traces, arXiv 2501.15109"
    served: ClassVar[bool] = True
    """Log-probabilities are enough, so that a server can answer."""

    def columns(self) -> dict[str, pl.DataType]:
        """Margins and the two sums, in nats."""
        names = ("margin", "margin_per_token", "chosen_nats", "rejected_nats")
        return {f"preference_difficulty.{name}": pl.Float64() for name in names}

    def ask(self, row: Mapping[str, Any], tokenizer: Any) -> Asking | str:
        """Prompt and chosen answer, prompt and rejected answer."""
        from karat.scorers.model.asking import Asking
        from karat.scorers.model.runner import Request
        from karat.scorers.model.tokens import response_given_prompt

        requests, truncated = [], False
        for side, name in (("response", "chosen"), ("rejected", "rejected")):
            if not row[side]:
                return f"no {name} answer"
            pair = {"prompt": row["prompt"], "response": row[side]}
            found = response_given_prompt(pair, tokenizer, self.max_tokens)
            if isinstance(found, str):
                return f"{found} ({name})" if found == "no token to predict" else found
            # What stands before the first answered token is the same for both, and runs once.
            requests.append(Request(found.ids, found.predicting, prefix=found.predicting[0]))
            truncated |= found.truncated
        return Asking(tuple(requests), truncated)

    def reduce(self, states: States) -> tuple[float, int]:
        """-log p of one answer, and its tokens."""
        return float(states.nats_n.double().sum()), states.nats_n.shape[0]

    def conclude(self, reduced: Sequence[tuple[float, int]]) -> dict[str, Any] | str:
        """Chosen less rejected."""
        (chosen, n), (rejected, m) = reduced
        values = (rejected - chosen, rejected / m - chosen / n, chosen, rejected)
        return dict(zip(self.columns(), values, strict=True))

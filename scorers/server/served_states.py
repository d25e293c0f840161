"""What a server tells of a sequence, in the place of a model's states: log-probabilities and nothing else."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from karat.scorers.server.completions import TOP, Answer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


@dataclass(frozen=True, eq=False)
class ServedStates:
    """One sequence at the positions that were asked for, [n]; only scorers with `served` can use it."""

    positions: Tensor
    """[n] places in the sequence, ascending."""
    next_n: Tensor
    """[n] the token that follows each position; -1 after the last."""
    answer: Answer = field(repr=False)
    tokenizer: Any = field(repr=False)
    by_id: bool = True
    """Whether the server names tokens `token_id:7` rather than by their text."""

    def at(self, positions: Tensor) -> ServedStates:
        """The same for some of the positions."""
        import torch

        rows = torch.searchsorted(self.positions, positions)
        return ServedStates(positions, self.next_n[rows], self.answer, self.tokenizer, self.by_id)

    @property
    def nats_n(self) -> Tensor:
        """[n] −log p(next token), in nats, float64."""
        import torch

        if bool((self.next_n < 0).any()):
            raise ValueError("nothing follows the last position")
        return -torch.tensor(self.answer.following, dtype=torch.float64)[self.positions]

    def next_log_probabilities(self, tokens: Sequence[int]) -> tuple[float, ...] | str:
        """[k] log p of some tokens after the whole sequence, or which of them the server did not name."""
        found = []
        for token in tokens:
            text = self.tokenizer.decode([token])
            # By its text, as it stands or as the vocabulary spells it.
            names = (
                [f"token_id:{token}"] if self.by_id else [text, self.tokenizer.convert_ids_to_tokens(token)]
            )
            value = next((self.answer.next[name] for name in names if name in self.answer.next), None)
            if value is None:
                shown = text.strip()
                which = f"digit {shown}" if shown.isdigit() else f"token {shown!r}"
                return f"{which} is not among the {TOP} most likely tokens"
            found.append(value)
        return tuple(found)

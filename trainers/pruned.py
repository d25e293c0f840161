"""InfoBatch as a sampler: pruned rows are skipped, so that their forward pass is saved."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from karat.errors import WeightError
from karat.reweight.online.draws import uniform
from karat.reweight.online.info_batch import InfoBatch, visited

if TYPE_CHECKING:
    from karat.parts import State


class PrunedSampler(torch.utils.data.Sampler[int]):
    """Draw the rows that InfoBatch keeps of an epoch, shuffled; for a loop of your own.

        sampler = PrunedSampler(len(data), InfoBatch(epochs=10))
        for epoch in range(10):
            for batch in DataLoader(numbered_data, sampler=sampler, ...):
                losses = ...                                   # of each sample
                weights = sampler.weigh(batch.rows, losses)
                (weights * losses).mean().backward()

    The weights are 1/(1 - r) for easy survivors and 1 for the rest, both times |S| / N, |S| of N rows being
    drawn in this epoch: then the mean over any batch of survivors has the expectation of the mean over all
    data, (1/|S|) sum_S (|S|/N) w_i g_i = (1/N) sum_S w_i g_i. Public code leaves |S|/N out, which lengthens
    each step by its inverse, while an epoch has that many fewer steps.
    The draw of an epoch is made when its iteration starts, with the losses of the last time each row was
    trained on, by `InfoBatch.drawn`: a function of (seed, row, visit). The order is one of (seed, row,
    epoch).

    n_rows: rows of the data set. `state_dict` and `load_state_dict` go into a checkpoint between epochs.
    With several processes each has to be given the losses of all. Raises WeightError for rows of the wrong
    shape, and where `weigh` is called for rows that this epoch has not drawn.
    Paper: Qin et al., ICLR 2024, arXiv 2303.04947.
    """

    def __init__(self, n_rows: int, rule: InfoBatch) -> None:
        self.n_rows, self.rule, self.epoch = n_rows, rule, 0
        self.state: State = rule.init(n_rows)
        self._weights = torch.ones(n_rows)

    def __len__(self) -> int:
        """Rows of the epoch that was drawn last; all of them before the first."""
        return int(self._weights.count_nonzero())

    def __iter__(self) -> Iterator[int]:
        rows = torch.arange(self.n_rows)
        weights = self.rule.drawn(rows, self.state)
        skipped = weights == 0
        self.state = visited(rows, torch.zeros(self.n_rows), skipped, ~skipped, self.state)
        kept = rows[~skipped]
        self._weights = weights * (len(kept) / self.n_rows)
        # A third key, so that the order is independent of what is pruned.
        order = uniform(self.rule.seed, kept, torch.full_like(kept, self.epoch), torch.ones_like(kept))
        self.epoch += 1
        yield from kept[order.argsort(stable=True)].tolist()

    def weigh(self, rows: torch.Tensor, losses: torch.Tensor) -> torch.Tensor:
        """Weights [B] float32 of rows [B] int64 of this epoch; notes their losses [B], in nats."""
        if rows.ndim != 1 or rows.shape != losses.shape:
            raise WeightError(f"{list(rows.shape)} rows have losses of shape {list(losses.shape)}")
        here, values = rows.cpu(), losses.detach().float().cpu()
        weights = self._weights[here]
        if (weights == 0).any():
            raise WeightError(
                f"row {int(here[weights == 0][0])} was not drawn in this epoch", hint="weigh what was sampled"
            )
        present = values.isfinite()
        after = visited(here, values.where(present, torch.zeros(())), present, present, self.state)
        self.state = {**after, "step": self.state["step"] + 1}
        return weights.to(losses.device)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """What a checkpoint between two epochs has to hold."""
        return {**self.state, "epoch": torch.tensor(self.epoch)}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Go on from `state_dict`."""
        if state["losses"].shape != (self.n_rows,):
            raise WeightError(f"the state is that of {len(state['losses'])} rows, there are {self.n_rows}")
        self.state = {name: value.clone() for name, value in state.items() if name != "epoch"}
        self.epoch = int(state["epoch"])

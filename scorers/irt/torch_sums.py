"""The sums over responses as matrix products on a GPU (or on the CPU, to check them)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from karat.errors import ConfigError
from karat.scorers.irt.curves import chances
from karat.scorers.irt.lattice import Windows
from karat.scorers.irt.response_blocks import Block, Lists, Responses
from karat.scorers.irt.response_source import Floats
from karat.scorers.irt.sums import NodeCounts, Sums

if TYPE_CHECKING:
    import torch

WORTHWHILE = 20_000_000
"""Responses from which `device: auto` takes a GPU."""


class TorchSums(Sums):
    """The same sums as `Sums`, in float64, from dense blocks that stay on the device.

    Every node's likelihood is computed for every subject, which wastes work and suits a GPU. Four bytes of
    device memory for each subject and item.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self._dense: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def log_likelihoods(self, responses: Responses, items: Floats, windows: Windows) -> Floats:
        """[P, width] log likelihood of each row's responses at its nodes."""
        import torch

        n = windows.start.size
        total = torch.zeros((n, windows.theta.size), dtype=torch.float64, device=self.device)
        for block in responses.blocks:
            p = np.clip(chances(items[block.first : block.last], windows.theta), 1e-300, 1 - 1e-16)
            failed = self._there(np.log1p(-p))
            gain = self._there(np.log(p)) - failed
            solved, answered = self._codes(block, n)
            total += answered.double() @ failed
            total += solved.double() @ gain
        index = self._there(windows.index)
        out: Floats = total.gather(1, index).cpu().numpy()
        return out

    def node_counts(
        self, block: Block, weights: Floats, mean: Floats, copies: Floats, windows: Windows, plain: bool
    ) -> NodeCounts:
        """Expected counts of one block; weights: [P, width] times copies; mean: [P] posterior means."""
        import torch

        n = windows.start.size
        spread = torch.zeros((n, windows.theta.size), dtype=torch.float64, device=self.device)
        spread.scatter_(1, self._there(windows.index), self._there(weights))
        solved, answered = self._codes(block, n)
        counts = (solved.double().T @ spread).cpu().numpy()
        seen = (answered.double().T @ spread).cpu().numpy()
        return NodeCounts(seen, counts[:0] if plain else counts, counts.sum(axis=1), counts @ windows.theta)

    def _there(self, array: NDArray[Any]) -> torch.Tensor:
        import torch

        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

    def _codes(self, block: Block, n: int) -> tuple[torch.Tensor, torch.Tensor]:
        """[P, J] int16: how often each item of the block was solved, and answered."""
        if block.first not in self._dense:
            solved = self._counted(block.solved, n, block.last - block.first)
            listed = self._counted(block.listed, n, block.last - block.first)
            self._dense[block.first] = (solved, 1 - listed if block.complete else listed)
        return self._dense[block.first]

    def _counted(self, lists: Lists, n: int, width: int) -> torch.Tensor:
        import torch

        row = np.repeat(lists.rows.astype(np.int64), np.diff(lists.offsets))
        cells = self._there(row * width + lists.items)
        counted = torch.zeros(n * width, dtype=torch.int16, device=self.device)
        counted.index_add_(0, cells, torch.ones_like(cells, dtype=torch.int16))
        return counted.reshape(n, width)


def sums_on(device: str, responses: int) -> Sums:
    """The sums for `auto`, `cpu` or a torch device."""
    if device == "cpu":
        return Sums()
    if device == "auto" and responses < WORTHWHILE:
        return Sums()
    import torch

    if device == "auto":
        return TorchSums("cuda") if torch.cuda.is_available() else Sums()
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(
            "torch sees no GPU here", where="irt, device", hint="use device: auto, or device: cpu"
        )
    return TorchSums(device.removeprefix("torch-"))

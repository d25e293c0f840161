"""What every way has to do around a forward pass."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from karat.trainers.cargo import Cargo
    from karat.trainers.step import WeightedStep


class Route(ABC):
    """Called around the forward pass of a training batch that carries its rows."""

    shifted: bool = False
    """Whether scored places are counted without each entry's first label."""
    stock_ignores_window: bool = False
    """Whether the stock loss is a mean of the micro-batch even where the Trainer tells the window's size."""

    @abstractmethod
    def enter(self, step: WeightedStep, cargo: Cargo, kwargs: dict[str, Any]) -> None:
        """Before: prepare; `kwargs` are those of the model and may be changed."""

    @abstractmethod
    def leave(self, step: WeightedStep, cargo: Cargo, output: Any) -> Any:
        """After: the output, weighted if it was not yet. Must set `cargo.weights`."""

    def restore(self) -> None:
        """Put everything back; does nothing the second time."""
        return

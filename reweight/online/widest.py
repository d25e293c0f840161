"""The widest float of a device."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def widest(values: torch.Tensor) -> torch.dtype:
    """float64 where the device has it, else float32: a root or a large exponent keeps its last digits."""
    import torch

    return torch.float32 if values.device.type == "mps" else torch.float64

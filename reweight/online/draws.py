"""Random numbers as a function of keys, on any device: no generator whose state a resume could lose."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as int64
_FIRST = -4658895280553007687  # 0xBF58476D1CE4E5B9
_SECOND = -7723592293110705685  # 0x94D049BB133111EB


def splitmix64(keys: torch.Tensor) -> torch.Tensor:
    """The first output of SplitMix64 seeded with each key; int64, read as 64 bits.

    Paper: Steele, Lea, Flood, OOPSLA 2014, "Fast splittable pseudorandom number generators", figure 17 with
    the constants of Vigna's public code. Multiplication wraps; shifts are made logical by a mask.
    """
    bits = keys + _GOLDEN
    bits = (bits ^ _shifted(bits, 30)) * _FIRST
    bits = (bits ^ _shifted(bits, 27)) * _SECOND
    return bits ^ _shifted(bits, 31)


def _shifted(bits: torch.Tensor, by: int) -> torch.Tensor:
    return (bits >> by) & ((1 << (64 - by)) - 1)


def uniform(seed: int, *keys: torch.Tensor) -> torch.Tensor:
    """Uniform numbers in [0, 1), multiples of 2^-24 and so exact in float32, one per tuple of int64 keys."""
    import torch

    bits = splitmix64(torch.full_like(keys[0], seed))
    for key in keys:
        bits = splitmix64(bits ^ key)
    return _shifted(bits, 40).float() * 2.0**-24

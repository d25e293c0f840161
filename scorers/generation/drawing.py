"""Drawing the next token so that it depends on its own context and key, and on nothing else in the batch.

The largest of log p(t) + g_t with independent Gumbel noise g is a draw from p (Gumbel 1954; Maddison et al.
2014, "A* sampling"). The noise of a token is a function of (seed, query, number, position, token), so a
response stays the same in any batch, in any order and after a kill, up to the rounding of the logits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from karat.scorers.generation.settings import Generation

# SplitMix64: Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators", figure 16.
_GAMMA, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


class Drawing:
    """A processor of logits for `generate`: leaves each row only the token that was drawn.

    keys: what names the random numbers of each row, see `key_of_row`; prompt_length: padded, so that the
    position of a token in its response is known. Needs greedy decoding.
    """

    def __init__(self, generation: Generation, keys: Sequence[bytes], prompt_length: int) -> None:
        self.generation = generation
        self.keys = keys
        self.prompt_length = prompt_length
        self.broken_b: Tensor | None = None
        """[B] whether a row's logits were once no numbers."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """[B, V] zero at the drawn token, −∞ elsewhere."""
        device = scores.device
        # No float64 on Apple's GPUs.
        scores_bv = (scores.cpu() if device.type == "mps" else scores).double()
        broken_b = torch.isnan(scores_bv).any(-1) | ~(scores_bv.amax(-1) < torch.inf)
        broken_b |= ~(scores_bv.amax(-1) > -torch.inf)
        self.broken_b = broken_b if self.broken_b is None else self.broken_b | broken_b
        position = input_ids.shape[1] - self.prompt_length
        drawn_b = self.draw(torch.where(broken_b[:, None], 0.0, scores_bv), position)
        left_bv = torch.full_like(scores, -torch.inf)
        return left_bv.scatter_(1, drawn_b.to(device)[:, None], 0.0)

    def draw(self, logits_bv: Tensor, position: int) -> Tensor:
        """[B] the token of each row at a position of its response; ties go to the lower id."""
        generation = self.generation
        if generation.temperature == 0:
            return logits_bv.argmax(-1)
        logits_bv = logits_bv / generation.temperature
        if generation.top_p < 1:
            logits_bv = logits_bv.masked_fill(~nucleus(logits_bv.softmax(-1), generation.top_p), -torch.inf)
        words = [hashlib.blake2b(b"%d:%s" % (position, key), digest_size=8).digest() for key in self.keys]
        keys_b = torch.tensor([int.from_bytes(word, "little", signed=True) for word in words])
        noise_bv = gumbel(keys_b.to(logits_bv.device), logits_bv.shape[-1])
        return (logits_bv + noise_bv).argmax(-1)


def key_of_row(seed: int, query: str, number: int) -> bytes:
    """What names the random numbers of one response."""
    return hashlib.blake2b(f"{seed}:{number}:{query}".encode("utf-8", "replace"), digest_size=16).digest()


def nucleus(p_bv: Tensor, top_p: float) -> Tensor:
    """[B, V] the smallest set of most likely tokens whose probabilities sum to `top_p` or more.

    Holtzman et al. 2020, "The curious case of neural text degeneration", section 3.1. Among equal
    probabilities the lower id goes first; the most likely token is always in it.
    """
    sorted_bv, order_bv = p_bv.sort(dim=-1, descending=True, stable=True)
    kept_bv = torch.ones_like(sorted_bv, dtype=torch.bool)
    kept_bv[..., 1:] = sorted_bv.cumsum(-1)[..., :-1] < top_p
    return torch.zeros_like(kept_bv).scatter_(-1, order_bv, kept_bv)


def gumbel(keys_b: Tensor, size: int) -> Tensor:
    """[B, size] standard Gumbel noise, float64: the first numbers of SplitMix64 from each key (int64)."""
    steps_v = torch.arange(1, size + 1, device=keys_b.device) * _signed(_GAMMA)
    mixed = keys_b[:, None] + steps_v
    mixed = (mixed ^ _right(mixed, 30)) * _signed(_FIRST)
    mixed = (mixed ^ _right(mixed, 27)) * _signed(_SECOND)
    mixed = mixed ^ _right(mixed, 31)
    # 52 bits and a half step, so that neither 0 nor 1 can come out.
    uniform_bv = (_right(mixed, 12).double() + 0.5) * 2.0**-52
    return -(-uniform_bv.log()).log()


def _right(value: Tensor, bits: int) -> Tensor:
    """Shift to the right that fills with zeros, also where the sign bit is set."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value

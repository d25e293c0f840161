"""Beginnings that several sequences share: run once, and their keys and values given to each that goes on."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from karat.scorers.model.batches import Batch, Ids

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3}
"""Largest difference, relative to the largest hidden state; 5e-2 for 16 bits."""


@dataclass(frozen=True, eq=False)
class Beginnings:
    """Keys and values of some beginnings, each ending at the last place.

    With nothing between a beginning and what follows it, the distance of two places is that of their
    tokens, which sliding windows count on.
    """

    heads: tuple[Ids, ...]
    layers: tuple[tuple[Tensor, Tensor], ...]
    """(keys, values) of each layer, [heads, k, places, width]."""


def begin(decoder: Any, heads: tuple[Ids, ...], device: torch.device) -> Beginnings:
    """Run the beginnings in one batch."""
    from transformers import DynamicCache

    # Without the model's configuration it keeps every place of every layer, whatever the window.
    cache = DynamicCache()
    decoder(input_ids=right_padded(heads).to(device), past_key_values=cache, use_cache=True)
    deepest = max(map(len, heads))
    place = torch.arange(deepest)
    from_bp = torch.stack([(place - (deepest - len(head))) % deepest for head in heads]).to(device)
    row_b = torch.arange(len(heads), device=device)[:, None]
    kept: list[Any] = cache.layers
    layers = tuple(
        (_shifted(layer.keys, row_b, from_bp), _shifted(layer.values, row_b, from_bp)) for layer in kept
    )
    return Beginnings(heads, layers)


def go_on(decoder: Any, begun: Beginnings, batch: Batch, device: torch.device) -> Tensor:
    """[b, t, d] hidden states of what follows the beginnings, each row from place 0 on."""
    from transformers import DynamicCache

    deepest = max(batch.starts)
    which = {head: row for row, head in enumerate(begun.heads)}
    pairs = list(zip(batch.rows, batch.starts, strict=True))
    rows_b = torch.tensor([which[ids[:start]] for ids, start in pairs], device=device)
    cache = DynamicCache()
    for index, (keys, values) in enumerate(begun.layers):
        cache.update(keys[rows_b, :, -deepest:], values[rows_b, :, -deepest:], index)
    ids_bt = right_padded([ids[start:] for ids, start in pairs])
    # Padding on the right may be attended to: only padding is behind it, and a place that sees nothing, as
    # within a sliding window, would give NaN, which spreads.
    depth_b = torch.tensor(batch.starts)[:, None]
    mask_bp = (torch.arange(deepest + ids_bt.shape[1]) >= deepest - depth_b).long()
    # Padding stays inside the positions that the model knows.
    last_b = torch.tensor([len(ids) - 1 for ids, _ in pairs])[:, None]
    places_bt = (depth_b + torch.arange(ids_bt.shape[1])).minimum(last_b)
    out = decoder(
        input_ids=ids_bt.to(device),
        attention_mask=mask_bp.to(device),
        position_ids=places_bt.to(device),
        past_key_values=cache,
        use_cache=True,
    )
    hidden: Tensor = out.last_hidden_state
    return hidden


def right_padded(rows: Sequence[Ids]) -> Tensor:
    """[b, t] token ids, each row filled up with its last token: a known one, and none that means padding."""
    longest = max(map(len, rows))
    return torch.tensor([[*ids, *ids[-1:] * (longest - len(ids))] for ids in rows], dtype=torch.long)


def can_share(decoder: Any, tokens: int, device: torch.device) -> bool:
    """Whether going on from kept keys and values gives what the whole sequences give: tried, not assumed."""
    accepted = inspect.signature(decoder.forward).parameters
    if not {"past_key_values", "position_ids", "attention_mask"} <= set(accepted):
        return False
    rows = tuple(tuple((7 * row + 3 * place + 1) % tokens for place in range(9 - row)) for row in range(3))
    batch = Batch(rows, (5, 3, 4), tuple(ids[:start] for ids, start in zip(rows, (5, 3, 4), strict=True)))
    try:
        whole = decoder(input_ids=right_padded(rows).to(device), use_cache=False).last_hidden_state
        parts = go_on(decoder, begin(decoder, batch.heads, device), batch, device)
    except (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError):
        return False  # a memory of another kind than keys and values: each sequence runs whole
    near = TOLERANCE.get(whole.dtype, 5e-2) * float(whole.abs().max())
    return all(
        float((whole[row, start : len(ids)] - parts[row, : len(ids) - start]).abs().max()) <= near
        for row, (ids, start) in enumerate(zip(batch.rows, batch.starts, strict=True))
    )


def _shifted(found_bkpd: Tensor, row_b: Tensor, from_bp: Tensor) -> Tensor:
    return found_bkpd.transpose(1, 2)[row_b, from_bp].transpose(1, 2)

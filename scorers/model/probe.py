"""Two short questions to a model that was just loaded: is it causal, and are its logits its head's."""

from __future__ import annotations

from typing import Any

import torch

from karat.errors import ScoreError
from karat.scorers.model.head import Head, decoder_of

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3}
"""Largest difference, relative to the largest number; 5e-2 for 16 bits."""


def probe(model: Any, head: Head) -> None:
    """Raise ScoreError for a model that sees what follows, or that shapes its logits in an unknown way.

    What scorers compute rests on both, and would be wrong without a word. NaN passes: it is a failed score.
    """
    decoder = decoder_of(model)
    device = decoder.get_input_embeddings().weight.device
    some = [place % head.vocabulary for place in (1, 2, 3, 4)]
    ids_bt = torch.tensor([[*some], [*some[:3], 5 % head.vocabulary]], device=device)
    with torch.inference_mode():
        hidden_btd = decoder(input_ids=ids_bt, use_cache=False).last_hidden_state
        said_tv = model(input_ids=ids_bt[:1], use_cache=False).logits[0]
        found_tv = head.logits(hidden_btd[0].to(head.weight_vd.device), slice(None)).to(said_tv.device)
    near = TOLERANCE.get(hidden_btd.dtype, 5e-2)
    if _apart(hidden_btd[0, :3], hidden_btd[1, :3], near):
        raise ScoreError(
            f"{type(model).__name__} sees the tokens that follow: it is no causal language model",
            where="model",
            hint="give a decoder, such as Llama, Qwen, Gemma or GPT-2",
        )
    if said_tv.shape != found_tv.shape or _apart(said_tv, found_tv, near):
        raise ScoreError(
            f"the logits of {type(model).__name__} are not its output layer times its last hidden states",
            where="model",
            hint="this architecture shapes its logits in a way that karat does not know",
        )


def _apart(one: torch.Tensor, other: torch.Tensor, near: float) -> bool:
    one, other = one.double(), other.double()
    return float((one - other).abs().max()) > near * max(1e-3, float(one.abs().max()))

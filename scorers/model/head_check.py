"""Whether a model's logits are what its output layer says they are."""

from __future__ import annotations

from typing import Any

import torch

from karat.errors import ScoreError
from karat.scorers.model.head import Head

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3}
"""Largest difference of logits, relative to the largest logit; 5e-2 for 16 bits."""


def check_head(model: Any, head: Head) -> None:
    """Raise ScoreError where the model's logits differ from `head` applied to its last hidden states.

    Two tokens are run. Some architectures divide hidden states or multiply logits by settings of their
    own, and what is computed from the output layer alone would be wrong without a word.
    """
    ids = torch.tensor([[0, min(1, head.vocabulary - 1)]], device=head.weight_vd.device)
    with torch.inference_mode():
        said = model(input_ids=ids, use_cache=False).logits[0].float()
        hidden = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state[0]
        found = head.logits(hidden, slice(None)).to(said)
    close = TOLERANCE.get(hidden.dtype, 5e-2) * float(said.abs().max().clamp(min=1e-3))
    if said.shape != found.shape or not float((said - found).abs().max()) <= max(close, 1e-6):
        raise ScoreError(
            f"the logits of {type(model).__name__} are not its output layer times its last hidden states",
            where="model",
            hint="this architecture shapes its logits in a way that karat does not know",
        )

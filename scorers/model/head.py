"""From last hidden states to logits: where they are needed, in chunks over the vocabulary, in float32."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from karat.errors import ScoreError

CHUNK_BYTES = 64 << 20
"""Most bytes of logits that one chunk may hold, and of weights converted for it; on a CPU an eighth of it,
which stays in its caches."""
OUT_DTYPE = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 8)
"""Whether torch.mm multiplies 16-bit matrices on a GPU into a wider result."""


@dataclass(frozen=True, eq=False)
class Head:
    """The output layer z = cap · tanh(scale · (W h + b) / cap), with W [V, d], b [V] or none.

    Products are accumulated and kept in float32 (float64 where the model is), whatever the dtype of the
    weights. Suffixes: n = positions, d = hidden width, v = vocabulary or a part of it.
    """

    weight_vd: Tensor
    bias_v: Tensor | None = None
    scale: float = 1.0
    cap: float | None = None
    tied: bool = False
    """Whether the input embedding is the same matrix."""

    @property
    def vocabulary(self) -> int:
        """V."""
        return self.weight_vd.shape[0]

    def logits(self, hidden_nd: Tensor, tokens_k: Tensor | slice) -> Tensor:
        """[n, k] logits of some tokens."""
        raw = self.products(hidden_nd, tokens_k)
        if self.bias_v is not None:
            raw += self.bias_v[tokens_k].to(raw.dtype)
        return self.shaped(raw)

    def products(self, hidden_nd: Tensor, tokens_k: Tensor | slice) -> Tensor:
        """[n, k] W h of some tokens, never rounded to 16 bits."""
        weight_kd = self.weight_vd[tokens_k]
        wide = accumulator(weight_kd.dtype)
        if weight_kd.is_cuda and weight_kd.dtype != wide and OUT_DTYPE:
            return torch.mm(hidden_nd.to(weight_kd.dtype), weight_kd.T, out_dtype=wide)
        return hidden_nd.to(wide) @ weight_kd.to(wide).T

    def chunks(self, hidden_nd: Tensor) -> Iterator[tuple[int, Tensor]]:
        """(first token, [n, c] logits) over the whole vocabulary, each chunk of bounded size."""
        for start, stop in self.spans(hidden_nd.shape[0]):
            yield start, self.logits(hidden_nd, slice(start, stop))

    def spans(self, positions: int) -> Iterator[tuple[int, int]]:
        """First and one past the last token of each chunk, for so many positions."""
        # A chunk of 16-bit weights is converted where the device cannot multiply into a wider type.
        per_token = max(1, positions, self.weight_vd.shape[1] if self.weight_vd.itemsize < 4 else 1)
        most = CHUNK_BYTES if self.weight_vd.is_cuda else CHUNK_BYTES // 8
        wide = max(1, most // (max(4, self.weight_vd.itemsize) * per_token))
        for start in range(0, self.vocabulary, wide):
            yield start, min(start + wide, self.vocabulary)

    def slope(self, logits: Tensor) -> Tensor:
        """d logit / d (W h + b), from the logit itself."""
        if self.cap is None:
            return torch.full_like(logits, self.scale)
        return self.scale * (1 - (logits / self.cap) ** 2)

    def shaped(self, raw: Tensor) -> Tensor:
        """Logits from W h + b: scaled, then capped."""
        scaled = raw * self.scale if self.scale != 1.0 else raw
        return scaled if self.cap is None else self.cap * torch.tanh(scaled / self.cap)


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """Where sums are kept: float64 for a float64 model, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def head_of(model: Any) -> Head:
    """The head of a causal language model; raises ScoreError for one that is no plain linear layer."""
    layer = model.get_output_embeddings()
    weight = getattr(layer, "weight", None)
    if layer is None:
        raise ScoreError(
            f"{type(model).__name__} has no output layer over a vocabulary",
            where="model",
            hint="load it as a causal language model: AutoModelForCausalLM",
        )
    if (
        not isinstance(layer, torch.nn.Linear)
        or not isinstance(weight, Tensor)
        or not weight.is_floating_point()
    ):
        raise ScoreError(
            f"the output layer of {type(model).__name__} is {_kind(layer)}, not a linear layer",
            where="model",
            hint="merge the adapter into the model, or keep the output layer unquantised",
        )
    config = model.config.get_text_config()
    try:
        scale = float(getattr(config, "logit_scale", None) or 1.0) / float(
            getattr(config, "logits_scaling", None) or 1.0
        )
    except ValueError:
        scale = 1.0  # an architecture's own word; loading compares the logits
    cap = getattr(config, "final_logit_softcapping", None)
    embedding = model.get_input_embeddings()
    tied = embedding is not None and getattr(embedding, "weight", None) is weight
    return Head(weight, layer.bias, scale, float(cap) if cap else None, tied)


def decoder_of(model: Any) -> Any:
    """What gives the last hidden states that the head reads; raises ScoreError where there is no telling."""
    found = model.get_decoder()
    if found is model:  # Llama 4 looks under another name than that of its decoder
        found = getattr(model, "model", None)
    if found is None:
        raise ScoreError(
            f"{type(model).__name__} does not tell which part of it is the decoder",
            where="model",
            hint="this architecture is built in a way that karat does not know",
        )
    return found


def _kind(layer: Any) -> str:
    """The class of a layer, with where it comes from unless torch: an adapter's is named Linear as well."""
    kind = type(layer)
    own = kind.__module__.partition(".")[0] == "torch"
    return kind.__name__ if own else f"{kind.__module__}.{kind.__name__}"

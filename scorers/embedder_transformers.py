"""Embeddings from a transformers model: its last hidden states, pooled."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from karat.fitting import Arrays
from karat.scorers.embedder_models import ModelEmbedder, quiet, unusable
from karat.scorers.embedders import Encoded, Encoder

if TYPE_CHECKING:
    from pathlib import Path

    import torch

Pooling = Literal["weighted_mean", "mean", "last"]

MAX_TOKENS = 2048


class Transformers(ModelEmbedder):
    """Last hidden states h_1 ... h_L of a transformers model (after its final norm), pooled over the tokens.

        weighted_mean: sum_t t h_t / sum_t t      mean: sum_t h_t / L      last: h_L

    Tokens are those of the model's tokenizer with its special tokens; the text is taken as it is, without
    a chat format. A text of more than `max_tokens` tokens is embedded by its beginning and counted as
    truncated; one without tokens has the zero vector. Of an encoder-decoder the encoder is run.

    With `batch` 1 a text's vector depends on its tokens alone. Larger batches are padded on the right and
    masked: faster on a GPU, and vectors then differ by rounding with their neighbours. In what was tried
    cosines differed by less than 10⁻⁵ in float32, 10⁻² in bfloat16. The same goes for another device.

    Raises ScoreError for a model that is not there, has no weights in safetensors, lacks weights that its
    class needs, or has no tokenizer. No code of the model's is run unless trust_remote_code says so.

    Ivison et al. 2025, arXiv 2503.01807 (RDS+), section on representation-based selection: weighted_mean,
    after Muennighoff 2022, "SGPT", arXiv 2202.08904. Their code cuts at 2048 tokens, runs in bfloat16, and
    counts padding in as soon as a batch is padded.
    """

    summary: ClassVar[str] = "last hidden states of a transformers model, pooled (RDS+)"
    formula: ClassVar[str] = "weighted_mean: sum_t t h_t / sum_t t; mean: sum_t h_t / L; last: h_L"
    paper: ClassVar[str] = "Ivison et al. 2025, arXiv 2503.01807; Muennighoff 2022, SGPT, arXiv 2202.08904"

    pooling: Pooling = Field("weighted_mean", description="weighted_mean (by position), mean, or last token")
    max_tokens: int | None = Field(
        None,
        ge=1,
        description=f"tokens read of a text; default {MAX_TOKENS}, or the model's limit if smaller",
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="numbers of the model")
    batch: int = Field(1, ge=1, description="texts run together; above 1 vectors differ by rounding")
    trust_remote_code: bool = Field(False, description="run Python code that comes with the model")

    def load(self, fitted: Arrays | None) -> Encoder:
        """Load model and tokenizer; threads take turns with them."""
        import torch

        folder = self.files()
        with quiet():
            tokenizer = self._tokenizer(folder)
            model = self._model(folder).to(self.torch_device()).eval()
        limit = self._limit(model, tokenizer)
        lock = threading.Lock()

        def encode(texts: Sequence[str]) -> Encoded:
            with lock, torch.inference_mode():
                tokens, truncated = _tokens(tokenizer, texts, limit)
                vectors = np.zeros((len(texts), _width(model)), np.float32)
                # By length, so that a batch has little padding; a text without tokens keeps its zeros.
                order = sorted(
                    (place for place, ids in enumerate(tokens) if ids), key=lambda p: len(tokens[p])
                )
                for start in range(0, len(order), self.batch):
                    places = order[start : start + self.batch]
                    states, lengths = _hidden(model, [tokens[place] for place in places])
                    vectors[places] = pooled(states, lengths, self.pooling).cpu().numpy()
            return Encoded(vectors, truncated)

        return encode

    def _tokenizer(self, folder: Path) -> Any:
        from transformers import AutoTokenizer

        try:
            return AutoTokenizer.from_pretrained(
                str(folder), trust_remote_code=self.trust_remote_code, local_files_only=True
            )
        except Exception as error:  # the library raises bare Exception for a file it cannot read
            raise unusable(self.model, f"its tokenizer cannot be loaded: {_first_line(error)}") from error

    def _model(self, folder: Path) -> Any:
        import torch
        from transformers import AutoModel

        try:
            model, info = AutoModel.from_pretrained(
                str(folder),
                dtype=getattr(torch, self.dtype),
                use_safetensors=True,
                trust_remote_code=self.trust_remote_code,
                local_files_only=True,
                output_loading_info=True,
            )
        except Exception as error:  # what a damaged file raises is the library's choice
            raise unusable(self.model, _first_line(error)) from error
        # Weights that are missing would be drawn at random. The pooler of BERT comes after what is read here.
        missing = sorted(name for name in info["missing_keys"] if "pooler" not in name)
        if missing:
            raise unusable(
                self.model,
                f"{len(missing)} weights of {type(model).__name__} are missing, such as {missing[0]}",
            )
        return model.get_encoder() if model.config.is_encoder_decoder else model

    def _limit(self, model: Any, tokenizer: Any) -> int:
        limit = _position_limit(model, tokenizer)
        if self.max_tokens is None:
            return MAX_TOKENS if limit is None else min(MAX_TOKENS, limit)
        if limit is not None and self.max_tokens > limit:
            raise unusable(
                self.model,
                f"max_tokens is {self.max_tokens}, and it reads at most {limit} tokens",
                hint="leave max_tokens out, or make it smaller",
            )
        return self.max_tokens


def pooled(states: torch.Tensor, lengths: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    """[B, D] float32 from hidden states [B, T, D], of which the first `lengths` [B] count."""
    import torch

    positions = torch.arange(1, states.shape[1] + 1, device=states.device)
    real = positions <= lengths[:, None]
    if pooling == "last":
        weights = (positions == lengths[:, None]).float()
    else:
        weights = real * (positions.float() if pooling == "weighted_mean" else 1.0)
        weights = weights / weights.sum(dim=1, keepdim=True)
    # What stands at the padding may be anything, even NaN, and NaN times 0 is NaN.
    kept = states.float().masked_fill(~real[..., None], 0.0)
    return torch.bmm(weights[:, None], kept)[:, 0]


def _tokens(tokenizer: Any, texts: Sequence[str], limit: int) -> tuple[list[list[int]], Any]:
    """Token ids of each text, at most `limit`, and whether some were cut off [N]."""
    tokenizer.truncation_side = "right"
    ids = [list(tokenizer(text, verbose=False)["input_ids"]) for text in texts]
    truncated = np.array([len(one) > limit for one in ids], np.bool_)
    for place in np.flatnonzero(truncated).tolist():
        # The tokenizer cuts, as only it knows which special tokens stay at the end.
        ids[place] = list(tokenizer(texts[place], truncation=True, max_length=limit)["input_ids"])[:limit]
    return ids, truncated


def _hidden(model: Any, tokens: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Last hidden states [B, T, D] and lengths [B] of texts padded on the right."""
    import torch

    lengths = torch.tensor([len(ids) for ids in tokens], device=model.device)
    # The padding is masked, so that its token does not matter; 0 is in every vocabulary.
    padded = [ids + [0] * (int(lengths.max()) - len(ids)) for ids in tokens]
    ids = torch.tensor(padded, device=model.device)
    mask = (torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]).long()
    return model(input_ids=ids, attention_mask=mask).last_hidden_state, lengths


def _width(model: Any) -> int:
    config = model.config.get_text_config()
    return int(config.hidden_size)


def _position_limit(model: Any, tokenizer: Any) -> int | None:
    """The most tokens that the model has positions for, as far as its files say."""
    config = model.config.get_text_config()
    limits = [getattr(config, "max_position_embeddings", None), tokenizer.model_max_length]
    table: Any = getattr(getattr(model, "embeddings", None), "position_embeddings", None)
    if getattr(table, "padding_idx", None) is not None:  # RoBERTa counts its positions from there
        limits.append(table.num_embeddings - table.padding_idx - 1)
    # A tokenizer that knows no limit says 10^30.
    known = [int(limit) for limit in limits if limit is not None and 0 < limit < 10**9]
    return min(known) if known else None


def _first_line(error: BaseException) -> str:
    return " ".join(str(error).strip().splitlines()[:1]) or type(error).__name__

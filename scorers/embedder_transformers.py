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
from karat.scorers.model.pooling import Pooling

if TYPE_CHECKING:
    from pathlib import Path

    from karat.scorers.model.states import States

MAX_TOKENS = 2048
NO_BOUND = 1 << 62


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
        from karat.scorers.model.masked_runner import hidden_runner
        from karat.scorers.model.pooling import pooled, pooled_positions
        from karat.scorers.model.runner import Request
        from karat.scorers.model.special_tokens import framed

        folder = self.files()
        with quiet():
            tokenizer = self._tokenizer(folder)
            model = self._model(folder).to(self.torch_device()).eval()
        limit = self._limit(model, tokenizer)
        # Rows bound the batch here, not tokens: with one row at a time no bit depends on the neighbours.
        runner = hidden_runner(model, tokenizer, NO_BOUND, self.batch)
        width = _width(model)
        lock = threading.Lock()

        def encode(texts: Sequence[str]) -> Encoded:
            with lock:
                found = [framed(tokenizer, text, limit) for text in texts]
                vectors = np.zeros((len(texts), width), np.float32)
                # A text without tokens keeps its zeros.
                places = [place for place, (ids, _) in enumerate(found) if ids]
                asked = [Request(ids, pooled_positions(self.pooling, len(ids))) for ids, _ in found if ids]

                def consume(index: int, states: States | None) -> None:
                    if states is None:
                        raise unusable(self.model, "out of memory", hint="make max_tokens smaller")
                    vectors[places[index]] = pooled(states.hidden_nd, self.pooling).cpu().numpy()

                runner.run(asked, consume)
            return Encoded(vectors, np.array([cut for _, cut in found], np.bool_))

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

        from karat.scorers.model.from_files import refuse_missing

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
        refuse_missing(self.model, model, "base", info["missing_keys"])
        return model.requires_grad_(False)

    def _limit(self, model: Any, tokenizer: Any) -> int:
        from karat.scorers.model.described import position_limit

        limit = position_limit(model, tokenizer)
        if self.max_tokens is None:
            return MAX_TOKENS if limit is None else min(MAX_TOKENS, limit)
        if limit is not None and self.max_tokens > limit:
            raise unusable(
                self.model,
                f"max_tokens is {self.max_tokens}, and it reads at most {limit} tokens",
                hint="leave max_tokens out, or make it smaller",
            )
        return self.max_tokens


def _width(model: Any) -> int:
    config = model.config.get_text_config()
    return int(config.hidden_size)


def _first_line(error: BaseException) -> str:
    return " ".join(str(error).strip().splitlines()[:1]) or type(error).__name__

"""Tiny causal models with random weights, for tests: as folders, and loaded."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from karat.trainers.byte_tokenizer import BOS, EOS, PAD, VOCABULARY, byte_tokenizer

TIED = ("gpt2", "gemma2")
"""Kinds whose output layer is the input embedding; the others have two matrices."""
PLACES = 4096
"""Positions that every model knows."""


def _shared() -> dict[str, Any]:
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": PLACES,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "pad_token_id": PAD,
    }


def _llama(tf: Any) -> Any:
    return tf.LlamaForCausalLM(tf.LlamaConfig(**_shared(), num_key_value_heads=2))


def _llama_tied(tf: Any) -> Any:
    return tf.LlamaForCausalLM(tf.LlamaConfig(**_shared(), num_key_value_heads=2, tie_word_embeddings=True))


def _qwen2(tf: Any) -> Any:
    return tf.Qwen2ForCausalLM(tf.Qwen2Config(**_shared(), num_key_value_heads=2, tie_word_embeddings=False))


def _gpt2(tf: Any) -> Any:
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": PLACES}
    return tf.GPT2LMHeadModel(
        tf.GPT2Config(vocab_size=VOCABULARY, bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD, **sizes)
    )


def _gemma2(tf: Any) -> Any:
    # Small enough a cap that it bends the logits of random weights.
    return tf.Gemma2ForCausalLM(
        tf.Gemma2Config(**_shared(), num_key_value_heads=2, head_dim=8, final_logit_softcapping=3.0)
    )


def _phi(tf: Any) -> Any:
    return tf.PhiForCausalLM(tf.PhiConfig(**_shared()))


def _cohere(tf: Any) -> Any:
    return tf.CohereForCausalLM(
        tf.CohereConfig(**_shared(), num_key_value_heads=2, logit_scale=0.25, tie_word_embeddings=False)
    )


def _granite(tf: Any) -> Any:
    return tf.GraniteForCausalLM(tf.GraniteConfig(**_shared(), num_key_value_heads=2, logits_scaling=2.0))


KINDS: dict[str, Callable[[Any], Any]] = {
    "llama": _llama,
    "llama_tied": _llama_tied,
    "qwen2": _qwen2,
    "gpt2": _gpt2,  # tied, learned positions
    "gemma2": _gemma2,  # tied, soft cap on the logits
    "phi": _phi,  # bias in the output layer
    "cohere": _cohere,  # logits multiplied by a scale
    "granite": _granite,  # logits divided by a scale
}


def tiny_pair(kind: str, dtype: str = "float64", seed: int = 7) -> tuple[Any, Any]:
    """(model, tokenizer) in memory: two layers, width 32, the 256 bytes and three special tokens."""
    import torch
    import transformers

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = KINDS[kind](transformers).to(getattr(torch, dtype)).eval()
        draw = torch.Generator().manual_seed(seed)
        for name, parameter in sorted(made.named_parameters()):
            # Larger than at the start of training, so that no distribution is close to uniform.
            if parameter.dim() == 2 or (parameter.dim() == 1 and "bias" in name):
                parameter.data.copy_(0.3 * torch.randn(parameter.shape, generator=draw, dtype=torch.float64))
    return made, byte_tokenizer()


@cache
def tiny_model(kind: str) -> str:
    """Folder of such a model in float32: the same path and the same bytes in every process of this user."""
    made_of = [hashlib.blake2b(Path(__file__).read_bytes(), digest_size=6).hexdigest()]
    made_of += [version(name) for name in ("torch", "transformers", "tokenizers")]
    owner = os.getuid() if hasattr(os, "getuid") else "user"
    home = Path(tempfile.gettempdir()) / f"karat-tiny-models-{owner}" / "-".join(made_of)
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder = home / kind
    if not folder.exists():
        model, tokenizer = tiny_pair(kind, "float32")
        beside = Path(tempfile.mkdtemp(dir=home))
        model.save_pretrained(beside)
        tokenizer.save_pretrained(beside)
        try:
            beside.rename(folder)
        except OSError:  # another process was faster
            shutil.rmtree(beside)
    return str(folder)

"""Tiny models that are no causal language models, with random weights: in memory, and as folders."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from karat.trainers.byte_tokenizer import BOS, EOS, PAD, VOCABULARY

SMALL = {
    "vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 2, "pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS,
}  # fmt: skip
PLACES = 80
"""Positions of the encoders."""


def closed_tokenizer() -> Any:
    """The bytes, put between `<s>` and `</s>`; a pair has two texts closed each, numbered 0 and 1."""
    from tokenizers import processors

    from karat.trainers.byte_tokenizer import byte_tokenizer

    tokenizer = byte_tokenizer()
    tokenizer.sep_token = "</s>"  # noqa: S105 - a token of text
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B:1 </s>:1", special_tokens=[("<s>", BOS), ("</s>", EOS)]
    )
    return tokenizer


def _bert(tf: Any, head: str, labels: int) -> Any:
    config = tf.BertConfig(**SMALL, max_position_embeddings=PLACES, num_labels=labels)
    return getattr(tf, f"Bert{head}")(config)


def _roberta(tf: Any, head: str, labels: int) -> Any:
    config = tf.RobertaConfig(**SMALL, max_position_embeddings=PLACES + PAD + 1, num_labels=labels)
    return getattr(tf, f"Roberta{head}")(config)


def _distilbert(tf: Any, head: str, labels: int) -> Any:
    sizes = {"dim": 16, "hidden_dim": 24, "n_layers": 2, "n_heads": 2, "pad_token_id": PAD}
    config = tf.DistilBertConfig(
        vocab_size=VOCABULARY, max_position_embeddings=PLACES, num_labels=labels, **sizes
    )
    return getattr(tf, f"DistilBert{head}")(config)


def _llama(tf: Any, head: str, labels: int, pad: int | None = None) -> Any:
    config = tf.LlamaConfig(
        **{**SMALL, "pad_token_id": pad},
        num_key_value_heads=1,
        max_position_embeddings=512,
        num_labels=labels,
    )
    return getattr(tf, f"Llama{head}")(config)


def _gpt2(tf: Any, head: str, labels: int) -> Any:
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 512}
    config = tf.GPT2Config(
        vocab_size=VOCABULARY,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=EOS,
        num_labels=labels,
        **sizes,
    )
    return getattr(tf, f"GPT2{head}")(config)


ENCODERS = {"bert": _bert, "roberta": _roberta, "distilbert": _distilbert}
DECODERS = {"llama": _llama, "gpt2": _gpt2}


def tiny(kind: str, head: str = "Model", labels: int = 1, dtype: str = "float64") -> Any:
    """A model of a kind with a head ("Model", "ForSequenceClassification"), weights far from uniform."""
    import torch
    import transformers

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        made = (ENCODERS | DECODERS)[kind](transformers, head, labels).to(getattr(torch, dtype)).eval()
        draw = torch.Generator().manual_seed(11)
        for name, parameter in sorted(made.named_parameters()):
            if parameter.dim() == 2 or "bias" in name:
                parameter.data.copy_(0.3 * torch.randn(parameter.shape, generator=draw, dtype=torch.float64))
    return made


@cache
def tiny_folder(kind: str, head: str = "Model", labels: int = 1) -> str:
    """Folder of such a model in float32: the same path and bytes in every process of this user."""
    made_of = [hashlib.blake2b(Path(__file__).read_bytes(), digest_size=6).hexdigest()]
    made_of += [version(name) for name in ("torch", "transformers", "tokenizers")]
    owner = os.getuid() if hasattr(os, "getuid") else "user"
    home = Path(tempfile.gettempdir()) / f"karat-tiny-models-{owner}" / "-".join(made_of)
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder = home / f"{kind}-{head}-{labels}"
    if not folder.exists():
        beside = Path(tempfile.mkdtemp(dir=home))
        tiny(kind, head, labels, "float32").save_pretrained(beside)
        closed_tokenizer().save_pretrained(beside)
        try:
            beside.rename(folder)
        except OSError:  # another process was faster
            shutil.rmtree(beside)
    return str(folder)

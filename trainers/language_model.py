"""A causal language model with its tokenizer: karat's tiny byte model, or a pretrained one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from karat.errors import ConfigError
from karat.trainers.byte_tokenizer import BOS, EOS, PAD, VOCABULARY, byte_tokenizer

if TYPE_CHECKING:
    import torch

TINY = "tiny"
LONGEST = 2048
"""Tokens that the tiny model takes at most, however long the blocks that it was trained on."""


@dataclass(frozen=True)
class LanguageModel:
    """A model, its tokenizer, and the tokens that open and close a text."""

    model: torch.nn.Module
    tokenizer: Any
    bos: int
    eos: int
    pad: int

    @property
    def vocabulary(self) -> int:
        """Width of the logits."""
        config: Any = self.model.config
        return int(config.get_text_config().vocab_size)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokens of each text, without BOS and EOS; text that spells a special token stays text."""
        if not texts:
            return []
        found = self.tokenizer(
            list(texts), add_special_tokens=False, split_special_tokens=True, return_attention_mask=False
        )
        return [list(tokens) for tokens in found["input_ids"]]

    def lossy(self, texts: Sequence[str], tokens: Sequence[Sequence[int]]) -> int:
        """Texts that the tokens do not give back exactly: their bits per byte are not comparable."""
        back = (self.tokenizer.decode(ids, clean_up_tokenization_spaces=False) for ids in tokens)
        return sum(text != decoded for text, decoded in zip(texts, back, strict=True))


def language_model(name: str, max_length: int) -> LanguageModel:
    """The model that the settings name: "tiny", a folder, or a Hub id (safetensors only, no remote code).

    "tiny" starts from the current random state, so seed first. Raises ConfigError where the model cannot
    be loaded, has no token to start a text with, or is shorter than `max_length`.
    """
    return _tiny(max_length) if name == TINY else _pretrained(name, max_length)


def _tiny(max_length: int) -> LanguageModel:
    """Llama over bytes with 0.7 million parameters: 3 layers of 128 with 4 heads."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        # Rotary positions have no table: longer texts can be read, as scorers do with the trained model.
        max_position_embeddings=max(max_length, LONGEST),
        tie_word_embeddings=False,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
        initializer_range=0.08,
        use_cache=False,
    )
    return LanguageModel(LlamaForCausalLM(config), byte_tokenizer(), BOS, EOS, PAD)


def _pretrained(name: str, max_length: int) -> LanguageModel:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(
            name, trust_remote_code=False, use_safetensors=True, dtype=torch.float32
        )
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"cannot load the causal language model {name!r}: {str(error).strip().splitlines()[0]}",
            where="train.model",
            hint='"tiny", a folder with config.json, model.safetensors and a tokenizer, or a Hub id of such',
        ) from error
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if isinstance(longest, int) and longest < max_length:
        raise ConfigError(
            f"max_length {max_length} is more than the {longest} positions of {name!r}",
            where="train.max_length",
        )
    eos = tokenizer.eos_token_id
    bos = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else eos
    if bos is None:
        raise ConfigError(
            f"the tokenizer of {name!r} has neither a BOS nor an EOS token to start a text with",
            where="train.model",
        )
    eos = bos if eos is None else eos
    pad = eos if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    return LanguageModel(model, tokenizer, int(bos), int(eos), int(pad))

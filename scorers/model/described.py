"""What a model's configuration says before its weights are loaded: its kind, its width, its labels."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from karat.errors import ScoreError

if TYPE_CHECKING:
    from karat.scorers.model.source import ModelScorer

CAUSAL_ENDINGS = ("ForCausalLM", "LMHeadModel")


@dataclass(frozen=True)
class Described:
    """Facts of a model's configuration."""

    causal: bool
    """Whether the files hold a decoder with a head over the vocabulary."""
    width: int
    """Numbers in a last hidden state."""
    labels: tuple[str, ...]
    """Names of the outputs of a classification head."""


def described(scorer: ModelScorer) -> Described:
    """The facts of a scorer's model; of one on the Hub only the configuration is fetched.

    Raises ScoreError where there is none.
    """
    if not isinstance(scorer.model, str):
        model = scorer.model.model
        return _facts(model.config, (type(model).__name__,))
    return _of_files(scorer.model, scorer.revision, scorer.trust_remote_code, _stamp(scorer.model))


def _facts(config: Any, architectures: tuple[str, ...]) -> Described:
    text = config.get_text_config()
    # OPT projects its last states to another width.
    width = int(getattr(text, "word_embed_proj_dim", None) or text.hidden_size)
    labels = tuple(str(config.id2label[place]) for place in sorted(config.id2label))
    return Described(_is_causal(config, architectures), width, labels)


def _is_causal(config: Any, architectures: tuple[str, ...]) -> bool:
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    if config.is_encoder_decoder or not any(name.endswith(CAUSAL_ENDINGS) for name in architectures):
        return False
    # An encoder with a head for decoding (BertLMHeadModel) looks both ways unless it is told not to.
    two_ways = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return not two_ways or bool(getattr(config, "is_decoder", False))


def _stamp(name: str) -> object:
    """What changes with a folder's configuration."""
    for file in ("config.json", "adapter_config.json"):
        path = Path(name).expanduser() / file
        if path.is_file():
            facts = path.stat()
            return (file, facts.st_size, facts.st_mtime_ns)
    return None


@lru_cache(maxsize=32)
def _of_files(name: str, revision: str | None, trust: bool, stamp: object) -> Described:
    del stamp  # it is there for the cache alone
    from transformers import AutoConfig

    folder = Path(name).expanduser()
    place = str(folder) if folder.is_dir() else name
    try:
        config = AutoConfig.from_pretrained(place, revision=revision, trust_remote_code=trust)
        return _facts(config, tuple(config.architectures or ()))
    except (OSError, ValueError, KeyError, ImportError, AttributeError, TypeError) as error:
        raise ScoreError(
            f"the configuration of {name!r} cannot be read: {' '.join(str(error).split())[:300]}",
            where="model",
            hint="a folder with config.json, model.safetensors and a tokenizer, or a Hub id of such",
        ) from error


def position_limit(model: Any, tokenizer: Any) -> int | None:
    """The most tokens that a model has positions for, as far as its files say."""
    config = model.config.get_text_config()
    limits = [getattr(config, "max_position_embeddings", None), tokenizer.model_max_length]
    for module in model.modules():  # RoBERTa counts its positions from the padding token on
        table: Any = getattr(module, "position_embeddings", None)
        if getattr(table, "padding_idx", None) is not None and hasattr(module, "word_embeddings"):
            limits.append(table.num_embeddings - table.padding_idx - 1)
            break
    # A tokenizer that knows no limit says 10^30.
    known = [int(limit) for limit in limits if limit is not None and 0 < limit < 10**9]
    return min(known) if known else None

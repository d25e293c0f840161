"""A model ready to be asked: loaded once for each device, shared by the scorers that name it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import torch

from karat.errors import ScoreError
from karat.scorers.model.head import Head, head_of
from karat.scorers.model.masked_runner import MaskedRunner, class_runner, hidden_runner
from karat.scorers.model.runner import Runner

if TYPE_CHECKING:
    from karat.scorers.model.source import ModelScorer

BATCH_TOKENS = {"cpu": 2_048, "cuda": 32_768}
"""Padded tokens in a batch at first; halved where memory runs out."""


@dataclass(frozen=True)
class Asked:
    """One replica of a model on one device, with what scorers ask it through."""

    model: Any
    tokenizer: Any
    runner: Runner | MaskedRunner
    """The first for a causal language model, the other for a model without such a head."""
    device: torch.device


class Replicas:
    """One replica for each device; a chunk borrows one, so chunks run in parallel over devices."""

    def __init__(self, replicas: list[Asked]) -> None:
        self._free: SimpleQueue[Asked] = SimpleQueue()
        self.tokenizer = replicas[0].tokenizer
        for replica in replicas:
            self._free.put(replica)

    @contextmanager
    def borrowed(self) -> Iterator[Asked]:
        """A replica that nobody else uses meanwhile."""
        replica = self._free.get()
        try:
            yield replica
        finally:
            self._free.put(replica)


def load(scorer: ModelScorer, kind: str = "causal") -> Replicas:
    """Load the model of a scorer on every device that it may use; raises ScoreError.

    kind: "causal" (a decoder with a head over the vocabulary), "base" (hidden states only) or "classifier".
    """
    return Replicas([_replica(scorer, device, kind) for device in devices(scorer.device)])


def devices(wish: str) -> list[torch.device]:
    """The devices that a setting names."""
    if wish == "auto":
        found = [f"cuda:{i}" for i in range(torch.cuda.device_count())] or ["cpu"]
    else:
        found = [part.strip() for part in wish.split(",")]
    try:
        chosen = [torch.device(name) for name in found]
    except RuntimeError as error:
        raise ScoreError(f"{wish!r} names no device", where="device", hint="auto, cpu, cuda:0") from error
    for device in chosen:
        if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
            raise ScoreError(
                f"there is no {device}; this process sees {torch.cuda.device_count()} GPUs", where="device"
            )
    return chosen


def _replica(scorer: ModelScorer, device: torch.device, kind: str) -> Asked:
    if isinstance(scorer.model, str):
        model, tokenizer = _from_files(scorer, device, kind)
    else:
        model, tokenizer = scorer.model.model, scorer.model.tokenizer
        if scorer.quantization is None and scorer.dtype != "auto":
            model = model.to(getattr(torch, scorer.dtype))
        if scorer.device != "auto":
            model = model.to(device)
        device = next(model.parameters()).device
    model.eval().requires_grad_(False)
    tokens = scorer.batch_tokens or BATCH_TOKENS.get(device.type, 8_192)
    runner: Any
    if kind == "classifier":
        runner = class_runner(model, tokenizer, tokens)
    elif kind == "base":
        runner = hidden_runner(model, tokenizer, tokens)
    else:
        head: Head = head_of(model)
        runner = Runner(model.get_decoder(), head, tokens)
    return Asked(model, tokenizer, runner, device)


def _from_files(scorer: ModelScorer, device: torch.device, kind: str) -> tuple[Any, Any]:
    import transformers

    name = str(scorer.model)
    factory = {
        "causal": transformers.AutoModelForCausalLM,
        "base": transformers.AutoModel,
        "classifier": transformers.AutoModelForSequenceClassification,
    }[kind]
    how: dict[str, Any] = {"trust_remote_code": scorer.trust_remote_code, "revision": scorer.revision}
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(name, **how)
        model, info = factory.from_pretrained(
            name,
            use_safetensors=True,
            dtype=_dtype(scorer, device),
            output_loading_info=True,
            **_quantised(scorer, device),
            **how,
        )
        refuse_missing(name, model, kind, info["missing_keys"])
        if scorer.adapter:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, scorer.adapter).get_base_model()
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise ScoreError(
            f"cannot load the model {name!r}: {' '.join(str(error).split())[:300]}",
            where="model",
            hint="a folder with config.json, model.safetensors and a tokenizer, or a Hub id of such",
        ) from error
    return (model if scorer.quantization else model.to(device)), tokenizer


def refuse_missing(name: str, model: Any, kind: str, missing: Iterable[str]) -> None:
    """Raise ScoreError for weights that the files lack: they would be drawn at random."""
    # The pooler of BERT comes after what is read of a bare model.
    lacking = sorted(key for key in missing if kind != "base" or "pooler" not in key)
    if lacking:
        raise ScoreError(
            f"{len(lacking)} weights of {type(model).__name__} are missing, such as {lacking[0]}",
            where=f"model {name!r}",
            hint="give the model that was trained for this: its files must hold all its weights",
        )


def _dtype(scorer: ModelScorer, device: torch.device) -> Any:
    if scorer.dtype != "auto":
        return getattr(torch, scorer.dtype)
    return torch.float32 if device.type == "cpu" else "auto"


def _quantised(scorer: ModelScorer, device: torch.device) -> dict[str, Any]:
    if scorer.quantization is None:
        return {}
    from importlib.util import find_spec

    from transformers import BitsAndBytesConfig

    if find_spec("bitsandbytes") is None:
        raise ScoreError(
            "quantised loading needs bitsandbytes, which is not installed",
            where="quantization",
            hint="python -m pip install bitsandbytes",
        )
    eight = scorer.quantization == "8bit"
    return {
        "quantization_config": BitsAndBytesConfig(load_in_8bit=eight, load_in_4bit=not eight),  # type: ignore[no-untyped-call]
        "device_map": {"": device},
    }


def is_local(name: str) -> bool:
    """Whether the name is a folder on this machine."""
    return Path(name).expanduser().is_dir()

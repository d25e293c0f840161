"""A model ready to be asked: one replica for each device, shared by the scorers that name it."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import torch

from karat.errors import ScoreError
from karat.scorers.model.from_files import from_files
from karat.scorers.model.head import Head, decoder_of, head_of
from karat.scorers.model.masked_runner import MaskedRunner, class_runner, hidden_runner
from karat.scorers.model.probe import probe
from karat.scorers.model.runner import Runner

if TYPE_CHECKING:
    from karat.scorers.model.source import Loaded, ModelSource

BATCH_TOKENS = {"cpu": 2_048, "cuda": 32_768}
"""Padded tokens in a batch; halved where memory runs out."""


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
        """A replica that nobody else uses meanwhile, in evaluation mode."""
        replica = self._free.get()
        try:
            with evaluating(replica.model):
                yield replica
        finally:
            self._free.put(replica)


_modes = threading.Lock()
_evaluated: dict[int, tuple[int, list[Any]]] = {}


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """No dropout inside the block; afterwards the modules of a model from Python are as they were.

    Threads may share a model: the last one that leaves puts it back.
    """
    with _modes:
        users, training = _evaluated.get(id(model), (0, []))
        if not users:
            training = [module for module in model.modules() if module.training]
            model.eval()
        _evaluated[id(model)] = (users + 1, training)
    try:
        yield
    finally:
        with _modes:
            users, training = _evaluated.pop(id(model))
            if users > 1:
                _evaluated[id(model)] = (users - 1, training)
            else:
                for module in training:
                    module.training = True


def load(scorer: ModelSource, kind: str = "causal") -> Replicas:
    """Load the model of a scorer on every device that it may use; raises ScoreError.

    kind: "causal" (a decoder with a head over the vocabulary), "base" (hidden states only) or "classifier".
    """
    if isinstance(scorer.model, str):
        models = [(device, *from_files(scorer, device, kind)) for device in devices(scorer.device)]
    else:
        models = _from_python(scorer, scorer.model)
    return Replicas([_replica(model, tokenizer, device, scorer, kind) for device, model, tokenizer in models])


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


def _replica(model: Any, tokenizer: Any, device: torch.device, scorer: ModelSource, kind: str) -> Asked:
    tokens = scorer.batch_tokens or BATCH_TOKENS.get(device.type, 8_192)
    runner: Runner | MaskedRunner
    if kind == "classifier":
        with evaluating(model):
            runner = class_runner(model, tokenizer, tokens)
    elif kind == "base":
        runner = hidden_runner(model, tokenizer, tokens)
    else:
        if model.config.is_encoder_decoder:
            raise ScoreError(
                f"{type(model).__name__} is an encoder-decoder, not a causal language model",
                where="model",
                hint="give a decoder, such as Llama, Qwen, Gemma or GPT-2",
            )
        head: Head = head_of(model)
        with evaluating(model):
            probe(model, head)
        runner = Runner(decoder_of(model), head, tokens, longest=_positions(model))
    return Asked(model, tokenizer, runner, device)


def _positions(model: Any) -> int | None:
    """Positions that the model knows; None where it says nothing."""
    known = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return known if isinstance(known, int) and known > 1 else None


def _from_python(scorer: ModelSource, loaded: Loaded) -> list[tuple[torch.device, Any, Any]]:
    """A model from Python, where it is and as it is; copies of it on other devices."""
    model, tokenizer = loaded.model, loaded.tokenizer
    here = next(model.parameters()).device
    if scorer.dtype != "auto" and model.dtype != getattr(torch, scorer.dtype):
        raise ScoreError(
            f"the loaded model is in {str(model.dtype).removeprefix('torch.')}, not {scorer.dtype}",
            where="dtype",
            hint="leave dtype out, or convert the model before it is given: karat does not change it",
        )
    if scorer.adapter or scorer.quantization:
        raise ScoreError(
            "`adapter` and `quantization` are for models that karat loads",
            where="model",
            hint="give the model with its adapter in place, or its folder",
        )
    wished = [here] if scorer.device == "auto" else devices(scorer.device)
    return [
        (device, model if _same(device, here) else copy.deepcopy(model).to(device), tokenizer)
        for device in wished
    ]


def _same(one: torch.device, other: torch.device) -> bool:
    return one.type == other.type and (one.index or 0) == (other.index or 0)


def is_local(name: str) -> bool:
    """Whether the name is a folder on this machine."""
    return Path(name).expanduser().is_dir()

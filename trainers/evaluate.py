"""Bits per byte: one number for how well a model knows a text, whatever its tokens are."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from karat.errors import DataError

if TYPE_CHECKING:
    import torch

    from karat.trainers.language_model import LanguageModel

# Bounds of one forward pass: tokens, and numbers in its logits (128 MiB in float32).
TOKENS_AT_ONCE = 8192
LOGITS_AT_ONCE = 2**25


@dataclass(frozen=True)
class Window:
    """Inputs `[start, end)` of a text opened by BOS; only the targets from `scored` on count."""

    text: int
    start: int
    scored: int
    end: int


@dataclass(frozen=True)
class HeldOut:
    """Texts encoded once, to be evaluated many times."""

    tokens: list[list[int]]
    n_bytes: int
    lossy: int

    @classmethod
    def encode(cls, lm: LanguageModel, texts: Sequence[str]) -> HeldOut:
        """Raises DataError where there is not one byte to score."""
        n_bytes = sum(len(text.encode()) for text in texts)
        if n_bytes == 0:
            raise DataError("the held-out rows have no text", where="reference", hint="evaluation needs some")
        tokens = lm.encode(texts)
        return cls(tokens, n_bytes, lm.lossy(texts, tokens))


def windows(lengths: Sequence[int], max_length: int, stride: int) -> Iterator[Window]:
    """Windows of at most `max_length` tokens in which every token is scored exactly once.

    The first window of a text scores all of its tokens, starting from BOS alone. Each later one scores
    the next `stride` tokens and sees as many before them as fit, at least max_length - stride.
    """
    if not 1 <= stride <= max_length:
        raise ValueError(f"stride {stride} is not between 1 and max_length {max_length}")
    for text, length in enumerate(lengths):
        scored = 0
        while scored < length:
            end = min(length, scored + stride if scored else max_length)
            yield Window(text, max(0, end - max_length), scored, end)
            scored = end


def bits_per_byte(lm: LanguageModel, heldout: HeldOut, max_length: int, stride: int | None = None) -> float:
    """Held-out bits per byte, Σ_t -ln p(x_t | BOS, x_<t) / ln 2 / (UTF-8 bytes of the texts).

    Tokens after the first `max_length` of a text are predicted from the last `max_length - stride` to
    `max_length` ones (stride: half of max_length). EOS is not scored. Batching does not enter the result
    beyond float32 rounding; sums are float64.
    """
    total = nats(lm, heldout.tokens, max_length, stride)
    return total / math.log(2) / heldout.n_bytes


def nats(
    lm: LanguageModel, tokens: Sequence[Sequence[int]], max_length: int, stride: int | None = None
) -> float:
    """Negative log-likelihood of all texts, each opened by BOS, in nats."""
    import torch

    plan = list(windows([len(ids) for ids in tokens], max_length, stride or max(1, max_length // 2)))
    plan.sort(key=lambda window: (window.start - window.end, window.text, window.start))
    training = lm.model.training
    lm.model.eval()
    try:
        with torch.no_grad():
            return math.fsum(_batch_nats(lm, tokens, batch) for batch in _batches(plan, lm.vocabulary))
    finally:
        lm.model.train(training)


def _batches(plan: list[Window], vocabulary: int) -> Iterator[list[Window]]:
    """Windows of falling length, as many at once as the bounds allow."""
    first = 0
    while first < len(plan):
        length = plan[first].end - plan[first].start
        size = max(1, min(TOKENS_AT_ONCE // length, LOGITS_AT_ONCE // (length * vocabulary)))
        yield plan[first : first + size]
        first += size


def _batch_nats(lm: LanguageModel, tokens: Sequence[Sequence[int]], batch: list[Window]) -> float:
    import torch

    length = max(window.end - window.start for window in batch)
    inputs = torch.full((len(batch), length), lm.pad)
    targets = torch.full((len(batch), length), -100)
    mask = torch.zeros((len(batch), length), dtype=torch.long)
    for row, window in enumerate(batch):
        ids, size = tokens[window.text], window.end - window.start
        before = [lm.bos] if window.start == 0 else [ids[window.start - 1]]
        inputs[row, :size] = torch.tensor([*before, *ids[window.start : window.end - 1]])
        targets[row, window.scored - window.start : size] = torch.tensor(ids[window.scored : window.end])
        mask[row, :size] = 1
    device = next((parameter.device for parameter in lm.model.parameters()), torch.device("cpu"))
    # Without padding no mask is needed, and attention is quicker without one.
    masked: dict[str, Any] = {} if bool(mask.all()) else {"attention_mask": mask.to(device)}
    logits = lm.model(input_ids=inputs.to(device), use_cache=False, **masked).logits
    losses: torch.Tensor = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1).float(), targets.to(device).flatten(), ignore_index=-100, reduction="none"
    )
    return float(losses.double().sum())

"""One call of transformers' `generate`: prompts of some rows in, their responses out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

from karat.errors import ScoreError
from karat.scorers.generation.drawing import Drawing, key_of_row
from karat.scorers.generation.ending import Ending, Texts, end_tokens_of
from karat.scorers.generation.samples import Ask, Sample, failure

if TYPE_CHECKING:
    from karat.scorers.generation.settings import Generation
    from karat.scorers.model.loading import Asked


class OutOfMemoryError(ScoreError):
    """The device has no memory for so many responses at one time."""


@dataclass(frozen=True)
class Row:
    """An ask with the tokens of its prompt and the most tokens of its response."""

    ask: Ask
    ids: tuple[int, ...]
    limit: int
    known: bool = False
    """Whether its response is there already: it is in the batch for the sake of the others' logits."""


def write(
    asked: Asked, generation: Generation, rows: Sequence[Row], go_on: Callable[[], None]
) -> list[Sample]:
    """The responses of the rows; raises OutOfMemoryError, and what `go_on` raises before a token."""
    longest = max(len(row.ids) for row in rows)
    texts = Texts(asked.tokenizer, [row.ids for row in rows])
    ends = end_tokens_of(asked.model, asked.tokenizer)
    ending = Ending(texts, ends, generation.stop, [row.limit for row in rows], longest, go_on)
    keys = [key_of_row(generation.seed, row.ask.query, row.ask.number) for row in rows]
    drawing = Drawing(generation, keys, longest)
    try:
        _generate(asked, rows, longest, drawing, ending)
    except torch.OutOfMemoryError as error:
        raise OutOfMemoryError(
            f"no memory to write {len(rows)} responses of {generation.max_new_tokens} tokens at a time",
            where=str(asked.device),
            hint="a smaller max_new_tokens, a smaller model, or quantization",
        ) from error
    broken = [] if drawing.broken_b is None else drawing.broken_b.tolist()
    return [
        _without_padding(asked, generation, row, longest, go_on)
        if broken[index]
        else Sample(*ending.ends[index])
        for index, row in enumerate(rows)
    ]


def _without_padding(
    asked: Asked, generation: Generation, row: Row, longest: int, go_on: Callable[[], None]
) -> Sample:
    """A row whose logits were no numbers, by itself: a few models in float64 cannot bear padding."""
    if len(row.ids) == longest:
        return failure("the model gave no numbers (NaN or infinite)")
    return write(asked, generation, [row], go_on)[0]


def _generate(asked: Asked, rows: Sequence[Row], longest: int, drawing: Drawing, ending: Ending) -> None:
    padding = next(
        (
            int(token)
            for token in (asked.tokenizer.pad_token_id, asked.tokenizer.eos_token_id)
            if token is not None
        ),
        0,
    )
    ids = [(padding,) * (longest - len(row.ids)) + row.ids for row in rows]
    mask = [(0,) * (longest - len(row.ids)) + (1,) * len(row.ids) for row in rows]
    with _own_settings_aside(asked.model), torch.inference_mode():
        asked.model.generate(
            input_ids=torch.tensor(ids, device=asked.device),
            attention_mask=torch.tensor(mask, device=asked.device),
            generation_config=_plain(
                max_new_tokens=max(row.limit for row in rows),
                do_sample=False,
                num_beams=1,
                use_cache=True,
                pad_token_id=padding,
            ),
            logits_processor=LogitsProcessorList([drawing]),
            stopping_criteria=StoppingCriteriaList([ending]),
        )


@contextmanager
def _own_settings_aside(model: Any) -> Iterator[None]:
    """`generate` fills what it is not told from the model's own: top_k, penalties, ends."""
    own = model.generation_config
    model.generation_config = _plain()
    try:
        yield
    finally:
        model.generation_config = own


def _plain(**settings: Any) -> GenerationConfig:
    make: Any = GenerationConfig  # its constructor has no annotations
    config: GenerationConfig = make(**settings)
    return config

"""Where responses end: at an end token, before a stop text, or at the limit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from karat.scorers.generation.samples import LENGTH, STOP
from karat.scorers.generation.stop_texts import cut

MORE = 8
"""Tokens that are looked at besides those that a stop text may take; and of the prompt, before a response."""


class Texts:
    """Tokens of responses as text, just as they read after their prompts."""

    def __init__(self, tokenizer: Any, prompts: Sequence[tuple[int, ...]]) -> None:
        self._tokenizer = tokenizer
        # Some tokenizers leave a space out where a text begins, and a response begins none.
        self._tails = [ids[-MORE:] for ids in prompts]
        self._before = [self._decoded(tail) for tail in self._tails]

    def of(self, row: int, ids: Sequence[int]) -> str:
        """The response of a row."""
        before, whole = self._before[row], self._decoded((*self._tails[row], *ids))
        return whole[len(before) :] if whole.startswith(before) else self._decoded(ids)

    def _decoded(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text


class Ending:
    """A stopping criterion for `generate` that ends each row by itself and remembers where.

    limits: most tokens of each row's response. Tokens that `generate` still gives a row afterwards, while
    others go on, are no part of its response. go_on: raises where all is given up.
    """

    def __init__(
        self, texts: Texts, end_tokens: frozenset[int], stop: Sequence[str],
        limits: Sequence[int], prompt_length: int, go_on: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        self.texts, self.end_tokens, self.stop = texts, end_tokens, stop
        self.limits = limits
        self.prompt_length = prompt_length
        self.go_on = go_on
        self.ends: dict[int, tuple[str, str, int]] = {}
        """For each row that has ended: its text, why, and how many tokens it has."""
        # A token that shows anything takes a byte of the stop text at least.
        self._window = max((len(one.encode("utf-8", "replace")) for one in stop), default=0) + MORE

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        """[B] whether each row has ended."""
        self.go_on()
        written = input_ids[:, self.prompt_length :].tolist()
        for row, ids in enumerate(written):
            if row not in self.ends and (end := self._end(row, ids)) is not None:
                self.ends[row] = end
        done = [row in self.ends for row in range(len(written))]
        return torch.tensor(done, dtype=torch.bool, device=input_ids.device)

    def _end(self, row: int, ids: list[int]) -> tuple[str, str, int] | None:
        count = len(ids)
        if ids[-1] in self.end_tokens:
            return self.texts.of(row, ids[:-1]), STOP, count
        if self.stop and cut(self.texts.of(row, ids[-self._window :]), self.stop) is not None:
            # The window may begin within a character or a word: the whole decides.
            text = cut(self.texts.of(row, ids), self.stop)
            if text is not None:
                return text, STOP, count
        if count < self.limits[row]:
            return None
        whole = self.texts.of(row, ids)
        text = cut(whole, self.stop)
        return (whole, LENGTH, count) if text is None else (text, STOP, count)


def end_tokens_of(model: Any, tokenizer: Any) -> frozenset[int]:
    """All tokens that end a text: those that the model's configurations name, and the tokenizer's."""
    given = (
        getattr(getattr(model, "generation_config", None), "eos_token_id", None),
        getattr(model.config.get_text_config(), "eos_token_id", None),
        tokenizer.eos_token_id,
    )
    return frozenset(_each(given))


def _each(given: Any) -> Iterator[int]:
    for value in given:
        if isinstance(value, list | tuple):
            yield from _each(value)
        elif value is not None:
            yield int(value)

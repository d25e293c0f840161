"""deita's prompts as tokens: the ids of the six digits after them, and prompts cut to a length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from karat.errors import ScoreError
from karat.scorers.deita_prompts import DIGITS

Fill = Callable[[str, str], str]
"""From instruction and response to the prompt."""
Ids = tuple[int, ...]


@dataclass(frozen=True)
class Fitted:
    """A prompt's tokens, at most as many as wanted."""

    ids: Ids
    truncated: bool


def encoded(tokenizer: Any, text: str) -> Ids:
    """A text's tokens with the special ones that the tokenizer puts before it.

    An end-of-sequence token that it puts after the text is left out, as nothing follows one. Text that
    spells a special token stays text.
    """
    found = tokenizer(text, split_special_tokens=True, return_attention_mask=False)["input_ids"]
    end = len(found)
    while end and found[end - 1] == tokenizer.eos_token_id:
        end -= 1
    return tuple(found[:end])


@lru_cache(maxsize=16)
def digit_ids(tokenizer: Any, prompt: str) -> Ids:
    """The tokens that spell 1 to 6 right after a prompt; raises ScoreError where one is no single token.

    A tokenizer may spell a digit in several ways (with a space before it, say): what counts is the token
    that follows the prompt's own tokens.
    """
    before = encoded(tokenizer, prompt)
    found = [_digit(tokenizer, prompt, before, digit) for digit in DIGITS]
    for digit, token in zip(DIGITS, found, strict=True):
        first = DIGITS[found.index(token)]
        if first != digit:
            raise _unfit(tokenizer, digit, f"is the same token as {first!r} ({token})")
    return tuple(found)


def _digit(tokenizer: Any, prompt: str, before: Ids, digit: str) -> int:
    after = encoded(tokenizer, prompt + digit)
    if after[:-1] == before:
        if after[-1] == tokenizer.unk_token_id:
            raise _unfit(tokenizer, digit, f"is not in its vocabulary ({tokenizer.unk_token!r})")
        return after[-1]
    # Written in one go, the digit joins the space before it; the model is given the space by itself.
    token = tokenizer.convert_tokens_to_ids(digit)
    if token is not None and token != tokenizer.unk_token_id:
        how: dict[str, Any] = {"clean_up_tokenization_spaces": False}
        whole = tokenizer.decode([*before, token], **how)
        if whole == tokenizer.decode(list(before), **how) + digit:
            return int(token)
    common = _shared(before, after)
    raise _unfit(
        tokenizer, digit, f"is no single token after the prompt: {_spelled(tokenizer, before[common:])} "
        f"becomes {_spelled(tokenizer, after[common:])}",
    )  # fmt: skip


def _spelled(tokenizer: Any, ids: Sequence[int]) -> str:
    return str(tokenizer.convert_ids_to_tokens(list(ids[:8])))


def _unfit(tokenizer: Any, digit: str, problem: str) -> ScoreError:
    name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
    return ScoreError(
        f"the digit {digit!r} {problem}",
        where=f"tokenizer {name}",
        hint="deita reads its score from six single tokens: use a model whose tokenizer has them",
    )


def fitted(tokenizer: Any, fill: Fill, instruction: str, response: str, most: int) -> Fitted | str:
    """The prompt's tokens; where they are more than `most`, instruction and response lose their ends.

    The prompt's own words stay, above all the last ones, after which the digit stands. The longer of
    instruction and response is cut first, until both are as long. Returns why not even a token of them
    fits.
    """
    ids = encoded(tokenizer, fill(instruction, response))
    if len(ids) <= most:
        return Fitted(ids, truncated=False)
    one, other = encoded(tokenizer, fill("x", "x")), encoded(tokenizer, fill("7", "7"))
    head, tail = _shared(one, other), len(ids) - _shared(one[::-1], other[::-1])
    # Where the response begins, and where the instruction ends.
    begins = min(tail, _shared(ids, encoded(tokenizer, fill(instruction, ""))))
    ends = len(ids) - _shared(ids[::-1], encoded(tokenizer, fill("", response))[::-1])
    ends = max(head, min(begins, ends))
    room = most - head - (begins - ends) - (len(ids) - tail)
    if room < 1:
        return f"the prompt's own words have {most - room} tokens of at most {most}"
    asked, answered = _shares(ends - head, tail - begins, room)
    cut = (*ids[: head + asked], *ids[ends:begins], *ids[begins : begins + answered], *ids[tail:])
    return Fitted(cut, truncated=True)


def _shares(one: int, other: int, room: int) -> tuple[int, int]:
    """How much of two lengths is kept so that both fit together."""
    if one <= room // 2:
        return one, room - one
    if other <= room // 2:
        return room - other, other
    return room - room // 2, room // 2


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """Tokens that both begin with."""
    pairs = zip(one, other, strict=False)
    return next((k for k, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))

"""deita's prompts as tokens: the ids of the six digits after them, and prompts cut to a length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from karat.errors import ScoreError
from karat.scorers.deita_prompts import DIGITS

Fill = Callable[..., str]
"""From its parts (instruction, response) to the prompt."""
Ids = tuple[int, ...]
_FILLERS = ("x", "7")


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
    if after == before:
        raise _unfit(tokenizer, digit, "is left out of the text")
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


def fitted(tokenizer: Any, fill: Fill, parts: Sequence[str], most: int) -> Fitted | str:
    """The tokens of a prompt; where they are more than `most`, the parts lose their ends.

    The prompt's own words stay, above all the last ones, after which the digit stands. The longest part is
    cut first, until all that are cut are as long. Returns why not even a token of them fits.
    """
    ids = encoded(tokenizer, fill(*parts))
    if len(ids) <= most:
        return Fitted(ids, truncated=False)
    spans = [_span(tokenizer, fill, parts, place, ids) for place in range(len(parts))]
    begins = [*(start for start, _ in spans), len(ids)]
    own = _own_words(tokenizer, fill, len(parts))
    after = [ids[end:start] for (_, end), start in zip(spans, begins[1:], strict=True)]
    words = begins[0] + sum(max(len(one), len(other)) for one, other in zip(after, own, strict=True))
    if words >= most:
        return f"the prompt's own words have {words} tokens of at most {most}"
    lengths = [end - start for start, end in spans]
    shares = _shares(lengths, most - words)
    cut = ids[: begins[0]]
    for (start, _), length, kept, here, alone in zip(spans, lengths, shares, after, own, strict=True):
        if kept < length:
            shared, here = _restored(alone, here)
            # The part's last tokens spell words of the prompt too, in so many tokens at most.
            spelled = sum(map(len, tokenizer.convert_ids_to_tokens(list(shared))))
            kept = max(0, min(kept, length - spelled))
        cut += ids[start : start + kept] + here
    return Fitted(cut, truncated=True)


def _span(tokenizer: Any, fill: Fill, parts: Sequence[str], place: int, ids: Ids) -> tuple[int, int]:
    """Where a part stands in the prompt's tokens; a token that it shares with the prompt's words is its own.

    Two fillers that begin and end unlike each other: no part agrees with both by chance.
    """
    others = [encoded(tokenizer, fill(*parts[:place], x, *parts[place + 1 :])) for x in _FILLERS]
    start = min(_shared(ids, other) for other in others)
    return start, max(start, len(ids) - min(_shared(ids[::-1], other[::-1]) for other in others))


@lru_cache(maxsize=16)
def _own_words(tokenizer: Any, fill: Fill, count: int) -> tuple[Ids, ...]:
    """The tokens of the prompt's own words after each part."""
    parts = _FILLERS[:1] * count
    ids = encoded(tokenizer, fill(*parts))
    spans = [_span(tokenizer, fill, parts, place, ids) for place in range(count)]
    begins = [*(start for start, _ in spans[1:]), len(ids)]
    return tuple(ids[end:start] for (_, end), start in zip(spans, begins, strict=True))


def _restored(own: Ids, here: Ids) -> tuple[Ids, Ids]:
    """The prompt's own words after a part, without what that part's last tokens share, and with it."""
    places = (k for k in range(len(own)) if own[k : k + len(here)] == here) if here else iter(())
    place = next(places, None)
    return ((), own) if place is None else (own[:place], own[: place + len(here)])


def _shares(lengths: Sequence[int], room: int) -> list[int]:
    """How much of each length is kept so that all fit together: the longest lose first."""
    left, level = room, max(lengths)
    for done, length in enumerate(sorted(lengths)):
        level = left // (len(lengths) - done)
        if length > level:
            break
        left -= length
    kept = [min(length, level) for length in lengths]
    for place, length in enumerate(lengths):  # what does not go into equal parts goes to the first
        kept[place] += min(length - kept[place], 1, room - sum(kept))
    return kept


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """Tokens that both begin with."""
    pairs = zip(one, other, strict=False)
    return next((k for k, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))

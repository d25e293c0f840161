"""Preference data: a prompt, the answer that was chosen and the one that was rejected."""

from __future__ import annotations

import re
from dataclasses import dataclass

from karat.errors import DataError
from karat.rows.conversations import Message, Side, Turn, messages_of, said, turn_fields, turns_beyond
from karat.rows.loaded import Loaded, as_text

_SPEAKER = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant): ?")
_UNPARTED = "chosen and rejected do not part at an answer: before it both must say the same"

Messages = list[Message]


@dataclass(frozen=True)
class Pair:
    """One row as the view shows it."""

    prompt: str | None
    chosen: str | None
    rejected: str | None
    turns: list[Turn] | None


def pairs_of(loaded: Loaded, fields: dict[str, str]) -> list[Pair | str]:
    """Every row as a pair, or what is wrong with it; raises DataError for columns of unsuitable types.

    fields: the columns of prompt (there may be none), response (the chosen answer) and rejected.
    """
    answers = [fields["response"], fields["rejected"]]
    kinds = {turn_fields(loaded.frame, name) is None for name in answers}
    if len(kinds) > 1:
        shown = " and ".join(f"{name!r} is {loaded.frame[name].dtype}" for name in answers)
        raise DataError(f"both answers must be text, or both lists of messages: {shown}", where=loaded.source)
    asked = fields.get("prompt")
    text = asked is None or turn_fields(loaded.frame, asked) is None
    prompts = [[] for _ in range(loaded.frame.height)] if asked is None else _column(loaded, asked, Side.ASKS)
    chosen, rejected = (_column(loaded, name, Side.ANSWERS) for name in answers)
    if asked is None and kinds == {True}:
        chosen, rejected = _transcripts(chosen, rejected)
    found: list[Pair | str] = []
    for asks, one, other in zip(prompts, chosen, rejected, strict=True):
        if isinstance(asks, str) or isinstance(one, str) or isinstance(other, str):
            found.append(next(side for side in (asks, one, other) if isinstance(side, str)))
        else:
            found.append(_pair(asks, one, other, text))
    return found


def _column(loaded: Loaded, name: str, side: Side) -> list[Messages | str]:
    """A column's messages, text being one message of that side; a string says what is wrong."""
    pair = turn_fields(loaded.frame, name)
    if pair is not None:
        return [messages_of(given, *pair) for given in loaded.frame[name].to_list()]
    return [[] if text is None else [Message(side, text)] for text in as_text(loaded, name).to_list()]


def _transcripts(
    chosen: list[Messages | str], rejected: list[Messages | str]
) -> tuple[list[Messages | str], list[Messages | str]]:
    """Pairs of texts that begin with `Human:` as conversations, the others as they are."""
    pairs = []
    for pair in zip(chosen, rejected, strict=True):
        read = [_spoken(side[0].words) if side and not isinstance(side, str) else [] for side in pair]
        pairs.append(read if all(read) else list(pair))
    return [one for one, _ in pairs], [other for _, other in pairs]


def _spoken(text: str) -> Messages:
    """The messages of a transcript; none for other text."""
    before, *parts = _SPEAKER.split(text)
    if before or not parts or parts[0] != "Human":
        return []
    sides = {"Human": Side.ASKS, "Assistant": Side.ANSWERS}
    return [Message(sides[who], words) for who, words in zip(parts[::2], parts[1::2], strict=True)]


def _pair(prompt: Messages, chosen: Messages, rejected: Messages, text: bool) -> Pair | str:
    """text: whether the prompt is a column of text."""
    same = next((k for k, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), None)
    same = min(len(chosen), len(rejected)) if same is None else same
    if not chosen or not rejected:
        alone = chosen or rejected
        parting = max(
            (k for k, message in enumerate(alone) if message.side is Side.ANSWERS), default=len(alone)
        )
    else:
        both = zip(chosen[: same + 1], rejected[: same + 1], strict=False)
        parting = max((k for k, (a, b) in enumerate(both) if a.side is b.side is Side.ANSWERS), default=-1)
        if parting < 0:
            return _UNPARTED
    before = _before(prompt, (chosen or rejected)[:parting], text)
    asked = said(before) if before else None
    answer = said(chosen[parting:]) if chosen else None
    other = said(rejected[parting:]) if rejected else None
    turns = None if asked is None else turns_beyond([*before, *chosen[parting:]], asked, answer)
    return Pair(asked, answer, other, turns)


def _before(prompt: Messages, common: Messages, text: bool) -> Messages:
    """All that was said before the answers; lists of messages may hold the prompt or leave it out."""
    if text:
        return common if any(message.side is Side.ASKS for message in common) else [*common, *prompt]
    return common if common[: len(prompt)] == prompt else [*prompt, *common]

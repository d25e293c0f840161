"""Asking a judge: the questions of a chunk, all in flight within the caps, and what their answers say."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from karat.errors import ScoreError
from karat.progress import spend
from karat.scorers.judge_answer import Verdict, verdict
from karat.scorers.judge_ledger import Caps, Ledger
from karat.scorers.judge_prompt import FIELDS, messages, shown
from karat.scorers.server.client import channel
from karat.scorers.server.replies import Ask, Refused, Reply

if TYPE_CHECKING:
    from karat.scorers.judge import Judge

Row = Mapping[str, str | None]
TRY_OUT: Row = {"prompt": "What is 1 + 1?", "response": "2", "text": "What is 1 + 1?\n2"}


@dataclass(frozen=True, eq=False)
class Asked:
    """A judge that has answered once, with its rubric and what it has cost."""

    judge: Judge
    rubric: str
    ledger: Ledger

    def verdicts(self, rows: Sequence[Row], ids: Sequence[str]) -> list[list[Verdict | str]]:
        """For each row, one verdict of each sample or why there is none; raises ScoreError."""
        asks = [
            self.question(row, sample, id_)
            for row, id_ in zip(rows, ids, strict=True)
            for sample in range(self.judge.samples)
        ]
        replies = self._within_caps(asks)
        found = [self._verdict(reply) for reply in replies]
        step = self.judge.samples
        return [found[start : start + step] for start in range(0, len(found), step)]

    def question(self, row: Row, sample: int, id_: str) -> Ask:
        """The request about one row."""
        judge = self.judge
        body: dict[str, Any] = {
            "model": judge.model,
            "messages": messages(self.rubric, row, judge.lowest, judge.highest, judge.answer == "line"),
            "temperature": judge.temperature,
            "seed": judge.seed + sample,
            "max_tokens": judge.max_answer_tokens,
        }
        body |= judge.request
        return Ask("/chat/completions", {name: v for name, v in body.items() if v is not None}, repr(id_))

    def _within_caps(self, asks: Sequence[Ask]) -> list[Reply]:
        sizes = [len(json.dumps(ask.body, ensure_ascii=False).encode("utf-8", "replace")) for ask in asks]
        replies: list[Reply] = []
        with self.ledger.chunk(sizes):
            while len(replies) < len(asks):
                done = len(replies)
                with self.ledger.wave(sizes[done:]) as count:
                    answered = channel(self.judge.server).ask(asks[done : done + count])
                    for reply, size in zip(answered, sizes[done:], strict=False):
                        if not isinstance(reply, Refused):
                            spend("tokens", self.ledger.book(reply, size))
                replies += answered
        return replies

    def _verdict(self, reply: Reply) -> Verdict | str:
        if isinstance(reply, Refused):
            return f"the server {reply.why}"
        choices = reply.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        if not isinstance(choice, dict):
            return "the answer holds no choice"
        return verdict(choice, self.judge.lowest, self.judge.highest, self.judge.answer == "line")


def connect(judge: Judge) -> Asked:
    """The judge after one small question; raises ScoreError where it cannot be asked at all."""
    caps = Caps(judge.max_cost, judge.max_tokens_total, judge.price_in, judge.price_out)
    asked = Asked(judge, judge.rubric_text(), Ledger(caps, judge.max_answer_tokens))
    reply = asked._within_caps([asked.question(TRY_OUT, 0, "try-out")])[0]
    if isinstance(reply, Refused):
        raise ScoreError(
            f"a first question shows that it cannot be asked: the server {reply.why}",
            where=f"server {judge.server.url}",
            hint="`request` changes what is sent: {max_completion_tokens: 512, max_tokens: null}, say",
        )
    return asked


def cut(row: Row, longest: int, rubric: str) -> tuple[Row, str]:
    """The row with its parts cut to so many characters, and its status if the judge's answer is clear.

    A part that the judge is not shown counts neither as cut nor as something to be judged.
    """
    parts = {name: row.get(name) for name in FIELDS}
    kept = {name: None if value is None else value[:longest] for name, value in parts.items()}
    seen = shown(rubric, parts)
    if all(parts[name] is None for name in seen):
        return kept, f"failed: no {' and no '.join(seen)}"
    return kept, "ok" if all(kept[name] == parts[name] for name in seen) else "truncated"

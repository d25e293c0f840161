"""DartDifficulty that samples: what counts, what does not, what is reused, and what each row is told."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import polars as pl
import pytest

from karat.errors import DataError
from karat.parts import Scorer
from karat.registry import load
from karat.scorers import DartDifficulty
from karat.scorers.dart_sampling import Writer
from karat.scorers.generation.ledger import Ledger
from karat.scorers.generation.samples import Ask, OnSample, Sample, failure
from karat.verifier import Verdict, Verifier


class Same(Verifier):
    """Right where the response is the reference; the reference `?` cannot be read."""

    def verify(self, responses: Sequence[str], references: Sequence[str]) -> list[Verdict]:
        if "?" in references:
            raise DataError("`?` is no answer")
        return [
            Verdict(text == reference, text, "")
            for text, reference in zip(responses, references, strict=True)
        ]


class Scripted:
    """The prompt lists what the responses are, by number: `ok`, `no`, `cut` (with the right text), `down`."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []

    def sample(
        self, asks: Sequence[Ask], on_sample: OnSample | None = None, among: Sequence[Ask] = ()
    ) -> list[Sample]:
        found = []
        for ask in asks:
            self.asked.append((ask.query, ask.number))
            what = ask.prompt.split()[ask.number]
            sample = {
                "ok": Sample("right", "stop", 1),
                "no": Sample("wrong", "stop", 1),
                "cut": Sample("right", "length", 1),
                "down": failure("HTTP 400"),
            }[what]
            found.append(sample)
            if on_sample is not None:
                on_sample(ask, sample)
        return found


ROWS = pl.DataFrame(
    {
        "id": ["a", "b", "c", "d", "e", "f", "g", "h"],
        "prompt": [
            "ok ok no no", "ok cut cut cut", "ok no down down", "down down down down",
            None, "ok ok no no", "ok ok no no", "ok ok ok ok",
        ],
        "response": ["right", "right", "right", "right", "right", " ", "wrong", "?"],
    }
)  # fmt: skip


def part(**more: object) -> DartDifficulty:
    found: DartDifficulty = load(
        {"kind": "dart", "model": "unused", "verifier": Same(), "samples": 4, **more}, Scorer
    )
    return found


def scored(folder: Path, model: Scripted, rows: pl.DataFrame = ROWS) -> tuple[pl.DataFrame, tuple[str, ...]]:
    writer = Writer(model, Ledger(folder, "key"), alone=True)
    scorer = part()
    return scorer.score(rows, writer), scorer.notes(writer)


def test_what_counts(tmp_path: Path) -> None:
    model = Scripted()
    table, notes = scored(tmp_path, model)
    assert table["dart.samples"].to_list() == [4, 4, 2, None, None, None, 4, None]
    # What is cut is wrong although it says what is right; another reference judges the same responses.
    assert table["dart.correct"].to_list() == [2, 1, 1, None, None, None, 2, None]
    assert table["dart.fail_rate"].to_list() == [0.5, 0.75, 0.5, None, None, None, 0.5, None]
    assert table["dart.status"].to_list() == [
        None,
        None,
        None,
        "failed: HTTP 400",
        "failed: no prompt",
        "failed: no reference answer in the response column",
        None,
        "failed: the reference answer: `?` is no answer",
    ]
    # Equal prompts are asked once.
    assert len(model.asked) == len(set(model.asked)) == 16
    told = " ".join(notes)
    assert "3 of 10 responses were cut at 2,048 tokens and count as wrong" in told
    assert "6 requests gave no response and do not count" in told


def test_what_is_kept_is_not_asked_again(tmp_path: Path) -> None:
    first, second = Scripted(), Scripted()
    table, _ = scored(tmp_path, first, ROWS[:2])
    again, _ = scored(tmp_path, second)
    assert again[:2].equals(table)
    assert not set(first.asked) & set(second.asked)


@pytest.mark.parametrize("rows", [ROWS[:0], ROWS[4:6]])
def test_nothing_to_ask(tmp_path: Path, rows: pl.DataFrame) -> None:
    model = Scripted()
    table, notes = scored(tmp_path, model, rows)
    assert table.height == rows.height
    assert dict(table.schema) == {"id": pl.String, **part().columns(), "dart.status": pl.String}
    assert not model.asked
    assert not notes


def test_it_is_a_scorer_of_contents() -> None:
    assert not part().joins()
    assert part(server="http://127.0.0.1:9/v1", revision="1").at_once() == 64
    shorter = part(model={"model": "unused", "server": "http://127.0.0.1:9/v1", "revision": "1"})
    assert shorter == part(server="http://127.0.0.1:9/v1", revision="1")
    assert shorter.digest() == shorter.model_copy(update={"ledger": Path("/elsewhere")}).digest()
    assert shorter.digest() != shorter.model_copy(update={"samples": 5}).digest()
    with pytest.raises(ValueError, match="go together"):
        part(verifier=None)

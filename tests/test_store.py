from __future__ import annotations

import os
from pathlib import Path
from typing import ClassVar

import polars as pl
import pytest

from karat.chunked import pending
from karat.errors import ScoreError, StoreError
from karat.rows import from_frame
from karat.scorers.length import Length
from karat.store import (
    DIGEST,
    Store,
    check_writable,
    frame_digest,
    read_json,
    replacing,
    write_json,
    write_parquet,
)

SCHEMA: dict[str, pl.DataType] = {"s.x": pl.Float64(), "s.status": pl.String()}


def table(**scores: float) -> pl.DataFrame:
    columns = {DIGEST: list(scores), "s.x": list(scores.values()), "s.status": [None] * len(scores)}
    return pl.DataFrame(columns, schema={DIGEST: pl.String, **SCHEMA})


def test_files_appear_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b.txt"

    def interrupted() -> None:
        with replacing(target) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        interrupted()
    assert list(tmp_path.rglob("*.txt")) == []
    assert list(tmp_path.rglob(".*")) == []
    write_json({"a": 1}, target)
    assert read_json(target) == {"a": 1}


def test_the_same_frame_gives_the_same_bytes(tmp_path: Path) -> None:
    one, two = table(a=1.0, b=2.0), pl.concat([table(a=1.0), table(b=2.0)], rechunk=False)
    write_parquet(one, tmp_path / "1.parquet")
    write_parquet(two, tmp_path / "2.parquet")
    assert (tmp_path / "1.parquet").read_bytes() == (tmp_path / "2.parquet").read_bytes()


def test_known_scores_survive_a_damaged_file(tmp_path: Path) -> None:
    store = Store(tmp_path)
    write_parquet(table(a=1.0), store.scores("k") / "1.parquet")
    write_parquet(table(b=2.0, a=1.0), store.scores("k") / "2.parquet")
    broken = store.scores("k") / "3.parquet"
    broken.write_bytes(b"PAR1 not really")
    known, damaged = store.known_scores("k", SCHEMA)
    assert dict(known.select(DIGEST, "s.x").iter_rows()) == {"a": 1.0, "b": 2.0}
    assert damaged == 1
    assert not broken.exists()


def test_sweep_removes_what_dead_processes_left(tmp_path: Path) -> None:
    dead = 2**22 + 7  # above any pid that Linux hands out
    left = tmp_path / "scores" / "k" / f".x.parquet.{dead}.tmp"
    mine = tmp_path / "scores" / "k" / f".x.parquet.{os.getppid()}.tmp"
    for path in (left, mine):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "work" / str(dead)).mkdir(parents=True)
    Store(tmp_path).sweep()
    assert not left.exists()
    assert mine.exists()
    assert not (tmp_path / "work" / str(dead)).exists()


def test_digest_keeps_strings_apart() -> None:
    assert frame_digest(["ab", "c"]) != frame_digest(["a", "bc"])
    assert frame_digest(["a"]) != frame_digest(["a", ""])


def test_an_unusable_folder_is_found_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="not a folder"):
        check_writable(tmp_path / "file" / "runs")
    check_writable(tmp_path / "new" / "deeper")


def test_a_scorer_that_reads_more_than_the_content_is_refused(tmp_path: Path) -> None:
    class ByGroup(Length):
        reads: ClassVar[tuple[str, ...]] = ("text", "group")

    view = from_frame(pl.DataFrame({"text": ["a"]})).view.with_columns(pl.lit("x").alias(DIGEST))
    with pytest.raises(ScoreError, match="reads group"):
        pending(ByGroup(), view, None, Store(tmp_path))

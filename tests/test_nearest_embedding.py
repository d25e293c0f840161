"""Vectors through the pipeline: NearestEmbedding, the run, the export, and what is said when it cannot be."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from tiny_encoders import tiny_folder
from tiny_models import tiny_model

import karat
from karat.scorers.embedding import Embedding
from karat.scorers.model.masked_runner import MaskedRunner
from karat.scorers.nearest_embedding import NearestEmbedding
from karat.scorers.nearest_target import NearestTarget

TEXTS = ["stone river", "a tree", "compute the matrix", "a tree", "🙂", "river " * 9]
POOL = pl.DataFrame({"id": list("abcdef"), "text": TEXTS})
TARGET = pl.DataFrame({"id": ["x", "y", "z"], "text": ["matrix house", "the river", "a stone"]})


@pytest.mark.parametrize("settings", [{}, {"aggregate": "max"}, {"aggregate": "mean"}, {"best": 2}])
def test_it_is_nearest_target_on_stored_vectors(settings: dict[str, Any]) -> None:
    model = tiny_folder("bert")
    embedder = {"kind": "transformers", "model": model, "pooling": "weighted_mean"}
    parts = [
        Embedding(model=model, pooling="weighted_mean", batch_tokens=1),
        NearestEmbedding(**settings),
        NearestTarget(embedder=embedder, **settings),
    ]
    table = karat.score(parts, POOL, TARGET)
    found, expected = table["nearest_embedding.cosine"], table["nearest_target.cosine"]
    assert found.to_list() == pytest.approx(expected.to_list(), abs=1e-9)
    alone = karat.score(parts[0], TARGET)
    assert karat.derive(parts[1], table, POOL, TARGET, alone)["nearest_embedding.cosine"].equals(found)


def test_by_hand_with_zero_vectors_and_rows_without_one() -> None:
    vectors = pl.Series([[3.0, 4.0], [0.0, 0.0], None, [-1.0, 0.0]], dtype=pl.List(pl.Float64))
    pool = pl.DataFrame({"id": list("abcd"), "text": ["1", "2", "3", "4"]})
    scores = pool.select("id").with_columns(mine=vectors)
    target = pl.DataFrame({"id": ["x", "y"], "text": ["1", "2"]})
    of_target = pl.DataFrame({"id": ["y", "x"], "mine": [[0.0, 2.0], [1.0, 0.0]]})
    best = NearestEmbedding(vectors="mine", aggregate="max")
    table = karat.derive(best, scores, pool, target, of_target)
    assert table["nearest_embedding.cosine"].to_list() == pytest.approx([0.8, 0, None, 0])
    assert table["nearest_embedding.status"].to_list() == [None, None, "no vector", None]
    mean = NearestEmbedding(vectors="mine", aggregate="mean")
    table = karat.derive(mean, scores, pool, target, of_target)
    assert table["nearest_embedding.cosine"].to_list() == pytest.approx([0.7, 0, None, -0.5])


def test_what_cannot_be_is_said() -> None:
    pool = pl.DataFrame({"id": ["a"], "text": ["1"]})
    scores = pool.select("id").with_columns(mine=pl.Series([[3.0, 4.0]]))
    part = NearestEmbedding(vectors="mine")
    with pytest.raises(karat.KaratError, match="of the reference as well"):
        karat.derive(part, scores, pool, pool)
    with pytest.raises(karat.KaratError, match="every vector of the reference is zero"):
        karat.derive(part, scores, pool, pool, pool.select("id").with_columns(mine=pl.Series([[0.0, 0.0]])))
    nothing = pool.select("id").with_columns(mine=pl.Series([None], dtype=pl.List(pl.Float64)))
    with pytest.raises(karat.KaratError, match="1 of 1 reference rows have no vector, the first is 'a'"):
        karat.derive(part, scores, pool, pool, nothing)
    with pytest.raises(karat.KaratError, match="no scorer before it writes the column"):
        karat.score([Embedding(model=tiny_folder("bert")), part], pool, pool)
    with pytest.raises(ValueError, match="counts for aggregate: top only"):
        NearestEmbedding(aggregate="max", best=2)


def test_the_model_runs_once_over_the_pool_and_once_over_the_target(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[int] = []
    own = MaskedRunner._run

    def counting(self: MaskedRunner, batch: Any) -> Any:
        ran.extend(map(len, batch))
        return own(self, batch)

    monkeypatch.setattr(MaskedRunner, "_run", counting)
    karat.score([Embedding(model=tiny_folder("bert")), NearestEmbedding()], POOL, TARGET, workers=1)
    texts = [*set(TEXTS), *TARGET["text"]]
    assert sorted(ran) == sorted(len(text.encode()) + 2 for text in texts)


WORDS = ["the", "a", "of", "tree", "river", "stone", "quickly", "compute", "alpha", "matrix", "house"]


def write_rows(path: Path, count: int, seed: int) -> None:
    rng = random.Random(seed)
    rows = [{"id": f"r{n}", "text": " ".join(rng.choices(WORDS, k=rng.randint(1, 12)))} for n in range(count)]
    if seed == 0:
        rows[5]["text"] = ""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PREFECT_HOME": str(folder / "prefect"), "NO_COLOR": "1", "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, "-m", "karat", *arguments],
        cwd=folder, capture_output=True, text=True, env=environment, timeout=300, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_a_run_with_vectors(tmp_path: Path) -> None:
    write_rows(tmp_path / "pool.jsonl", 60, 0)
    write_rows(tmp_path / "target.jsonl", 4, 1)
    config = (
        "data: {path: pool.jsonl}\nreference: {path: target.jsonl}\nscorers:\n"
        f"  - {{kind: embedding, model: {tiny_model('llama')}, pooling: mean}}\n"
        "  - {kind: nearest_embedding, aggregate: max}\n"
        "select: {kind: deita_diverse, by: nearest_embedding.cosine, vectors: embedding.vector,"
        " threshold: 0.97, budget: 10}\n"
    )
    (tmp_path / "c.yaml").write_text(config)
    done = command(tmp_path, "run", "c.yaml")
    assert done.returncode == 0, done.stderr
    out = tmp_path / "runs" / "c"
    selection = pl.read_parquet(out / "selection.parquet")
    assert selection["embedding.vector"].dtype == pl.Array(pl.Float32, 32)
    assert selection["embedding.status"][5] == "failed: no token in the text"
    assert selection["nearest_embedding.status"][5] == "no vector"
    kept = selection.filter(pl.col("weight") > 0)
    assert 0 < kept.height <= 10
    unit = kept["embedding.vector"].to_numpy().astype(float)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    assert (np.tril(unit @ unit.T, -1) <= 0.97).all()
    dataset = pl.read_parquet(out / "dataset" / "*.parquet")
    assert dataset.columns[:3] == ["id", "text", "weight"]
    assert "nearest_embedding.cosine" in dataset.columns
    assert "embedding.vector" not in dataset.columns
    # A decision costs no pass; the vectors of pool and reference are in the store.
    again = command(tmp_path, "run", "c.yaml", "select.threshold=0.9", "export.vectors=true")
    assert "score embedding: 0 scored, 60 in the store" in again.stderr
    assert "score embedding of the reference: 0 scored, 4 in the store" in again.stderr
    assert pl.read_parquet(out / "dataset" / "*.parquet")["embedding.vector"].null_count() == 0
    # One more row is asked about alone, and what was known stays as it is.
    with (tmp_path / "pool.jsonl").open("a") as file:
        file.write(json.dumps({"id": "new", "text": "brand new words"}) + "\n")
    grown = command(tmp_path, "run", "c.yaml")
    assert "score embedding: 1 scored, 60 in the store" in grown.stderr
    after = pl.read_parquet(out / "selection.parquet")
    assert after["embedding.vector"][:60].equals(selection["embedding.vector"])


def test_a_model_that_is_not_there_is_named_with_its_line(tmp_path: Path) -> None:
    write_rows(tmp_path / "pool.jsonl", 4, 1)
    (tmp_path / "c.yaml").write_text(
        "data: {path: pool.jsonl}\nscorers:\n  - {kind: embedding, model: ./nothing/here}\n"
        "select: {kind: random, budget: 2}\n"
    )
    done = command(tmp_path, "run", "c.yaml")
    assert done.returncode != 0
    assert "c.yaml:3" in done.stderr
    assert "./nothing/here" in done.stderr
    assert "Traceback" not in done.stderr

"""A scorer that learns from the whole pool: what it is shown, what is kept, and what a kill costs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from safetensors.numpy import save_file

from karat.errors import ScoreError, StoreError
from karat.fitting import Arrays, Fitting, read_arrays, write_arrays
from karat.parts import Scorer
from karat.score_engine import fit_pool, score_view


class Share(Scorer):
    """Share of the pool's rows that are shorter, learned in one step."""

    def needs_pool(self) -> bool:
        return True

    def columns(self) -> dict[str, pl.DataType]:
        return {"share.shorter": pl.Float64()}

    def fit(self, pool: pl.DataFrame, reference: pl.DataFrame | None, fitting: Fitting) -> Arrays:
        lengths = pool.drop_nulls("text")
        return {"lengths": np.sort(np.repeat(lengths["text"].str.len_bytes(), lengths["copies"]))}

    def prepare(self, reference: pl.DataFrame | None, fitted: Arrays | None = None) -> Any:
        assert fitted is not None
        return fitted["lengths"]

    def score(self, rows: pl.DataFrame, prepared: Any) -> pl.DataFrame:
        lengths = rows["text"].str.len_bytes()
        share = np.searchsorted(prepared, lengths.fill_null(0)) / max(len(prepared), 1)
        known = (
            pl.Series(share, dtype=pl.Float64).to_frame("s").select(pl.when(lengths.is_not_null()).then("s"))
        )
        status = pl.select(pl.when(lengths.is_null()).then(pl.lit("no text"))).to_series().cast(pl.String)
        return pl.DataFrame({"id": rows["id"], "share.shorter": known, "share.status": status})


def view(texts: list[str | None]) -> pl.DataFrame:
    return pl.DataFrame(
        {"id": [f"r{i}" for i in range(len(texts))], "text": texts}, {"id": pl.String, "text": pl.String}
    )


def test_fit_sees_each_content_once_with_its_copies_in_an_order_of_its_own() -> None:
    seen: list[list[dict[str, Any]]] = []

    class Curious(Share):
        def fit(self, pool: pl.DataFrame, reference: pl.DataFrame | None, fitting: Fitting) -> Arrays:
            seen.append(pool.to_dicts())
            assert fitting.workers == 3
            return super().fit(pool, reference, fitting)

    texts = ["b", "a", None, "b", "", "é"]
    for order in (texts, texts[::-1]):
        fit_pool(Curious(), view(order), None, Fitting(3))
    assert seen[0] == seen[1]
    assert [(row["text"], row["copies"]) for row in seen[0]] == [
        (None, 1),
        ("", 1),
        ("a", 1),
        ("b", 2),
        ("é", 1),
    ]


@pytest.mark.parametrize(("workers", "chunk_rows"), [(1, 1), (2, 2), (2, 100)])
def test_scores_follow_the_pool_whatever_the_chunks(workers: int, chunk_rows: int) -> None:
    table = score_view(
        Share(), view(["aa", None, "a", "aa", "aaa"]), None, workers=workers, chunk_rows=chunk_rows
    )
    assert table["share.shorter"].to_list() == [0.25, None, 0.0, 0.25, 0.75]
    assert table["share.status"].to_list() == [None, "no text", None, None, None]


def test_a_pool_without_rows() -> None:
    assert score_view(Share(), view([]), None).is_empty()


def test_a_failing_fit_names_the_scorer() -> None:
    class Broken(Share):
        def fit(self, pool: pl.DataFrame, reference: pl.DataFrame | None, fitting: Fitting) -> Arrays:
            raise ZeroDivisionError("no rows left")

    with pytest.raises(ScoreError, match=r"Broken.*fit on 1 rows.*ZeroDivisionError: no rows left"):
        score_view(Broken(), view(["a"]), None)


def test_arrays_survive_and_damage_is_nothing(tmp_path: Path) -> None:
    path = tmp_path / "steps" / "a.safetensors"
    assert read_arrays(path) is None
    arrays = {"b": np.arange(6.0).reshape(2, 3).T, "a": np.zeros((0, 4), np.uint64)}
    write_arrays(arrays, path)
    first = path.read_bytes()
    write_arrays(dict(reversed(arrays.items())), path)
    assert path.read_bytes() == first
    found = read_arrays(path)
    assert found is not None
    assert {name: (a.dtype, a.tolist()) for name, a in found.items()} == {
        name: (a.dtype, a.tolist()) for name, a in arrays.items()
    }
    path.write_bytes(first[:-3])
    assert read_arrays(path) is None
    for place in (-1, -20):
        path.write_bytes(first[:place] + bytes([first[place] ^ 1]) + first[len(first) + place + 1 :])
        assert read_arrays(path) is None, "one bit"
    save_file({"a": np.zeros(3)}, path)
    assert read_arrays(path) is None, "not ours"
    write_arrays({"a": np.arange(3, dtype=">i8")}, path)
    assert read_arrays(path)["a"].tolist() == [0, 1, 2]  # type: ignore[index]
    assert [file.name for file in path.parent.iterdir()] == ["a.safetensors"]


def test_a_refusing_system_is_said(tmp_path: Path) -> None:
    (tmp_path / "fitted.safetensors").mkdir()
    with pytest.raises(StoreError, match="cannot be read"):
        read_arrays(tmp_path / "fitted.safetensors")


def test_a_failing_preparation_names_the_scorer() -> None:
    class Unready(Share):
        def prepare(self, reference: pl.DataFrame | None, fitted: Arrays | None = None) -> Any:
            raise KeyError("missing")

    with pytest.raises(ScoreError, match=r"Unready.*prepare.*KeyError: 'missing'"):
        score_view(Unready(), view(["a"]), None)


PLUGIN = '''
import os, sys
from pathlib import Path
import numpy as np
import polars as pl
from karat.parts import Scorer

class Steps(Scorer):
    """Sum of lengths in the pool, learned in five steps; dies in step STOP."""
    def needs_pool(self): return True
    def columns(self): return {"steps.total": pl.Float64()}
    def fit(self, pool, reference, fitting):
        total = pool["copies"].sum()
        for step in range(5):
            found = fitting.kept(f"step{step}")
            if found is None:
                with open("steps.log", "a") as log: log.write(f"{step}\\n")
                if os.environ.get("STOP") == str(step): os._exit(9)
                found = {"sum": np.array([float(total * step)])}
                fitting.keep(f"step{step}", found)
            fitting.report(step + 1, 5)
        return found
    def prepare(self, reference, fitted=None): return fitted["sum"][0]
    def notes(self, prepared): return (f"{prepared:g} in all",)
    def score(self, rows, prepared):
        n = rows.height
        return pl.DataFrame({"id": rows["id"], "steps.total": [float(prepared)] * n,
            "steps.status": pl.Series([None] * n, dtype=pl.String)})
'''
CONFIG = """\
data: {path: pool.jsonl}
scorers: [{kind: "plugin:Steps"}, {kind: length}]
select: {kind: top_k, by: steps.total, budget: 10%}
"""


def karat(folder: Path, *arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PREFECT_HOME": str(folder / "prefect"), "PYTHONPATH": str(folder), **extra}
    return subprocess.run(
        [sys.executable, "-m", "karat", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
    )


def test_a_killed_fit_goes_on_and_a_changed_pool_is_learned_anew(tmp_path: Path) -> None:
    (tmp_path / "plugin.py").write_text(PLUGIN)
    (tmp_path / "c.yaml").write_text(CONFIG)
    rows = [json.dumps({"id": str(n), "text": "a" * (n % 7)}) for n in range(40)]
    (tmp_path / "pool.jsonl").write_text("\n".join(rows) + "\n")
    log, out = tmp_path / "steps.log", tmp_path / "runs" / "c" / "selection.parquet"

    assert karat(tmp_path, "run", "c.yaml", STOP="3").returncode != 0
    assert log.read_text().split() == ["0", "1", "2", "3"]
    done = karat(tmp_path, "run", "c.yaml")
    assert done.returncode == 0, done.stderr
    assert log.read_text().split() == ["0", "1", "2", "3", "3", "4"]
    assert "fit steps" in done.stderr
    assert set(pl.read_parquet(out)["steps.total"]) == {160.0}

    (tmp_path / "pool.jsonl").write_text("\n".join(reversed(rows)) + "\n")
    assert karat(tmp_path, "run", "c.yaml").returncode == 0
    assert len(log.read_text().split()) == 6, "another order is the same pool"
    told = json.loads((out.parent / "run.json").read_text())["warnings"]
    assert "steps: 160 in all" in told, "nothing was scored, and the note is there all the same"

    (tmp_path / "pool.jsonl").write_text("\n".join([*rows, json.dumps({"id": "new", "text": "b"})]) + "\n")
    assert karat(tmp_path, "run", "c.yaml").returncode == 0
    assert len(log.read_text().split()) == 11
    assert set(pl.read_parquet(out)["steps.total"]) == {164.0}
    kept = list((tmp_path / "runs").rglob("*.safetensors")) + list(
        (tmp_path / ".karat").rglob("*.safetensors")
    )
    assert {path.name for path in kept} <= {"fitted.safetensors"}

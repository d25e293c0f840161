"""What is impossible is said at its key and line before anything is computed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar

import polars as pl
import pytest

from karat.cli.run import summary
from karat.config import from_yaml
from karat.errors import ConfigError, DataError, ScoreError, closest
from karat.inputs import check_folders, check_tokens, gather
from karat.parts import Scorer
from karat.scoring import score
from karat.store import Store

BASE = """\
data:
  path: pool.jsonl
  columns:
    text: body
    group: src
scorers:
  - kind: length
select:
  kind: random
  budget: 50%
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rows = [{"body": f"row {n}", "src": "a" if n % 3 else None} for n in range(9)]
    Path("pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def problem(old: str, new: str) -> str:
    loaded = from_yaml(BASE.replace(old, new), "c.yaml")
    with pytest.raises(ConfigError) as caught:  # noqa: PT012 - either of the two may be the one
        check_folders(loaded)
        gather(loaded, Store(loaded.config.store))
    return str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("path: pool.jsonl", "path: pol.jsonl", "c.yaml:2, key data.path: pol.jsonl: no such file"),
        ("path: pool.jsonl", "path: '*.csv'", "c.yaml:2, key data.path: *.csv: no file matches"),
        ("path: pool.jsonl", "path: ''", "c.yaml:2, key data.path: '': names no file"),
        ("text: body", "text: bdy", "c.yaml:4, key data.columns.text: pool.jsonl: has no column 'bdy'"),
        ("group: src", "group: srk", "c.yaml:5, key data.columns.group: pool.jsonl: has no column 'srk'"),
        ("group: src", "id: uid", "c.yaml:5, key data.columns.id: pool.jsonl: has no column 'uid'"),
        ("budget: 50%", "budget: 20", "c.yaml:10, key select.budget: a budget of 20 rows is more"),
        (
            "budget: 50%",
            "budget: 3\n  quota: {a: 2}",
            "c.yaml:11, key select.quota: needs a group for every row; 3 of 9 rows have none in the column"
            " 'src', the first is ",
        ),
        ("data:", "out: pool.jsonl\ndata:", "c.yaml:1, key out: "),
        ("data:", "store: pool.jsonl/x\ndata:", "c.yaml:1, key store: "),
    ],
)
def test_settings_that_do_not_fit_the_rows(old: str, new: str, expected: str, here: Path) -> None:
    assert problem(old, new).startswith(expected)


def test_a_bad_row_is_named_by_file_and_row(here: Path) -> None:
    with Path("pool.jsonl").open("a") as file:
        file.write("{oops\n")
    loaded = from_yaml(BASE, "c.yaml")
    with pytest.raises(DataError, match=r"^pool\.jsonl, row 10: not JSON"):
        gather(loaded, Store(loaded.config.store))


def test_a_budget_in_tokens_is_judged_by_the_lengths(here: Path) -> None:
    loaded = from_yaml(BASE.replace("50%", "5M tokens"), "c.yaml")
    inputs = gather(loaded, Store(loaded.config.store))
    lengths = pl.DataFrame({"id": inputs.view["id"], "length.tokens": [2] * 9})
    with pytest.raises(ConfigError, match=r"^c\.yaml:10, key select\.budget: .* has 18 tokens"):
        check_tokens(loaded, inputs, lengths)


def test_a_long_list_of_names_is_cut() -> None:
    assert closest("qqq", [f"column {n:03}" for n in range(50)]).endswith("column 019 and 30 more")
    assert len(closest("qqq", ["x" * 5000])) < 100


class Failing(Scorer):
    """A stranger's scorer with a bug."""

    reads: ClassVar[tuple[str, ...]] = ("text",)

    def columns(self) -> dict[str, pl.DataType]:
        """One."""
        return {"failing.x": pl.Float64()}

    def score(self, rows: pl.DataFrame, prepared: object) -> pl.DataFrame:
        """Fail."""
        raise ZeroDivisionError("inside")


def test_a_scorer_that_fails_is_named() -> None:
    with pytest.raises(ScoreError, match=r"Failing.*failed with ZeroDivisionError: inside") as caught:
        score(Failing(), ["a", "b"], workers=1)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


class Named(Failing):
    """Two of these write different columns, but one status."""

    name: str = "x"

    def columns(self) -> dict[str, pl.DataType]:
        """One, by name."""
        return {f"named.{self.name}": pl.Float64()}


def test_two_scorers_of_one_kind_cannot_share_a_status() -> None:
    with pytest.raises(ScoreError, match=r"two scorers write the column 'named\.status'"):
        score([Named(name="a"), Named(name="b")], ["a"])


def test_numbers_of_rows_and_paths_in_what_to_try_next(capsys: pytest.CaptureFixture[str]) -> None:
    counts = {"selected": 1, "rows": 2, "tokens": None, "skipped": {"not JSON": 1}, "no_score": {"s.x": 2}}
    why = [{"reason": "no text", "rows": 2, "example": "7"}]
    status = {"scorer": "s", "rows": 2, "ok": 0, "truncated": 0, "failed": 2, "reasons": why}
    done = {"counts": counts, "warnings": [], "training": None, "statuses": [status]}
    done["config"] = {"select": {"kind": "threshold"}}
    summary(done, Path.cwd() / "runs" / "a b", Path("c d.yaml"))
    said = capsys.readouterr().out
    assert "kept 1 of 2 rows\n1 row skipped: not JSON\ns: 2 failed\n" in said
    assert "\n  2 failed: no text (for example id '7')\n" in said
    assert "next: karat run 'c d.yaml' select.KEY=VALUE" in said
    assert "karat push 'runs/a b' user/name" in said
    assert "budget" not in said

"""The exported dataset keeps every column of the user's, whatever it is called."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from karat.export import exported
from karat.reading import RowSet, rows_key
from karat.rows import FileData

NAMES = [
    "weight",
    "original_weight",
    "original_weight_2",
    "s.x",
    "original_s.x",
    "id",
    "original_id",
    "text",
    "group",
]


@given(st.lists(st.sampled_from(NAMES), unique=True, min_size=1), st.booleans())
def test_no_column_is_lost(names: list[str], own_id: bool) -> None:
    original = pl.DataFrame({name: [f"{name} {row}" for row in range(3)] for name in names})
    selection = pl.DataFrame(
        {
            "id": ["a", "b", "c"],
            "weight": [1.0, 0.0, 2.0],
            "reason": ["r"] * 3,
            "rank": [1, None, 2],
            "s.x": [1, 2, 3],
        }
    )
    frame = exported(original, selection, names[0] if own_id else None)
    assert frame["weight"].to_list() == [1.0, 2.0]
    assert frame["s.x"].to_list() == [1, 3]
    kept = [frame[name].to_list() for name in frame.columns]
    for name in names:
        assert [f"{name} 0", f"{name} 2"] in kept


def test_rows_kept_by_other_code_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from karat import reading

    (tmp_path / "p.jsonl").write_text('{"text": "a"}\n')
    spec = FileData(path=str(tmp_path / "p.jsonl"))
    before = rows_key(spec)
    monkeypatch.setattr(reading, "code_digest", lambda part: "other" if part is RowSet else "same")
    changed = rows_key(spec)
    monkeypatch.setattr(reading, "code_digest", lambda part: "same")
    assert len({before, changed, rows_key(spec)}) == 3

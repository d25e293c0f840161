"""The examples of docs/training_loop.md run as they stand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parent.parent / "docs" / "training_loop.md"


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)


def test_the_examples_run(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"folder": tmp_path / "run", "__name__": "example"}
    step, loop, _ = blocks()
    exec(step + loop, names)  # noqa: S102 - the page is ours
    assert "effective_sample_size" in capsys.readouterr().out
    assert (tmp_path / "run" / "step-4" / "run.json").is_file()
    assert names["result"].steps == 4


@pytest.mark.filterwarnings("ignore")
def test_the_lightning_example_runs(tmp_path: Path, monkeypatch: Any) -> None:
    pytest.importorskip("lightning.pytorch")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"folder": tmp_path / "run", "__name__": "example"}
    exec("".join(blocks()), names)  # noqa: S102
    assert names["trainer"].global_step == 2

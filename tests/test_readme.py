"""The README's Python lines, on polars frames and on `datasets.Dataset`s."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import polars as pl
import pytest
import transformers

import karat
from karat.reweight import LinUpper, TopK
from karat.scorers import ZipFit
from karat.trainers import ReweightCallback

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def texts(start: int, count: int) -> dict[str, list[Any]]:
    return {
        "id": [f"r{n}" for n in range(start, start + count)],
        "text": [f"row {n} says {'alpha beta ' * (n % 7)}{n * n}" for n in range(start, start + count)],
    }


@pytest.mark.parametrize("library", ["polars", "datasets"])
def test_the_lines_of_the_readme(library: str, tmp_path: Path) -> None:
    make: Any = pl.DataFrame if library == "polars" else datasets.Dataset.from_dict
    pool, target = make(texts(0, 40)), make(texts(100, 5))

    scores = karat.score(ZipFit(level=6), pool, reference=target)
    chosen = karat.select(TopK(by="zip_fit.alignment", budget="10%"), scores)
    dataset = karat.weigh(pool, chosen)
    assert scores.columns == ["id", "zip_fit.alignment"]
    assert chosen.columns == ["id", "weight", "reason"]
    assert type(dataset) is type(pool)
    assert len(dataset) == 4

    rows = dataset.to_dicts() if library == "polars" else list(dataset)
    tokens = [{"input_ids": list(row["text"].encode()[:16]), "weight": row["weight"]} for row in rows]
    config = transformers.LlamaConfig(
        vocab_size=256, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    trainer = transformers.Trainer(
        model=transformers.LlamaForCausalLM(config),
        args=transformers.TrainingArguments(
            str(tmp_path), max_steps=2, report_to="none", use_cpu=True, disable_tqdm=True, logging_steps=1
        ),
        train_dataset=datasets.Dataset.from_list([{**row, "labels": row["input_ids"]} for row in tokens]),
        callbacks=[ReweightCallback(LinUpper(temperature=0.4))],
    )
    trainer.train()
    assert any("karat/effective_sample_size" in entry for entry in trainer.state.log_history)


def test_the_readme_names_what_there_is() -> None:
    """Every karat command that the README shows exists, and every file that it points to."""
    from karat.cli.app import app

    verbs = {
        command.name or command.callback.__name__ for command in app.registered_commands if command.callback
    }
    shown = {line.split()[1] for line in README.splitlines() if line.startswith("karat ")}
    assert shown
    assert shown <= verbs
    for path in ("docs/images/report.png", "CONTRIBUTING.md", "docs/dependencies.md", "constraints.txt"):
        assert path in README
        assert (Path(__file__).parent.parent / path).exists()

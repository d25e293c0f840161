"""Bad configs: the message names the file, the line and the key, in words that fit a YAML file."""

# ruff: noqa: E501

from __future__ import annotations

from pathlib import Path

import pytest

from karat.config import from_yaml
from karat.errors import ConfigError

BASE = """\
name: c
data: {path: p.jsonl}
reference: {path: r.jsonl}
scorers:
  - {kind: zip_fit, level: 1}
  - {kind: length}
select: {kind: top_k, by: zip_fit.alignment, budget: 10%}
"""


def problem(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        from_yaml(text, "c.yaml")
    return str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("{path: p.jsonl}", "p.jsonl", "c.yaml:2, key data: must be a mapping of keys, not 'p.jsonl'"),
        ("{path: p.jsonl}", "[p.jsonl]", "c.yaml:2, key data: must be a mapping of keys"),
        ("{path: p.jsonl}", "{path: 5}", "c.yaml:2, key data.path: must be text or a list, not 5"),
        (
            "{path: p.jsonl}",
            "{kind: sql}",
            "c.yaml:2, key data: unknown kind 'sql'; known: file, hub, harvest, leaderboard",
        ),
        ("{kind: length}", "null", "c.yaml:6, key scorers.1: must be a mapping of keys, not None"),
        (
            "{kind: length}",
            "{kind: lenght}",
            "c.yaml:6, key scorers.1: unknown scorer 'lenght'; did you mean 'length'?",
        ),
        (
            "{kind: length}",
            "{kind: my.mod.Mine}",
            "c.yaml:6, key scorers.1: unknown scorer 'my.mod.Mine'; a class of your own is written 'my.mod:Mine'",
        ),
        (
            "{kind: length}",
            "{kind: nearest_target, embedder: {kind: tfidf_svd, component: 3}}",
            "c.yaml:6, key scorers.1.embedder.component: unknown key; did you mean 'components'?",
        ),
        (
            "{kind: length}",
            "{kind: nearest_target, embedder: {kind: tfidf, batch: 3}}",
            "c.yaml:6, key scorers.1.embedder.batch: unknown key; known: fit_rows, kind, max_terms, seed",
        ),
        (
            "{kind: length}",
            "{kind: ':X'}",
            "c.yaml:6, key scorers.1: :X is no import path; write package.module:Class",
        ),
        (
            "{kind: length}",
            "{kind: '.a:X'}",
            "c.yaml:6, key scorers.1: .a:X is no import path; write package.module:Class",
        ),
        (
            "{kind: length}",
            "{kind: 'karat.parts:Scorer'}",
            "c.yaml:6, key scorers.1: karat.parts:Scorer does not define columns, score",
        ),
        (
            "{kind: length}",
            "{kind: zip_fit, level: 2}",
            "c.yaml:6, key scorers.1: two scorers write the column zip_fit.alignment; leave one out",
        ),
        (
            "{kind: length}",
            "{kind: length_control}",
            "c.yaml:6, key scorers.1.of: is missing",
        ),
        (
            "{kind: length}",
            "{kind: length_control, of: zip_fit.alignmnt}",
            "c.yaml:6, key scorers.1.of: no scorer before it writes the column 'zip_fit.alignmnt'; did you mean 'zip_fit.alignment'?",
        ),
        (
            "{kind: length}",
            "{kind: length_control, of: [zip_fit.alignment, length_control.zip_fit.alignment]}",
            "c.yaml:6, key scorers.1.of: no scorer before it writes the column 'length_control.zip_fit.alignment'; did you mean 'zip_fit.alignment'?",
        ),
        (
            "{kind: length}",
            "{kind: length_control, of: zip_fit.alignment, method: mach}",
            "c.yaml:6, key scorers.1.method: must be 'residual' or 'match', not 'mach'",
        ),
        (
            "reference: {path: r.jsonl}\nscorers:\n  - {kind: zip_fit, level: 1}",
            "scorers:\n  - {kind: length_control, of: length.bytes, method: match}",
            "c.yaml:4, key scorers.0: scorer length_control needs `reference`: rows like those that the model is for",
        ),
        (
            "name: c",
            "name: ../x",
            "c.yaml:1, key name: must be letters, digits, dot, dash and underscore, at most 100, not '../x'",
        ),
        ("name: c", "out: [x]", "c.yaml:1, key out: must be a path"),
        ("name: c", "out: 5", "c.yaml:1, key out: must be a path, not 5"),
        ("name: c", 'out: "a\\0b"', "c.yaml:1, key out: is no usable path: it holds a NUL character"),
        (
            "name: c",
            "evaluate: 2",
            "c.yaml:1, key evaluate: must be between 0% and 100%, or rows of their own, not 2",
        ),
        (
            "name: c",
            "evaluate: .nan",
            "c.yaml:1, key evaluate: must be between 0% and 100%, or rows of their own, not nan",
        ),
        (
            "name: c",
            "evaluate: true",
            "c.yaml:1, key evaluate: must be a share of the reference such as 50%, or rows of their own, not True",
        ),
        ("name: c", "train: [1]", "c.yaml:1, key train: must be a mapping of keys"),
        (
            "name: c",
            "train: {steps: 1}",
            "c.yaml:1, key train: needs `evaluate`: held-out rows, or the share of `reference` to hold out",
        ),
        (
            "reference: {path: r.jsonl}",
            "seed: 1",
            "c.yaml:5, key scorers.0: scorer zip_fit needs `reference`: rows like those that the model is for",
        ),
    ],
)
def test_each_names_its_line(old: str, new: str, expected: str) -> None:
    assert problem(BASE.replace(old, new)) == expected


@pytest.mark.parametrize(
    ("code", "expected"),
    [("x = (", "SyntaxError: "), ("raise RuntimeError('at import')", "RuntimeError: at import")],
)
def test_a_module_that_does_not_import_is_explained(
    code: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_part.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    said = problem(BASE.replace("{kind: length}", "{kind: 'broken_part:X'}"))
    assert said.startswith("c.yaml:6, key scorers.1: cannot import broken_part:X: " + expected)

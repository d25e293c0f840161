"""`Irt` as a scorer: columns joined by id, facts, notes, and every form of responses."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from lsat import long, lsat, simulated

import karat
from karat.errors import ConfigError, DataError
from karat.fitting import Fitting
from karat.measured import measure
from karat.scorers import Irt
from karat.scorers.difficulty import min_max, quantile
from karat.scorers.irt import heldout
from karat.scorers.irt.heldout import heldout_check
from karat.scorers.irt.heldout_baselines import STREAM
from karat.scorers.irt.heldout_split import split
from karat.scorers.irt.item_notes import prediction_note
from karat.scorers.irt.outcome import IrtWarning
from karat.scorers.irt.priors import LogNormal, Normal
from karat.scorers.irt.response_source import read_source
from karat.scorers.responses.reading import responses
from karat.scorers.responses.source import ResponsesSource

WEAK: dict[str, Any] = {"slope_prior": LogNormal(sd=0.5), "intercept_prior": Normal(sd=3.0)}


def table(subjects: int = 120, items: int = 20, seed: int = 0, gaps: float = 0.1) -> pl.DataFrame:
    return long(simulated(subjects, items, seed=seed, gaps=gaps)[0])


def rows(items: list[str]) -> pl.DataFrame:
    return pl.DataFrame({"id": items, "text": [f"question {item}" for item in items]})


def test_columns_are_those_of_the_fit_on_three_scales(tmp_path: Path) -> None:
    given = table()
    given.write_parquet(tmp_path / "r.parquet")
    scorer = Irt(responses=tmp_path / "r.parquet", **WEAK)
    scores = karat.score(scorer, rows(given["item"].unique().sort().to_list()))
    items = Irt(**WEAK).fit(given).items
    assert scores["irt.difficulty"].equals(items["difficulty"])
    assert scores["irt.difficulty_se"].equals(items["difficulty_se"])
    assert scores["irt.discrimination"].equals(items["a"])
    assert scores["irt.difficulty_quantile"].equals(quantile(items["difficulty"]).value)
    unit = min_max(items["difficulty"], items["difficulty_se"])
    assert scores["irt.difficulty_unit"].equals(unit.value)
    assert scores["irt.difficulty_unit_se"].equals(unit.se)
    assert "irt.status" not in scores.columns  # nothing to say


@pytest.mark.parametrize(
    ("settings", "beside"),
    [({"model": "1pl"}, set()), ({"model": "3pl", "max_iterations": 5}, {"guessing"}),
     ({"model": "4pl", "max_iterations": 5}, {"guessing", "upper"})],
)  # fmt: skip
def test_what_the_model_has_is_a_column(settings: dict[str, Any], beside: set[str]) -> None:
    usual = {"difficulty", "difficulty_se", "difficulty_quantile", "difficulty_unit", "difficulty_unit_se",
             "discrimination"}  # fmt: skip
    scorer = Irt(responses=table(), heldout=0, **settings)
    assert set(scorer.columns()) == {f"irt.{name}" for name in usual | beside}
    found = measure(scorer, Fitting())
    for name in beside:
        column = {"guessing": "c", "upper": "u"}[name]
        assert found.items[f"irt.{name}"].equals(found.tables["items"][column])


def test_without_errors_there_are_no_columns_of_them() -> None:
    for settings in ({"standard_errors": "none"}, {"dimensions": 2, "max_iterations": 20}):
        scorer = Irt(responses=table(), heldout=0, **settings)
        assert not any(name.endswith("_se") for name in scorer.columns())
        assert measure(scorer, Fitting()).items["irt.difficulty"].null_count() == 0


def test_items_without_an_estimate_are_null_and_say_why() -> None:
    given = table().with_columns(
        correct=pl.when(pl.col("item") == "q00003").then(1)
        .when(pl.col("item") == "q00005").then(0).otherwise("correct")
    )  # fmt: skip
    found = measure(Irt(responses=given, **WEAK | {"intercept_prior": None}), Fitting())
    lacking = found.items.filter(pl.col("irt.difficulty").is_null())
    assert lacking.select("item", "irt.status").rows() == [
        ("q00003", "everybody solves it"), ("q00005", "nobody solves it"),
    ]  # fmt: skip
    assert lacking.drop("item", "irt.status").null_count().sum_horizontal()[0] == 2 * 6
    assert found.facts["without_estimate"] == 2
    assert found.facts["flags"]["nobody solves it"] == 1
    assert any("2 items have no estimate" in note for note in found.notes)


def test_facts_are_plain_and_complete() -> None:
    given = table()
    found = measure(Irt(responses=given, **WEAK), Fitting())
    facts = json.loads(json.dumps(dict(found.facts), allow_nan=False))
    fit = Irt(**WEAK).fit(given)
    assert facts["log_likelihood"] == fit.log_likelihood
    assert (facts["aic"], facts["bic"], facts["model"], facts["converged"]) == (fit.aic, fit.bic, "2pl", True)
    assert (facts["responses"], facts["subjects"], facts["items"]) == (given.height, 120, 20)
    assert facts["assignment"]["suspicious"] is False
    assert facts["assignment"]["note"] is None
    assert [line["predictor"] for line in facts["heldout"]] == ["irt", "item mean", "additive", "constant"]
    same = heldout_check(given, Irt(**WEAK), share=0.1, seed=0)
    assert facts["heldout"] == same.to_dicts()
    assert set(found.tables) == {"items", "subjects"}
    assert found.tables["subjects"]["theta"].equals(fit.subjects["theta"])


def test_the_check_is_off_or_impossible() -> None:
    assert "heldout" not in measure(Irt(responses=table(), heldout=0, **WEAK), Fitting()).facts
    tiny = pl.DataFrame({"subject": ["a", "b"], "item": "x", "correct": [0, 1]})
    found = measure(Irt(model="rasch", responses=tiny, heldout=1e-9), Fitting())
    assert found.facts["heldout"] == []
    assert any("there is no held-out check" in note for note in found.notes)


def test_notes_for_what_a_user_should_know() -> None:
    matrix, *_ = simulated(100, 30, seed=3)
    given = long(matrix).with_columns(
        correct=pl.when(pl.col("item") == "q00002").then(1 - pl.col("correct")).otherwise("correct")
    )
    notes = " | ".join(measure(Irt(responses=given, model="3pl", max_iterations=3), Fitting()).notes)
    for said in (
        "not converged after 3",
        "'q00002': look for wrong keys",
        "give weak priors",
        "guessing_prior",
    ):
        assert said in notes
    coin = pl.DataFrame(
        {"subject": [f"s{i // 30}" for i in range(1800)], "item": [f"q{i % 30}" for i in range(1800)],
         "correct": np.random.default_rng(0).integers(0, 2, 1800)}
    )  # fmt: skip
    notes = " | ".join(measure(Irt(responses=coin), Fitting()).notes)
    assert "predicts unseen responses no better than" in notes
    assert "stretch difficulty_unit" in notes
    gap = coin.with_columns(correct=pl.when(pl.int_range(pl.len()) < 4).then(None).otherwise("correct"))
    found = measure(Irt(responses=gap, heldout=0, **WEAK), Fitting())
    assert "4 responses have no grade and were left out" in found.notes
    assert found.facts["without_grade"] == 4


def test_hard_items_for_the_strong_are_a_fact_and_a_note() -> None:
    matrix, theta, _, b = simulated(300, 100, seed=5)
    draw = np.random.default_rng(1).random(matrix.shape)
    matrix[draw > 1 / (1 + np.exp(1 - theta[:, None] * b))] = -1
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # what fit() warns of is a note here
        found = measure(Irt(responses=long(matrix), **WEAK), Fitting())
    assert found.facts["assignment"]["suspicious"] is True
    assert any("able subjects got harder items" in note and "joint fit" in note for note in found.notes)
    with pytest.warns(IrtWarning, match="not assigned at random"):
        fit = Irt(**WEAK).fit(long(matrix))
    fail_rate = 1 - fit.items["mean"].to_numpy()
    ranks = [pl.Series(values).rank() for values in (fit.items["difficulty"], fail_rate, b)]
    assert np.corrcoef(ranks[0], ranks[2])[0, 1] > np.corrcoef(ranks[1], ranks[2])[0, 1] + 0.03


def test_every_form_of_responses_gives_the_same_bits(tmp_path: Path) -> None:
    given = table(gaps=0.3)
    given.write_csv(tmp_path / "r.csv")
    given.write_parquet(tmp_path / "r.parquet")
    wanted = Irt(model="1pl").fit(given)
    forms: list[Any] = [
        responses(given), tmp_path / "r.csv", str(tmp_path / "r.parquet"),
        ResponsesSource.model_validate(given), given.to_pandas(), given.to_arrow(),
        responses(given.sample(fraction=1, shuffle=True, seed=2)),
    ]  # fmt: skip
    for form in forms:
        found = Irt(model="1pl").fit(form)
        assert found.items.equals(wanted.items)
        assert found.subjects.equals(wanted.subjects)
    old = wanted.ability(given.filter(pl.col("subject") < "s00010"))
    assert wanted.ability(responses(given.filter(pl.col("subject") < "s00010"))).equals(old)


@pytest.mark.parametrize("gaps", [0.1, 0.9])
@pytest.mark.parametrize("twice", [0, 7])
def test_a_table_of_codes_is_the_frame_it_stands_for(gaps: float, twice: int) -> None:
    given = table(gaps=gaps)
    given = pl.concat([given, given.head(twice)]).sample(fraction=1, shuffle=True, seed=3)
    one, other = read_source(given), read_source(responses(given))
    assert one.repeats == other.repeats == twice
    assert (one.matrix is None) == (other.matrix is None) == (gaps > 0.5 or twice > 0)
    assert one.subjects.equals(other.subjects)
    for left, right in zip(one.listed(), other.listed(), strict=True):
        assert left.dtype == right.dtype
        np.testing.assert_array_equal(left, right)


def test_grades_between_and_missing_responses_are_refused() -> None:
    given = table().with_columns(correct=pl.lit(0.5))
    with pytest.raises(DataError, match="right_from"):
        measure(Irt(responses=given), Fitting())
    source = ResponsesSource.model_validate({"table": given, "right_from": 0.4})
    found = measure(Irt(responses=source), Fitting())
    assert found.items["irt.status"].unique().to_list() == ["everybody solves it"]
    with pytest.raises(ConfigError, match="needs `responses`"):
        measure(Irt(), Fitting())
    with pytest.raises(DataError, match="no responses"):
        measure(Irt(responses=table().clear()), Fitting())


def test_the_key_follows_the_bytes_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    table(seed=1).write_csv(path)
    first = Irt(responses=path).digest()
    assert Irt(responses=path).digest() == first
    table(seed=2).write_csv(path)
    assert Irt(responses=path).digest() != first
    assert set(Irt().environment()) == {"numpy", "scipy", "numba", "scikit-learn"}


@pytest.mark.parametrize("gaps", [0.2, 0.85])
def test_what_is_held_out_does_not_depend_on_the_form_or_on_blocks(
    gaps: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    matrix, *_ = simulated(70, 40, seed=6, gaps=gaps)
    whole = heldout_check(matrix, Irt(**WEAK), share=0.2)
    by_list = heldout_check(long(matrix), Irt(**WEAK), share=0.2)
    for name in ("auc", "log_loss"):
        np.testing.assert_allclose(by_list[name], whole[name], rtol=1e-6)
    monkeypatch.setattr("karat.scorers.irt.response_source._ROWS_AT_ONCE", 99)
    monkeypatch.setattr("karat.scorers.irt.heldout_split._AT_ONCE", 13)
    assert heldout_check(matrix, Irt(**WEAK), share=0.2).equals(whole)
    assert heldout_check(long(matrix), Irt(**WEAK), share=0.2).equals(by_list)
    monkeypatch.setattr(heldout, "MOST", 50)
    assert 20 < heldout_check(matrix, Irt(**WEAK), share=0.2)["responses"][0] < 90


def test_held_out_responses_are_not_in_the_fit() -> None:
    matrix, *_ = simulated(50, 30, seed=7, gaps=0.1)
    for form in (matrix, long(matrix).sample(fraction=0.2, seed=1)):
        source = read_source(form)
        kept, out = split(source, 0.3, 5)
        everything = set(zip(*(column.tolist() for column in source.listed()), strict=True))
        left, taken = (
            set(zip(*(column.tolist() for column in part), strict=True)) for part in (kept.listed(), out)
        )
        assert left | taken == everything
        assert not left & taken
        assert 0.2 < len(taken) / len(everything) < 0.4


def test_two_abilities_and_the_conditional_fit_are_checked_as_well() -> None:
    matrix, *_ = simulated(150, 12, seed=8)
    for settings in (
        {"dimensions": 2, "slope_prior": Normal(), "max_iterations": 30},
        {"model": "rasch", "estimation": "conditional"},
    ):
        lines = heldout_check(matrix, Irt(**settings), share=0.2)
        loss = dict(zip(lines["predictor"], lines["log_loss"], strict=True))
        assert loss["irt"] < loss["constant"]


def test_a_made_up_leaderboard_is_recovered() -> None:
    scorer = Irt(responses={"simulate": {"subjects": 150, "items": 40, "datasets": 2, "seed": 1}}, **WEAK)
    found = measure(scorer, Fitting())
    assert found.facts["recovery"]["r"] > 0.95
    assert set(found.tables) == {"items", "subjects", "recovery"}


def test_lsat_through_the_pipeline_is_lsat() -> None:
    found = measure(Irt(responses=lsat("LSAT6").astype(float), model="1pl"), Fitting())
    published = [-3.615267, -1.322421, -0.317631, -1.730090, -2.780172]
    np.testing.assert_allclose(found.items.sort("item")["irt.difficulty"], published, atol=3e-3)
    assert found.facts["log_likelihood"] == pytest.approx(-2466.937600, abs=1e-3)


def test_the_held_out_gap_and_its_error_by_hand() -> None:
    matrix, *_ = simulated(80, 30, seed=9)
    lines = heldout_check(matrix, Irt(**WEAK), share=0.3)
    kept, (subject, item, correct) = split(read_source(matrix), 0.3, 0, STREAM)
    fit = Irt(standard_errors="none", **WEAK).fit(kept)
    theta, se = (fit.subjects[name].to_numpy()[subject] for name in ("theta", "se"))
    a, d = (fit.items[name].to_numpy()[item] for name in "ad")
    z = np.linspace(-8, 8, 4001)
    density = np.exp(-0.5 * z * z) / np.exp(-0.5 * z * z).sum()
    p = (density / (1 + np.exp(-(a * theta + d)[:, None] - (a * se)[:, None] * z))).sum(axis=1)
    own = -np.where(correct == 1, np.log(p), np.log1p(-p))
    assert lines["log_loss"][0] == pytest.approx(own.mean(), abs=1e-4)
    mean = ((kept.counts()[1] + 0.5) / (kept.counts()[0] + 1))[item]
    gap = -np.where(correct == 1, np.log(mean), np.log1p(-mean)) - own
    assert lines["log_loss"][1] - lines["log_loss"][0] == pytest.approx(gap.mean(), abs=1e-4)
    assert lines["gap_se"][1] == pytest.approx(gap.std() / np.sqrt(gap.size), rel=1e-3)
    assert lines["gap_se"][0] == 0


def test_the_note_about_prediction() -> None:
    def lines(own: float, rival: float) -> list[dict[str, Any]]:
        names = ("irt", "item mean", "additive", "constant")
        loss = (own, 0.7, rival, 0.69)
        return [{"predictor": n, "log_loss": x, "gap_se": 0.01} for n, x in zip(names, loss, strict=True)]

    assert prediction_note(lines(0.50, 0.51)) is None
    assert "no better than 'additive'" in str(prediction_note(lines(0.51, 0.50)))
    assert prediction_note(lines(0.51, 0.50), one_slope=True) is None  # it is additive itself
    assert "worse than 'additive'" in str(prediction_note(lines(0.53, 0.50), one_slope=True))
    assert "worse than 'additive'" in str(prediction_note(lines(0.53, 0.50)))

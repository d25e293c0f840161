"""Item response theory: values from the definition, invariances, gaps, errors, flags, abilities."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lsat import long, lsat, simulated
from numpy.typing import NDArray

from karat.errors import ConfigError, DataError
from karat.scorers.irt.irt import Irt
from karat.scorers.irt.outcome import IrtFit, IrtWarning
from karat.scorers.irt.priors import Beta, LogNormal, Normal

GRID = np.linspace(-9, 9, 1201)
WEAK = {"slope_prior": LogNormal(sd=0.5), "intercept_prior": Normal(sd=3.0)}


def brute(
    matrix: NDArray[np.int8], items: pl.DataFrame
) -> tuple[float, NDArray[np.float64], NDArray[np.float64]]:
    """Log likelihood, posterior means and deviations from the definition, on 1201 nodes."""
    a, d, c, u = (items[name].to_numpy()[:, None] for name in "adcu")
    p = c + (u - c) / (1 + np.exp(-(a * GRID + d)))
    joint = (matrix == 1) @ np.log(p) + (matrix == 0) @ np.log1p(-p)
    joint += -0.5 * GRID**2 - 0.5 * np.log(2 * np.pi) + np.log(GRID[1] - GRID[0])
    top = joint.max(axis=1)
    mass = np.exp(joint - top[:, None])
    total = mass.sum(axis=1)
    mean = mass @ GRID / total
    return float((top + np.log(total)).sum()), mean, np.sqrt(mass @ GRID**2 / total - mean**2)


@pytest.mark.parametrize("model", ["rasch", "1pl", "2pl", "3pl", "4pl"])
@pytest.mark.parametrize("gaps", [0.0, 0.1, 0.7])
def test_likelihood_and_posteriors_are_those_of_the_definition(model: str, gaps: float) -> None:
    matrix, *_ = simulated(150, 25, seed=3, gaps=gaps)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", IrtWarning)
        fit = Irt(model=model, max_iterations=30, **({} if model == "rasch" else WEAK)).fit(matrix)
    value, mean, sd = brute(matrix, fit.items)
    assert fit.log_likelihood == pytest.approx(value, abs=1e-5)
    np.testing.assert_allclose(fit.subjects["theta"], mean, atol=1e-5)
    np.testing.assert_allclose(fit.subjects["se"], sd, atol=1e-5)


@pytest.mark.parametrize("model", ["rasch", "1pl", "2pl"])
def test_the_likelihood_is_at_its_maximum(model: str) -> None:
    matrix, *_ = simulated(400, 8, seed=5, gaps=0.15)
    fit = Irt(model=model).fit(matrix)
    best, *_ = brute(matrix, fit.items)
    draw = np.random.default_rng(0)
    for _ in range(20):
        step = 0.05 * draw.standard_normal((2, 8))
        step[0] = {"rasch": 0.0, "1pl": step[0, 0], "2pl": step[0]}[model]
        moved = fit.items.with_columns(a=pl.col("a") + pl.Series(step[0]), d=pl.col("d") + pl.Series(step[1]))
        assert brute(matrix, moved)[0] < best


@pytest.mark.parametrize("model", ["1pl", "2pl", "3pl"])
def test_joint_standard_errors_are_the_inverse_hessian(model: str) -> None:
    matrix, *_ = simulated(300, 5, seed=8, gaps=0.1)
    extra = {"guessing_prior": Beta(alpha=5, beta=17)} if model == "3pl" else {}
    fit = Irt(model=model, standard_errors="joint", tolerance=1e-6, **extra, **WEAK).fit(matrix)
    names = {"1pl": ["d"], "2pl": ["a", "d"], "3pl": ["a", "d", "c"]}[model]
    start = np.concatenate([fit.items[name].to_numpy() for name in names])
    start = np.r_[fit.items["a"][0], start] if model == "1pl" else start

    def objective(x: NDArray[np.float64]) -> float:
        items = fit.items.with_columns(pl.lit(x[0]).alias("a")) if model == "1pl" else fit.items
        rest = x[1:] if model == "1pl" else x
        for k, name in enumerate(names):
            items = items.with_columns(pl.Series(name, rest[5 * k : 5 * k + 5]))
        prior = 0.0
        a, d, c = (items[name].to_numpy() for name in "adc")
        prior += -0.5 * (np.log(a) ** 2 / 0.25).sum() - 0.5 * (d**2 / 9).sum()
        if model == "3pl":
            prior += (4 * np.log(c) + 16 * np.log1p(-c)).sum()
        return brute(matrix, items)[0] + float(prior)

    n, h = start.size, 1e-3
    hessian = np.empty((n, n))
    unit = np.eye(n) * h
    for i in range(n):
        for j in range(i, n):
            ends = [objective(start + s * unit[i] + t * unit[j]) for s in (1, -1) for t in (1, -1)]
            hessian[i, j] = hessian[j, i] = (ends[0] - ends[1] - ends[2] + ends[3]) / (4 * h * h)
    se = np.sqrt(np.diag(np.linalg.inv(-hessian)))
    found = np.concatenate([fit.items[f"{name}_se"].to_numpy() for name in names])
    np.testing.assert_allclose(found, se[1:] if model == "1pl" else se, rtol=2e-2)


def test_per_item_standard_errors_are_near_the_joint_ones_in_a_long_test() -> None:
    matrix, *_ = simulated(500, 60, seed=1)
    for model in ("1pl", "2pl"):
        joint = Irt(model=model, standard_errors="joint").fit(matrix).items
        single = Irt(model=model, standard_errors="per item").fit(matrix).items
        assert single["a_se"].null_count() == (60 if model == "1pl" else 0)
        for name in ("d_se",) if model == "1pl" else ("a_se", "d_se"):
            ratio = single[name] / joint[name]
            assert 0.7 < ratio.min() <= ratio.max() < 1.05


@given(seed=st.integers(0, 1000), gaps=st.sampled_from([0.0, 0.2, 0.8]))
@settings(max_examples=8, deadline=None)
def test_the_order_of_rows_does_not_matter_to_the_bit(seed: int, gaps: float) -> None:
    matrix, *_ = simulated(60, 12, seed=seed, gaps=gaps)
    table = long(matrix)
    first = Irt(model="1pl").fit(table)
    second = Irt(model="1pl").fit(table.sample(fraction=1, shuffle=True, seed=seed))
    assert first.items.equals(second.items)
    assert first.subjects.equals(second.subjects)
    assert first.log_likelihood == second.log_likelihood


def test_subjects_and_items_by_other_names_give_the_same_up_to_rounding() -> None:
    matrix, *_ = simulated(200, 45, seed=2, gaps=0.1)
    fit = Irt(**WEAK).fit(matrix)
    rows, columns = np.random.default_rng(0).permutation(200), np.random.default_rng(1).permutation(45)
    other = Irt(**WEAK).fit(matrix[np.ix_(rows, columns)])
    np.testing.assert_allclose(other.items["a"], fit.items["a"].to_numpy()[columns], atol=1e-7)
    np.testing.assert_allclose(other.subjects["theta"], fit.subjects["theta"].to_numpy()[rows], atol=1e-7)


def test_every_form_of_the_same_responses_gives_the_same_fit() -> None:
    matrix, *_ = simulated(80, 10, seed=4, gaps=0.3)
    gaps = np.where(matrix < 0, np.nan, matrix).astype(np.float64)
    table = long(matrix)
    forms = [
        matrix, gaps, gaps.astype(np.float32), table, table.lazy(),
        table.with_columns(pl.col("correct").cast(pl.Boolean)),
        table.with_columns(pl.col("correct").cast(pl.Float64)),
        pl.concat([table, table.head(3).with_columns(subject=pl.lit("s00000"), item=pl.lit("q00000"),
                                                     correct=pl.lit(None, pl.Int8))]),
    ]  # fmt: skip
    fits = [Irt(model="1pl").fit(form) for form in forms]
    for fit in fits[1:]:
        np.testing.assert_array_equal(fit.items["d"], fits[0].items["d"])


def test_sparse_and_dense_storage_agree() -> None:
    matrix, *_ = simulated(300, 50, seed=6, gaps=0.74)
    dense = Irt(**WEAK).fit(matrix)
    sparse = Irt(**WEAK).fit(long(matrix))  # below a quarter of the cells: kept as lists
    np.testing.assert_allclose(sparse.items["a"], dense.items["a"], atol=1e-8)
    assert sparse.log_likelihood == pytest.approx(dense.log_likelihood, abs=1e-7)


@pytest.mark.parametrize("model", ["2pl", "3pl"])
@pytest.mark.parametrize("gaps", [0.0, 0.1, 0.9])
def test_the_sums_of_the_gpu_are_those_of_the_cpu(model: str, gaps: float) -> None:
    matrix, *_ = simulated(120, 45, seed=7, gaps=gaps)
    own = Irt(model=model, device="cpu", max_iterations=15, tolerance=0.1, **WEAK).fit(matrix)
    other = Irt(model=model, device="torch-cpu", max_iterations=15, tolerance=0.1, **WEAK).fit(matrix)
    for name in ("a", "d", "c", "a_se", "infit"):
        np.testing.assert_allclose(
            other.items[name].cast(pl.Float64).fill_null(0), own.items[name].cast(pl.Float64).fill_null(0),
            atol=1e-7,
        )  # fmt: skip
    assert other.log_likelihood == pytest.approx(own.log_likelihood, abs=1e-7)


def test_a_gpu_that_is_not_there_is_said_so() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(ConfigError, match="no GPU"):
        Irt(device="cuda").fit(lsat("LSAT6"))


def test_recovery_of_a_long_test() -> None:
    matrix, theta, a, b = simulated(1000, 300, seed=0, gaps=0.05)
    fit = Irt(**WEAK).fit(matrix)
    assert fit.converged
    assert fit.iterations < 15
    assert np.corrcoef(fit.items["a"], a)[0, 1] > 0.94
    assert np.corrcoef(fit.items["b"], b)[0, 1] > 0.99
    assert np.sqrt(np.mean((fit.items["b"].to_numpy() - b) ** 2)) < 0.15
    assert np.corrcoef(fit.subjects["theta"], theta)[0, 1] > 0.98
    inside = np.abs(fit.items["b"].to_numpy() - b) < 1.96 * fit.items["b_se"].to_numpy()
    assert 0.88 < inside.mean() < 0.99
    assert fit.items["infit"].is_between(0.9, 1.1).all()


def test_three_and_four_parameters_fit_better_where_they_are_true() -> None:
    draw = np.random.default_rng(3)
    theta, b = draw.standard_normal(3000), np.linspace(-1.5, 1.5, 20)
    p = 0.25 + 0.7 / (1 + np.exp(-1.7 * (theta[:, None] - b)))
    matrix = (draw.random(p.shape) < p).astype(np.int8)
    priors = {"guessing_prior": Beta(alpha=5, beta=17), **WEAK}
    fits = {m: Irt(model=m, standard_errors="none", tolerance=1e-3, **priors) for m in ("2pl", "3pl")}
    fits["4pl"] = Irt(
        model="4pl", standard_errors="none", tolerance=1e-3, upper_prior=Beta(alpha=17, beta=2), **priors
    )
    found = {name: irt.fit(matrix) for name, irt in fits.items()}
    assert found["3pl"].log_likelihood > found["2pl"].log_likelihood + 20
    assert found["4pl"].log_likelihood > found["3pl"].log_likelihood + 5
    assert abs(found["4pl"].items["c"].mean() - 0.25) < 0.06
    assert abs(found["4pl"].items["u"].mean() - 0.95) < 0.03


def test_items_without_a_finite_estimate_are_flagged_and_null() -> None:
    matrix, *_ = simulated(100, 6, seed=9)
    matrix[:, 0], matrix[:, 1], matrix[:, 2] = 1, 0, -1
    matrix[80:, 3] = -1
    matrix[:75, 3] = -1
    matrix[75:80, 3] = [0, 1, 1, 0, 1]
    fit = Irt(model="1pl").fit(matrix)
    assert fit.items["d"].is_null().to_list() == [True, True, True, False, False, False]
    flags = fit.items["flags"].to_list()
    assert [flag[0] for flag in flags[:4]] == [
        "everybody solves it", "nobody solves it", "no responses", "fewer than 30 responses",
    ]  # fmt: skip
    assert "3 items have no estimate" in fit.notes[0]
    assert fit.items["difficulty"].is_null().sum() == 3
    kept = Irt(model="1pl", slope_prior=LogNormal(), intercept_prior=Normal(sd=3)).fit(matrix)
    assert kept.items["difficulty"][0] < kept.items["difficulty"][4] < kept.items["difficulty"][1]


def test_a_reversed_item_is_flagged_and_hard_stays_hard() -> None:
    matrix, *_ = simulated(800, 12, seed=10)
    matrix[:, 5] = 1 - matrix[:, 5]
    fit = Irt().fit(matrix)
    assert fit.items["a"][5] < 0
    assert "negative discrimination" in fit.items["flags"][5]
    reversed_back = matrix.copy()
    reversed_back[:, 5] = 1 - matrix[:, 5]
    assert Irt().fit(reversed_back).items["difficulty"][5] == pytest.approx(
        -fit.items["difficulty"][5], abs=1e-2
    )


def test_misfit_shows() -> None:
    matrix, *_ = simulated(1500, 20, seed=11)
    matrix[:, 4] = np.random.default_rng(0).random(1500) < 0.5
    fit = Irt(model="1pl").fit(matrix)
    assert fit.items["outfit"].arg_max() == 4
    assert fit.items["infit"][4] > 1.15


@pytest.mark.parametrize("method", ["eap", "map", "ml"])
def test_new_subjects_are_scored_as_old_ones_and_from_the_definition(method: str) -> None:
    matrix, *_ = simulated(300, 15, seed=12, gaps=0.2)
    fit = Irt(ability=method).fit(matrix)
    again = fit.ability(matrix[:40])
    np.testing.assert_allclose(again["theta"], fit.subjects["theta"][:40], atol=1e-6)
    names = long(matrix[:40]).with_columns(item=pl.col("item").str.slice(1).cast(pl.Int32).cast(pl.String))
    np.testing.assert_allclose(fit.ability(names)["theta"], again["theta"], atol=1e-6)
    a, d = fit.items["a"].to_numpy()[:, None], fit.items["d"].to_numpy()[:, None]
    p = 1 / (1 + np.exp(-(a * GRID + d)))
    value = (matrix[:40] == 1) @ np.log(p) + (matrix[:40] == 0) @ np.log1p(-p)
    value -= 0.5 * GRID**2 * (method == "map")
    inside = np.abs(GRID) <= 6
    best = GRID[inside][value[:, inside].argmax(axis=1)]
    if method != "eap":
        np.testing.assert_allclose(again["theta"], best, atol=9e-3)
        at = again["theta"].to_numpy()
        chance = 1 / (1 + np.exp(-(a.T * at[:, None] + d.T)))
        information = ((matrix[:40] >= 0) * a.T**2 * chance * (1 - chance)).sum(axis=1) + (method == "map")
        np.testing.assert_allclose(again["se"], 1 / np.sqrt(information), rtol=1e-3)


def test_perfect_patterns_have_no_maximum_and_say_so() -> None:
    fit = Irt().fit(lsat("LSAT6"))
    found = fit.ability(np.array([[1, 1, 1, 1, 1], [0, 0, 0, 0, 0], [0, 1, 1, 1, 0]]), "ml")
    assert found["theta"][:2].to_list() == [6.0, -6.0]
    assert found["status"].to_list() == ["at bound", "at bound", None]


def test_a_subject_without_responses_has_no_ability() -> None:
    matrix = lsat("LSAT6").copy()
    matrix[0] = -1
    fit = Irt().fit(matrix)
    assert fit.subjects.row(0)[1:4] == (None, None, 0)
    assert fit.subjects["status"][0] == "no responses"


BAD = [
    (pl.DataFrame({"subject": ["a", "b"], "item": ["x", "x"], "correct": [1.0, 0.5]}), "correct is 0.5"),
    (pl.DataFrame({"subject": ["a", None], "item": ["x", "x"], "correct": [1, 0]}), "subject is null"),
    (pl.DataFrame({"subject": ["a"], "item": ["x"], "corect": [1]}), "no column 'correct'"),
    (
        pl.DataFrame({"subject": ["a"], "item": ["x"], "correct": ["yes"]}),
        "row 1, column correct: 'yes' is no grade",
    ),
    (np.array([[0, 2], [1, 0]]), "a response is 2"),
    (np.zeros((3, 2), np.int8), "no item has both"),
    (np.zeros((0, 0)), "no responses"),
    (np.zeros(3), "1 axes"),
    (pl.DataFrame(schema={"subject": pl.String, "item": pl.String, "correct": pl.Int8}), "no responses"),
    ([[0, 1]], "list"),
]


@pytest.mark.parametrize(("responses", "message"), BAD)
def test_what_cannot_be_fitted_is_refused_with_its_place(responses: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Irt().fit(responses)


def test_unknown_items_and_wrong_widths_are_refused_for_new_subjects() -> None:
    fit = Irt().fit(lsat("LSAT6"))
    with pytest.raises(DataError, match="were not in the fit"):
        fit.ability(pl.DataFrame({"subject": ["a"], "item": ["nowhere"], "correct": [1]}))
    with pytest.raises(DataError, match="has 2 columns, the fit has 5 items"):
        fit.ability(np.zeros((1, 2)))
    with pytest.raises(DataError, match="expected 'eap'"):
        fit.ability(np.zeros((1, 5)), "bayes")


def test_one_subject_and_one_item_and_odd_names() -> None:
    one = pl.DataFrame({"subject": ["α", "\n"], "item": ["題", "題"], "correct": [True, False]})
    fit = Irt(model="rasch").fit(one)
    assert fit.items["item"].to_list() == ["題"]
    assert fit.items["d"][0] == pytest.approx(0, abs=1e-6)
    assert Irt(**WEAK).fit(np.array([[1, 0, 1, 0]])).converged


def test_repeated_pairs_are_independent_trials() -> None:
    table = long(lsat("LSAT6")[:200])
    fit = Irt(model="1pl").fit(pl.concat([table, table]))
    assert "1000 repeated pairs" in fit.notes[0]
    assert fit.items["responses"].to_list() == [400] * 5
    with pytest.raises(DataError, match="more than once"):
        Irt(model="rasch", estimation="conditional").fit(pl.concat([table, table]))


def test_a_fit_that_stops_early_says_so() -> None:
    with pytest.warns(IrtWarning, match="not converged after 2 iterations"):
        fit = Irt(max_iterations=2).fit(lsat("LSAT7"))
    assert not fit.converged
    assert fit.change > 1e-4


def test_settings_that_make_no_sense_are_refused() -> None:
    for wrong in (
        {"model": "2pl", "estimation": "conditional"},
        {"slope_prior": Beta()},
        {"intercept_prior": LogNormal()},
        {"model": "rasch", "slope_prior": Normal()},
        {"model": "5pl"},
    ):
        with pytest.raises(ValueError):  # noqa: PT011 - pydantic's own error
            Irt(**wrong)


def test_the_scale_is_that_of_a_standard_normal_population() -> None:
    matrix, *_ = simulated(1000, 100, seed=13)
    fit = Irt().fit(matrix)
    second = (fit.subjects["theta"] ** 2 + fit.subjects["se"] ** 2).mean()
    assert fit.subjects["theta"].mean() == pytest.approx(0, abs=1e-3)
    assert second == pytest.approx(1, abs=1e-3)


def test_curves_and_information() -> None:
    fit = Irt().fit(lsat("LSAT6"))
    theta = np.array([-1.0, 0.0, 2.0])
    p = fit.chances(theta)
    np.testing.assert_allclose(p[0, 1], 1 / (1 + np.exp(-fit.items["d"][0])))
    wanted = (fit.items["a"].to_numpy()[:, None] ** 2 * p * (1 - p)).sum(axis=0)
    np.testing.assert_allclose(fit.information(theta), wanted)


def conditional(matrix: NDArray[np.int8]) -> IrtFit:
    return Irt(model="rasch", estimation="conditional").fit(matrix)


def test_conditional_likelihood_with_gaps_from_the_definition() -> None:
    matrix, *_ = simulated(60, 5, seed=14, gaps=0.25)
    fit = conditional(matrix)
    b = fit.items["b"].to_numpy()
    value = 0.0
    for row in matrix:
        seen = np.flatnonzero(row >= 0)
        ways = [[(code >> k) & 1 for k in range(seen.size)] for code in range(1 << seen.size)]
        alike = [way for way in ways if sum(way) == row[seen].sum()]
        weights = [float(np.exp(-(np.array(way) @ b[seen]))) for way in alike]
        value += float(-(row[seen] @ b[seen]) - np.log(sum(weights)))
    assert fit.log_likelihood == pytest.approx(value, abs=1e-8)
    assert b.sum() == pytest.approx(0, abs=1e-9)


def test_conditional_and_marginal_agree_on_a_large_sample() -> None:
    draw = np.random.default_rng(0)
    b = np.linspace(-1.5, 1.5, 12)
    matrix = (draw.random((4000, 12)) < 1 / (1 + np.exp(-(draw.standard_normal(4000)[:, None] - b)))).astype(
        np.int8
    )
    marginal = Irt(model="rasch").fit(matrix).items
    found = conditional(matrix).items
    np.testing.assert_allclose(found["b"], marginal["b"] - marginal["b"].mean(), atol=0.01)
    np.testing.assert_allclose(found["b_se"], marginal["b_se"], rtol=0.15)


def test_frames_are_read_as_files_are() -> None:
    """Other names of the columns, grades as text, a matrix in a frame: one format for all methods."""
    cells = np.random.default_rng(0).integers(0, 2, (60, 4))
    matrix = pl.DataFrame(cells, schema=["0", "1", "2", "3"])
    table = matrix.with_row_index("subject").unpivot(
        index="subject", variable_name="item", value_name="correct"
    )
    expected = Irt(model="1pl").fit(table).items
    words = pl.col("correct").replace_strict({0: "false", 1: "true"})
    named = table.rename({"subject": "model", "item": "question", "correct": "score"})
    wide = pd.DataFrame(cells)
    for form in (table.with_columns(words), named, named.to_pandas(), matrix, wide, cells.astype(object)):
        assert Irt(model="1pl").fit(form).items.equals(expected)

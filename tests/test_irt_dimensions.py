"""Several abilities, the held-out check, and the warning about assignment."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import polars as pl
import pytest
from lsat import long, lsat, simulated
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression

from karat.errors import DataError
from karat.scorers.irt.heldout import auc, heldout_check, log_loss
from karat.scorers.irt.heldout_baselines import baselines
from karat.scorers.irt.heldout_split import split
from karat.scorers.irt.irt import Irt
from karat.scorers.irt.outcome import IrtWarning
from karat.scorers.irt.priors import Normal
from karat.scorers.irt.response_source import read_source


def two_abilities(
    subjects: int, items: int
) -> tuple[NDArray[np.int8], NDArray[np.float64], NDArray[np.float64]]:
    draw = np.random.default_rng(1)
    slopes = np.zeros((items, 2))
    slopes[: items // 2, 0], slopes[items // 2 :, 1] = 1.6, 1.1
    theta, d = draw.standard_normal((subjects, 2)), draw.standard_normal(items)
    right = draw.random((subjects, items)) < 1 / (1 + np.exp(-(theta @ slopes.T + d)))
    return right.astype(np.int8), slopes, theta


def test_two_abilities_are_recovered_on_principal_axes() -> None:
    matrix, slopes, theta = two_abilities(800, 16)
    fit = Irt(dimensions=2).fit(matrix)
    assert fit.converged
    found = fit.items.select("a_1", "a_2").to_numpy()
    assert abs(float(found[:, 0] @ found[:, 1])) < 1e-8
    assert (found[:, 0] ** 2).sum() > (found[:, 1] ** 2).sum()
    # Products of slopes are the same for every rotation.
    products = np.corrcoef((found @ found.T).ravel(), (slopes @ slopes.T).ravel())[0, 1]
    assert products > 0.95
    assert fit.log_likelihood > Irt().fit(matrix).log_likelihood + 100
    first = fit.subjects["theta_1"].to_numpy()
    assert abs(np.corrcoef(first, theta[:, 0])[0, 1]) > 0.75
    rows, columns = np.random.default_rng(0).permutation(800), np.random.default_rng(1).permutation(16)
    other = Irt(dimensions=2).fit(matrix[np.ix_(rows, columns)])
    np.testing.assert_allclose(other.items["a_1"], fit.items["a_1"].to_numpy()[columns], atol=0.03)
    again = fit.ability(matrix[:5])
    np.testing.assert_allclose(again["theta_1"], fit.subjects["theta_1"][:5], atol=1e-4)


def test_likelihood_of_two_abilities_is_that_of_a_dense_grid() -> None:
    matrix, *_ = two_abilities(80, 8)
    matrix[::7, 3] = -1
    fit = Irt(dimensions=2, slope_prior=Normal(sd=1)).fit(matrix)
    x = np.linspace(-6, 6, 121)
    grid = np.stack(np.meshgrid(x, x), axis=-1).reshape(-1, 2)
    p = fit.chances(grid)
    joint = (matrix == 1) @ np.log(p) + (matrix == 0) @ np.log1p(-p)
    joint += -0.5 * (grid**2).sum(1) - np.log(2 * np.pi) + 2 * np.log(x[1] - x[0])
    assert fit.log_likelihood == pytest.approx(np.logaddexp.reduce(joint, axis=1).sum(), abs=2e-3)
    assert fit.parameters == 8 * 3 - 1


def test_one_ability_by_the_other_algorithm_gives_lsat() -> None:
    """The code for several abilities run with one: two programs, one published likelihood."""
    from karat.scorers.irt.multidim import posteriors, response_lists
    from karat.scorers.irt.response_source import read_source

    fit = Irt().fit(lsat("LSAT7"))
    lists = response_lists(read_source(lsat("LSAT7")), np.ones(5, bool))
    found = posteriors(lists, fit.items.select("a", "d").to_numpy(), np.zeros((1000, 1)), 21)
    assert found.log_likelihood.sum() == pytest.approx(-2658.805114, abs=1e-4)
    np.testing.assert_allclose(found.mean[:, 0], fit.subjects["theta"], atol=1e-4)


def test_settings_for_several_abilities() -> None:
    for wrong in ({"model": "3pl"}, {"ability": "ml"}, {"intercept_prior": Normal()}, {"dimensions": 6}):
        with pytest.raises(ValueError):  # noqa: PT011 - pydantic's own error
            Irt(**{"dimensions": 2, **wrong})


def test_the_model_predicts_better_than_means_where_it_is_true() -> None:
    matrix, *_ = simulated(400, 60, seed=0)
    table = heldout_check(matrix, share=0.1, seed=1)
    rows = {row["predictor"]: row for row in table.to_dicts()}
    assert list(rows) == ["irt", "item mean", "additive", "constant"]
    assert rows["irt"]["auc"] > rows["additive"]["auc"] > rows["item mean"]["auc"] > 0.6
    assert rows["irt"]["log_loss"] < rows["additive"]["log_loss"] < rows["item mean"]["log_loss"]
    assert rows["constant"]["auc"] == 0.5
    assert 2000 < rows["irt"]["responses"] < 2800
    assert table.equals(heldout_check(matrix, share=0.1, seed=1))
    assert not table.equals(heldout_check(matrix, share=0.1, seed=2))


def test_the_order_of_rows_does_not_change_the_heldout_check() -> None:
    matrix, *_ = simulated(100, 20, seed=0, gaps=0.2)
    table = long(matrix)
    shuffled = table.sample(fraction=1, shuffle=True, seed=3)
    assert heldout_check(table).equals(heldout_check(shuffled))


def test_nothing_beats_a_coin_where_there_is_nothing_to_learn() -> None:
    coin = (np.random.default_rng(0).random((200, 30)) < 0.5).astype(np.int8)
    table = heldout_check(coin, share=0.2)
    assert table["auc"].is_between(0.45, 0.55).all()
    assert table["log_loss"].is_between(0.68, 0.75).all()


def test_heldout_figures_by_hand() -> None:
    truth = np.array([True, False, True, False])
    assert auc(np.array([0.9, 0.1, 0.5, 0.5]), truth) == pytest.approx(3.5 / 4)
    assert auc(np.array([0.9, 0.1]), np.array([True, True])) is None
    assert log_loss(np.array([0.5, 0.75]), np.array([True, False])) == pytest.approx(1.5 * np.log(2))


@pytest.mark.parametrize("share", [0.0, 1.0, -1.0])
def test_impossible_shares_are_refused(share: float) -> None:
    with pytest.raises(DataError, match="between 0 and 1"):
        heldout_check(lsat("LSAT6"), share=share)
    with pytest.raises(DataError, match="would be held out"):
        heldout_check(np.array([[1, 0]]), share=1e-9)


def test_unseen_items_and_subjects_are_predicted_by_the_mean() -> None:
    matrix, *_ = simulated(50, 10, seed=2)
    matrix[:, 0] = 1
    matrix[1:, 1] = -1
    assert heldout_check(matrix, share=0.5, seed=0)["log_loss"].is_finite().all()


def assigned(targeted: bool) -> pl.DataFrame:
    draw = np.random.default_rng(5)
    theta, b = draw.standard_normal(600), np.linspace(-2, 2, 60)
    rows = []
    for i, ability in enumerate(theta):
        near = np.exp(-((b - ability) ** 2)) if targeted else np.ones(60)
        for j in draw.choice(60, 20, replace=False, p=near / near.sum()):
            right = draw.random() < 1 / (1 + np.exp(-1.5 * (ability - b[j])))
            rows.append((f"s{i:03}", f"q{j:02}", int(right)))
    return pl.DataFrame(rows, schema=["subject", "item", "correct"], orient="row")


def test_hard_items_for_the_strong_are_reported_and_the_joint_fit_sees_through_them() -> None:
    table = assigned(targeted=True)
    with pytest.warns(IrtWarning, match="able subjects got harder items"):
        fit = Irt().fit(table)
    assert fit.assignment.correlation > 0.5
    true = np.linspace(-2, 2, 60)
    by_fit = np.corrcoef(fit.items["b"], true)[0, 1]
    slope_of_fail_rate = np.polyfit(true, 1 - fit.items["mean"].to_numpy(), 1)[0]
    assert by_fit > 0.97
    assert slope_of_fail_rate < 0.15  # fail rates are nearly flat, though the items differ by 4 units


def test_random_assignment_is_not_reported() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", IrtWarning)
        fit = Irt().fit(assigned(targeted=False))
    assert abs(fit.assignment.correlation) < 0.2


@pytest.mark.parametrize("matrix", [False, True])
@pytest.mark.parametrize("targeted", [False, True])
def test_the_additive_baseline_is_a_regression_of_its_own(
    targeted: bool, matrix: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Means of subjects and items are a straw man where strong subjects get hard items."""
    monkeypatch.setattr("karat.scorers.irt.response_source._ROWS_AT_ONCE", 4000)
    source = read_source(assigned(targeted))
    source = read_source(source._dense()) if matrix else source
    kept, (subject, item, truth) = split(source, 0.1, 0)
    found = baselines(kept, subject, item)["additive"]
    who, what, correct = kept.listed()

    def ones(who: Any, what: Any) -> Any:
        columns = np.stack([who, what + 600], axis=1).ravel()
        return csr_matrix(
            (np.ones(columns.size), columns, np.arange(0, columns.size + 1, 2)), (who.size, 660)
        )

    fitted = LogisticRegression(C=1.0, max_iter=5000, tol=1e-8).fit(ones(who, what), correct)
    own = fitted.predict_proba(ones(subject, item))[:, 1]
    assert np.abs(found - own).max() < 0.002
    assert log_loss(found, truth == 1) == pytest.approx(log_loss(own, truth == 1), abs=5e-4)


def test_additive_effects_settle_at_the_extremes() -> None:
    draw = np.random.default_rng(0)
    matrix = (draw.random((300, 200)) < 0.999).astype(np.int8)
    matrix[0], matrix[:, 0] = 0, 0
    kept = read_source(matrix)
    chances = baselines(kept, np.array([0, 1, 0, 1]), np.array([0, 0, 1, 1]))["additive"]
    assert (chances < [0.01, 0.1, 0.1, 1]).all()
    assert chances[3] > 0.98

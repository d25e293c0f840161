"""The race on synthetic fields: the promised rate of right runs, its parts against brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, t

from karat.scorers.race import (
    FEWEST,
    Later,
    Orders,
    Raced,
    below_winners,
    combined,
    cut_below,
    hopeless,
    missing,
    race,
    schedule,
)
from karat.scorers.race_fit import Estimates, Fit, Floats, Rows, prior_freedom


class Matrix:
    """A field whose values and features are all there; counts what is drawn."""

    def __init__(self, values: Floats, features: Floats, seed: int) -> None:
        self.all, self.known = values, features
        self.means, self.values = features.mean(1), values.shape[1]
        self.quoted = np.zeros((0, features.shape[2])), np.zeros(0)
        self.columns = Orders(len(values), self.values, seed).columns
        self.drawn = self.skipped = 0

    def draw(self, step: str, rows: Rows, start: int, stop: int) -> Later:
        self.drawn += rows.size * (stop - start)
        return lambda: np.asarray(self.all[rows[:, None], self.columns(rows, start, stop)])

    def features(self, rows: Rows, stop: int) -> tuple[Floats, Rows]:
        columns = self.columns(rows, 0, stop)
        return self.known[rows[:, None], columns], columns

    def finish(self, step: str, rows: Rows, drawn: Floats) -> Later:
        self.drawn += rows.size * (self.values - drawn.shape[1])
        return lambda: np.array([np.mean(row) for row in self.all[rows]])

    def skip(self, values: int) -> None:
        self.skipped += values


def field(kind: str, seed: int, rows: int = 300, columns: int = 60) -> Matrix:
    """A row effect that two features foresee in part, a column effect, and residuals of one kind."""
    random = np.random.default_rng(seed)
    first, second = random.normal(size=(2, rows, columns)) + random.normal(size=(2, rows, 1))
    noise = random.normal(size=(rows, columns))
    if kind == "heavy":
        noise = random.standard_t(5, size=(rows, columns))
    elif kind == "skewed":
        noise = random.exponential(size=(rows, columns)) * -1.0
    elif kind == "two kinds of targets":
        noise += 2.5 * random.choice([-1, 1], (rows, 1)) * (np.arange(columns) % 4 == 0)
    elif kind == "unequal rows":
        noise *= random.lognormal(0, 0.6, (rows, 1))
    elif kind == "odd rows":
        noise += 3.0 * random.standard_t(2, (rows, 1))
    useful = 0.0 if kind == "useless features" else 1.0
    values = useful * (first - 0.5 * second) + 0.6 * random.normal(size=(1, columns)) + noise
    values += random.normal(size=(rows, 1)) * 0.5
    return Matrix(0.02 * values, np.stack([np.ones_like(first), first, second], axis=-1), seed)


KINDS = ["normal", "heavy", "skewed", "two kinds of targets", "unequal rows", "odd rows", "useless features"]


def run(made: Matrix, k: int, confidence: float) -> tuple[Raced, bool]:
    found = race(made, np.ones(len(made.all), np.int64), k, confidence)
    true = np.array([np.mean(row) for row in made.all])
    right = bool(found.exact[true >= np.sort(true)[-k]].all())
    assert (found.score[found.exact] == true[found.exact]).all()
    assert (found.bound[found.exact] == 0).all()
    assert (found.score[~found.exact] < np.sort(found.score[found.exact])[-k]).all()
    return found, right


def too_many(wrong: int, runs: int, confidence: float) -> bool:
    """Whether so many wrong runs would come by chance less than once in a thousand times."""
    return bool(binom.sf(wrong - 1, runs, 1 - confidence) < 1e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("confidence", [0.8, 0.99])
def test_the_best_are_right_as_often_as_promised(kind: str, confidence: float) -> None:
    runs, k = 40, 30
    outcomes = [run(field(kind, seed), k, confidence) for seed in range(runs)]
    wrong = sum(not right for _, right in outcomes)
    assert not too_many(wrong, runs, confidence), f"{wrong} of {runs} runs are wrong"


def test_the_check_of_the_rate_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors a third as large as they should be must show."""
    true_half = Estimates.above

    def bold(self: Estimates, cut: float) -> Floats:
        smaller = Estimates(self.mean, self.error / 3, self.freedom, self.foreseen, self.spread)
        return true_half(smaller, cut)

    monkeypatch.setattr(Estimates, "above", bold)
    wrong = sum(not run(field("normal", seed), 30, 0.8)[1] for seed in range(40))
    assert too_many(wrong, 40, 0.8)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("rows", "columns", "k"), [(400, 100, 4), (1000, 50, 100), (200, 200, 40)])
def test_the_best_are_right_in_many_more_runs(kind: str, rows: int, columns: int, k: int) -> None:
    for confidence in (0.8, 0.95):
        wrong = sum(not run(field(kind, seed, rows, columns), k, confidence)[1] for seed in range(100))
        assert not too_many(wrong, 100, confidence), f"{wrong} of 100 runs at {confidence}"


@pytest.mark.parametrize("kind", KINDS)
def test_the_bounds_hold_for_as_many_rows_as_stated(kind: str) -> None:
    inside, count = 0, 0
    for seed in range(10):
        made = field(kind, seed)
        found, _ = run(made, 20, 0.9)
        hit = np.abs(found.score - made.all.mean(1)) <= found.bound
        inside, count = inside + int(hit[~found.exact].sum()), count + int((~found.exact).sum())
    # Rows are rejected when they look low, so that a share a little below the nominal one is expected.
    assert inside / count > 0.86


def test_a_good_regression_saves_most_draws() -> None:
    made = field("normal", 0, rows=1000, columns=200)
    made.all -= 0.9 * (made.all - made.known @ np.array([0, 0.02, -0.01]))
    run(made, 100, 0.99)
    assert made.drawn + made.skipped == made.all.size
    assert made.drawn < 0.25 * made.all.size


def test_equal_scores_at_the_cut_are_all_exact() -> None:
    made = field("normal", 1)
    made.all[10:40] = made.all[10]
    made.known[10:40] = made.known[10]
    made.means = made.known.mean(1)
    true = made.all.mean(1)
    for k in range(int((true > true[10]).sum()) + 1, int((true >= true[10]).sum()) + 1, 7):
        found, right = run(made, k, 0.99)
        assert right
        assert found.exact[10:40].all()


def test_rows_that_cannot_be_told_apart_are_completed_before_too_many_values_are_held(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Noise alone, and half of the rows wanted: nearly all stay open, and N x M values would pile up."""
    monkeypatch.setattr("karat.scorers.race.MOST_VALUES", 2_000)
    for name, rows, columns in (("useless features", 300, 200), ("normal", 1000, 60)):
        made, held = field(name, 6, rows, columns), []

        def drawing(
            step: str, rows: Rows, start: int, stop: int, made: Matrix = made, held: list[int] = held
        ) -> Later:
            held.append(rows.size * stop)
            return Matrix.draw(made, step, rows, start, stop)

        monkeypatch.setattr(made, "draw", drawing)
        _, right = run(made, rows // 2, 0.99)
        assert right
        assert max(held) <= 8 * rows
        assert made.drawn + made.skipped == made.all.size


@pytest.mark.parametrize("flat", ["values", "features", "both"])
def test_nothing_to_tell_rows_apart_by(flat: str) -> None:
    made = field("normal", 2)
    if flat != "features":
        made.all[:] = 0.25
    if flat != "values":
        made.known[:] = 1.0
        made.means = made.known.mean(1)
    found, right = run(made, 30, 0.99)
    assert right
    assert np.isfinite(found.score).all()
    assert np.isfinite(found.bound).all()


@pytest.mark.parametrize("count", [1, 2, FEWEST - 1, FEWEST, FEWEST + 1, 20])
@pytest.mark.parametrize("k", [1, 5, 49, 50, 1000])
def test_few_columns_and_every_k(count: int, k: int) -> None:
    made = field("normal", 3, rows=50, columns=count)
    found = race(made, np.ones(50, np.int64), k, 0.999)
    true = made.all.mean(1)
    best = np.argsort(-true)[:k]
    assert found.exact[best].all()
    np.testing.assert_array_equal(
        found.score[found.exact], np.array([np.mean(r) for r in made.all])[found.exact]
    )


def test_a_row_takes_as_many_places_as_it_has_copies() -> None:
    made = field("normal", 4)
    copies = np.random.default_rng(0).integers(1, 6, 300)
    found = race(made, copies, 60, 0.999)
    order = np.argsort(-made.all.mean(1))
    last = int(np.searchsorted(np.cumsum(copies[order]), 60))
    assert found.exact[order[: last + 1]].all()
    assert (found.score[~found.exact] < made.all.mean(1)[order[last]]).all()


@pytest.mark.parametrize("columns", [8, 30, 97])
def test_every_row_meets_every_column_once_and_each_place_is_random(columns: int) -> None:
    orders = Orders(4000, columns, 0)
    found = orders.columns(np.arange(4000), 0, columns)
    assert (np.sort(found, axis=1) == np.arange(columns)).all()
    first_three = np.bincount(found[:, :3].ravel(), minlength=columns) / 12_000 * columns
    assert np.abs(first_three - 1).max() < 0.35
    assert (orders.columns(np.array([7, 3]), 2, 5) == found[[7, 3], 2:5]).all()


def test_the_schedule_grows_and_stops_short_of_all() -> None:
    assert schedule(8) == [2, 3, 4, 5]
    for values in range(8, 500, 7):
        steps = schedule(values)
        assert steps == sorted(set(steps))
        assert steps[0] == 2
        assert steps[-1] < values


@given(st.lists(st.floats(0, 1), max_size=30), st.floats(0, 0.5))
def test_rejected_chances_sum_to_the_risk_at_most_and_no_more_would_fit(
    chances: list[float], risk: float
) -> None:
    chance = np.array(chances)
    rejected = hopeless(chance, risk)
    assert chance[rejected].sum() <= risk * (1 + 1e-12)
    if not rejected.all():
        assert chance[rejected].sum() + chance[~rejected].min() > risk * (1 - 1e-12)


def test_fishers_combination_is_uniform_under_the_hypothesis() -> None:
    pair = np.random.default_rng(0).random((2, 100_000))
    found = combined(*pair)
    for level in (0.5, 0.1, 0.01):
        assert (found <= level).mean() == pytest.approx(level, rel=0.15)


def estimates(mean: Floats, error: Floats) -> Estimates:
    return Estimates(mean, error, 20.0, mean, 1.0)


@pytest.mark.parametrize("k", [1, 3, 20])
@pytest.mark.parametrize("risk", [0.01, 0.1])
def test_the_cut_lies_too_high_no_more_often_than_the_risk(k: int, risk: float) -> None:
    random = np.random.default_rng(k)
    mean, error = random.normal(size=60), random.uniform(0.05, 0.3, 60)
    copies = random.integers(1, 3, 60)
    exact, exact_copies = np.array([1.5, 0.2]), np.array([1, 2])
    cut = cut_below(estimates(mean, error), copies, exact, exact_copies, k, risk)
    true = mean + error * t.rvs(20, size=(20_000, 60), random_state=1)
    held = ((true >= cut) * copies).sum(1) + exact_copies[exact >= cut].sum()
    assert (held < k).mean() <= risk
    closer = cut + 0.6
    held = ((true >= closer) * copies).sum(1) + exact_copies[exact >= closer].sum()
    assert (held < k).mean() > risk, "the cut could lie much higher"


def test_the_cut_of_exact_scores_is_their_kth() -> None:
    none = estimates(np.zeros(0), np.zeros(0))
    exact, copies = np.array([0.5, 0.9, 0.1]), np.array([2, 1, 1])
    nothing = np.zeros(0, np.int64)
    assert cut_below(none, nothing, exact, copies, 2, 0.01) == pytest.approx(0.5, abs=1e-4)
    assert cut_below(none, nothing, exact, copies, 4, 0.01) == pytest.approx(0.1, abs=1e-4)
    assert cut_below(none, nothing, exact, copies, 5, 0.01) == -np.inf


def test_rejected_rows_are_taken_back_where_places_are_short() -> None:
    score, exact = np.array([0.1, 0.9, 0.3, 0.2]), np.array([False, True, False, False])
    assert missing(score, exact, np.array([1, 1, 1, 1]), 1).tolist() == []
    assert missing(score, exact, np.array([1, 1, 1, 1]), 3).tolist() == [2, 3]
    assert missing(score, exact, np.array([1, 1, 2, 1]), 3).tolist() == [2]


def test_estimates_end_below_the_last_winner_and_bounds_still_reach_as_high() -> None:
    found = below_winners(
        Raced(
            np.array([0.5, 0.7, 0.6, 0.2]),
            np.array([0.0, 0.1, 0.0, 0.3]),
            np.array([True, False, True, False]),
        ),
        np.ones(4, np.int64),
        2,
    )
    assert found.score[1] == np.nextafter(0.5, -1)
    assert found.score[1] + found.bound[1] >= 0.8
    assert found.score[[0, 2, 3]].tolist() == [0.5, 0.6, 0.2]
    assert found.bound[[0, 2, 3]].tolist() == [0.0, 0.0, 0.3]


def test_what_the_features_explain_leaves_no_error() -> None:
    made = field("normal", 5)
    made.all = made.known @ np.array([0.3, 0.02, -0.01])
    rows = np.arange(300)
    found = Fit().estimates(made, rows, made.draw("", rows, 0, 4)())
    np.testing.assert_allclose(found.mean, made.all.mean(1), atol=1e-6)
    assert found.error.max() < 1e-6


def test_estimates_are_right_on_average_and_err_as_much_as_they_say() -> None:
    ratios, bias = [], []
    for seed in range(20):
        made = field("normal", seed)
        rows = np.arange(300)
        found = Fit().estimates(made, rows, made.draw("", rows, 0, 6)())
        off = found.mean - made.all.mean(1)
        ratios.append(np.sqrt((off**2).mean()) / np.sqrt((found.error**2).mean()))
        bias.append(off.mean() / found.error.mean())
    assert np.mean(ratios) == pytest.approx(1.0, abs=0.08)
    assert abs(np.mean(bias)) < 0.1


def test_the_prior_knows_how_much_variances_differ() -> None:
    random = np.random.default_rng(0)
    for truth in (4.0, 12.0):
        scale = truth / random.chisquare(truth, 20_000)
        variances = scale * random.chisquare(5, 20_000) / 5
        assert prior_freedom(variances, 5) == pytest.approx(truth, rel=0.2)
    assert prior_freedom(random.chisquare(5, 20_000) / 5, 5) > 100
    assert prior_freedom(np.zeros(10), 5) > 0

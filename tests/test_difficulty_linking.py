"""Linked scales: lines with errors in both coordinates, and difficulties against the joint fit."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from karat.errors import DataError
from karat.scorers.difficulty import LinkWarning, link, links
from karat.scorers.difficulty.lines import Points, fitted
from karat.scorers.glicko2.model import Glicko2
from karat.scorers.irt.irt import Irt
from karat.scorers.irt.outcome import IrtFit
from karat.scorers.irt.priors import LogNormal, Normal

WEAK: dict[str, Any] = {"slope_prior": LogNormal(sd=0.5), "intercept_prior": Normal(sd=3.0)}
Floats = NDArray[np.float64]


def points(seed: int, n: int, scatter: float, errors: tuple[float, float], slope: float = 1.5) -> Points:
    draw = np.random.default_rng(seed)
    true = draw.standard_normal(n)
    x_se, y_se = (size * np.exp(0.3 * draw.standard_normal(n)) for size in errors)
    x = true + scatter * draw.standard_normal(n) + x_se * draw.standard_normal(n)
    y = slope * (true + scatter * draw.standard_normal(n)) - 0.7 + y_se * draw.standard_normal(n)
    return Points(x, y, x_se**2, y_se**2)


@pytest.mark.parametrize(("scatter", "errors"), [(0.0, (0.3, 0.3)), (0.0, (0.05, 0.6)), (0.3, (0.1, 0.1))])
def test_the_line_is_unbiased_and_its_errors_are_right(scatter: float, errors: tuple[float, float]) -> None:
    found = [fitted(points(seed, 60, scatter, errors), free_slope=True) for seed in range(150)]
    lines = [line for line in found if line is not None]
    assert len(lines) == 150
    slopes, shifts = (np.array([getattr(line, name) for line in lines]) for name in ("slope", "shift"))
    errors_said = np.sqrt([np.diag(line.covariance) for line in lines]).mean(axis=0)
    assert slopes.mean() == pytest.approx(1.5, abs=3 * slopes.std() / 12)
    assert shifts.mean() == pytest.approx(-0.7, abs=3 * shifts.std() / 12)
    np.testing.assert_allclose(errors_said, [slopes.std(), shifts.std()], rtol=0.2)
    covered = np.abs(slopes - 1.5) < 1.96 * np.sqrt([line.covariance[0, 0] for line in lines])
    assert covered.mean() > 0.88
    least_squares = [np.polyfit(p.x, p.y, 1)[0] for p in (points(s, 60, 0.0, (0.6, 0.1)) for s in range(40))]
    assert np.mean(least_squares) < 1.25  # what ignoring the errors in x would do


def test_without_errors_the_slope_is_the_ratio_of_the_spreads_and_with_them_yorks() -> None:
    exact = points(1, 40, 0.3, (1e-9, 1e-9))
    line = fitted(exact, free_slope=True)
    assert line is not None
    assert line.slope == pytest.approx(exact.y.std() / exact.x.std(), rel=1e-6)
    noisy = points(2, 40, 0.0, (0.2, 0.4))
    line = fitted(noisy, free_slope=True)
    assert line is not None
    if line.scatter == 0:

        def squares(slope: float) -> float:
            weight = 1 / (noisy.y_var + slope**2 * noisy.x_var)
            rest = noisy.y - slope * noisy.x
            return float(weight @ (rest - weight @ rest / weight.sum()) ** 2)

        grid = line.slope + np.linspace(-0.3, 0.3, 601)
        assert abs(grid[np.argmin([squares(s) for s in grid])] - line.slope) < 1.1e-3


def test_the_line_backwards_is_the_line() -> None:
    one = points(3, 50, 0.2, (0.2, 0.3))
    there = fitted(one, free_slope=True)
    back = fitted(Points(one.y, one.x, one.y_var, one.x_var), free_slope=True)
    assert there is not None
    assert back is not None
    assert back.slope == pytest.approx(1 / there.slope, rel=1e-5)
    assert back.shift == pytest.approx(-there.shift / there.slope, rel=1e-4)


def test_another_origin_and_unit_of_x_move_the_line_and_its_errors_along() -> None:
    one = points(3, 50, 0.2, (0.2, 0.3))
    moved = fitted(Points(3 * one.x + 6, one.y, 9 * one.x_var, one.y_var), free_slope=True)
    line = fitted(one, free_slope=True)
    assert line is not None
    assert moved is not None
    # y = A x + B = (A / 3) x' + (B - 2 A)
    change = np.array([[1 / 3, 0.0], [-2.0, 1.0]])
    np.testing.assert_allclose([moved.slope, moved.shift], change @ [line.slope, line.shift], rtol=1e-5)
    np.testing.assert_allclose(moved.covariance, change @ line.covariance @ change.T, rtol=1e-4)
    at = np.array([-1.0, 0.5])
    np.testing.assert_allclose(
        line.variance_at(at), [(p := np.array([x, 1.0])) @ line.covariance @ p for x in at]
    )


def test_a_shift_alone_is_the_weighted_mean() -> None:
    p = Points(np.array([0.0, 1.0]), np.array([1.0, 2.6]), np.array([0.5, 0.5]), np.array([0.5, 3.5]))
    line = fitted(p, free_slope=False)
    assert line is not None
    assert (line.slope, line.scatter) == (1.0, 0.0)
    assert line.shift == pytest.approx((1.0 + 1.6 / 4) / 1.25)
    assert line.covariance[1, 1] == pytest.approx(1 / 1.25)


def two_datasets(
    seed: int, shared: int = 80, n: int = 300, items: tuple[int, int] = (40, 60)
) -> tuple[dict[str, pl.DataFrame], Floats, Floats]:
    """Tables of "a" and "b" (abler subjects, less spread out), all abilities, and b's difficulties."""
    draw = np.random.default_rng(seed)
    theta = np.concatenate([draw.standard_normal(n), 0.8 + 0.6 * draw.standard_normal(n)])
    tables, difficulty = {}, np.zeros(0)
    for k, name in enumerate("ab"):
        a, difficulty = np.exp(0.3 * draw.standard_normal(items[k])), draw.standard_normal(items[k])
        who = np.r_[np.arange(k * n, (k + 1) * n), np.arange((1 - k) * n, (1 - k) * n + shared)]
        p = 1 / (1 + np.exp(-a * (theta[who][:, None] - difficulty)))
        correct = draw.random(p.shape) < p
        row, item = np.indices(p.shape).reshape(2, -1)
        tables[name] = pl.DataFrame(
            {"subject": [f"s{who[i]}" for i in row], "item": [f"{name}{j:03}" for j in item],
             "correct": correct.reshape(-1)}
        )  # fmt: skip
    return tables, theta, difficulty


def fit_each(tables: dict[str, pl.DataFrame], **settings: Any) -> dict[str, IrtFit]:
    return {name: Irt(**WEAK, **settings).fit(table) for name, table in tables.items()}


def test_linked_difficulties_are_true_within_their_errors_and_near_the_joint_fit() -> None:
    distances, gaps = [], []
    for seed in range(4):
        tables, theta, b = two_datasets(seed)
        linked = link(fit_each(tables), to="a")
        of_a = np.r_[theta[:300], theta[300:380]]
        true = (b - of_a.mean()) / of_a.std()
        found = linked.filter(pl.col("dataset") == "b")
        distances.append((found["difficulty"].to_numpy() - true) / found["difficulty_se"].to_numpy())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            joint = Irt(**WEAK).fit(pl.concat(tables.values())).items["difficulty"].to_numpy()
        both = linked["difficulty"].to_numpy()
        gaps.append(np.corrcoef(joint, both)[0, 1])
        # On the joint fit's scale, brought to that of dataset a by its items.
        scale = np.polyfit(joint[:40], both[:40], 1)
        assert np.sqrt(np.mean((np.polyval(scale, joint[40:]) - both[40:]) ** 2)) < 0.25
        alone = fit_each(tables)["b"].items["difficulty"].to_numpy()
        assert np.sqrt(np.mean((alone - true) ** 2)) > 0.45  # what not linking would do
    z = np.concatenate(distances)
    assert 0.8 < z.std() < 1.25
    assert (np.abs(z) < 1.96).mean() > 0.9
    assert min(gaps) > 0.985


def test_the_table_of_a_link() -> None:
    tables, _, _ = two_datasets(9, items=(6, 5), n=60, shared=20)
    fits = fit_each(tables)
    linked = link(fits, to="b")
    assert linked.columns == [
        "dataset", "item", "difficulty", "difficulty_se", "discrimination", "difficulty_quantile",
        "difficulty_quantile_se", "difficulty_unit", "difficulty_unit_se",
    ]  # fmt: skip
    assert linked["dataset"].to_list() == ["a"] * 6 + ["b"] * 5
    assert linked["difficulty"].tail(5).equals(fits["b"].items["difficulty"])
    assert linked["difficulty_se"].tail(5).to_list() == pytest.approx(
        fits["b"].items["difficulty_se"].to_list()
    )
    assert linked["difficulty_unit"].min() == 0
    assert linked["difficulty_unit"].max() == 1
    found = links(fits, to="b")["a"]
    a, s = fits["a"].items["difficulty"].to_numpy(), fits["a"].items["difficulty_se"].to_numpy()
    np.testing.assert_allclose(linked["difficulty"].head(6), found.slope * a + found.shift)
    covariance = found.line.covariance
    variance = (found.slope * s) ** 2 + a**2 * covariance[0, 0] + covariance[1, 1] + 2 * a * covariance[0, 1]
    np.testing.assert_allclose(linked["difficulty_se"].head(6), np.sqrt(variance))
    np.testing.assert_allclose(linked["discrimination"].head(6), fits["a"].items["a"] / found.slope)
    assert link({"a": fits["a"]}, to="a")["difficulty"].equals(fits["a"].items["difficulty"])


def test_a_reversed_item_keeps_its_curve() -> None:
    tables, _, _ = two_datasets(4, items=(20, 20), n=400)
    turned = pl.col("item") == "b003"
    tables["b"] = tables["b"].with_columns(correct=pl.col("correct") ^ turned)
    fits = {name: Irt().fit(table) for name, table in tables.items()}
    row = fits["b"].items.row(3, named=True)
    assert row["a"] < 0
    found = links(fits, to="a")["b"]
    linked = link(fits, to="a").filter(pl.col("item") == "b003").row(0, named=True)
    # The same chances at the same abilities: -d / |a| from the slope and intercept on the new scale.
    slope, intercept = row["a"] / found.slope, row["d"] - row["a"] * found.shift / found.slope
    assert linked["difficulty"] == pytest.approx(-intercept / abs(slope))


def test_the_order_of_datasets_and_rows_does_not_matter() -> None:
    tables, _, _ = two_datasets(5, items=(15, 15), n=80)
    once = link(fit_each(tables), to="a")
    shuffled = {name: tables[name].sample(fraction=1, shuffle=True, seed=1) for name in "ba"}
    again = link(fit_each(shuffled), to="a")
    key = ["dataset", "item"]
    for left, right in zip(once.sort(key).drop(key), again.sort(key).drop(key), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("ability", "off"), [("eap", 0.09), ("map", 0.09), ("ml", 0.2)])
def test_shrunken_abilities_are_taken_back(ability: str, off: float) -> None:
    """In a short test posterior means have less spread than abilities; the link must not."""
    slopes = []
    for seed in range(6):
        tables, _, _ = two_datasets(seed, shared=300, items=(12, 120))
        fits = {name: Irt(model="rasch", ability=ability).fit(table) for name, table in tables.items()}
        slopes.append(links(fits, to="b")["a"].slope)
    # A Rasch fit has slope 1, so both units are logits. Maximum likelihood has no estimate for who solves
    # all of twelve items or none, and without those the spread is too small.
    assert np.mean(slopes) == pytest.approx(1.0, abs=off)


def test_ratings_are_shifted_only() -> None:
    tables, _, _ = two_datasets(6, items=(20, 20), n=60, shared=40)
    fits = {name: Glicko2().fit(table) for name, table in tables.items()}
    found = links(fits, to="a")["b"]
    assert (found.slope, found.slope_se) == (1.0, 0.0)
    linked = link(fits, to="a").filter(pl.col("dataset") == "b")
    np.testing.assert_allclose(linked["difficulty"], fits["b"].items["rating"] + found.shift)
    wanted = np.hypot(fits["b"].items["deviation"].to_numpy(), found.shift_se)
    np.testing.assert_allclose(linked["difficulty_se"], wanted)
    assert linked["discrimination"].null_count() == 20


def test_items_without_an_estimate_stay_without_one() -> None:
    tables, _, _ = two_datasets(7, items=(8, 8), n=60, shared=30)
    everybody = pl.col("item").is_in(["a002", "b003"])
    fits = {name: Irt(model="1pl").fit(table.with_columns(correct=pl.col("correct") | everybody))
            for name, table in tables.items()}  # fmt: skip
    linked = link(fits, to="a")
    lacking = linked.filter(everybody)
    assert lacking.drop("dataset", "item").null_count().sum_horizontal()[0] == 2 * 7
    assert linked.filter(~everybody).drop("dataset", "item").null_count().sum_horizontal()[0] == 0


def test_what_cannot_be_linked_is_refused() -> None:
    tables, _, _ = two_datasets(8, items=(6, 6), n=40, shared=15)
    fits: dict[str, Any] = dict(fit_each(tables))
    with pytest.raises(DataError, match="no dataset 'c'"):
        link(fits, to="c")
    with pytest.raises(DataError, match="is DataFrame, expected a fit"):
        link({**fits, "c": tables["a"]}, to="a")
    with pytest.raises(DataError, match="one of item response theory"):
        link({**fits, "c": Glicko2().fit(tables["a"])}, to="a")
    with pytest.raises(DataError, match="2 abilities, expected one"):
        link(
            {**fits, "c": Irt(dimensions=2, slope_prior=Normal(), max_iterations=20).fit(tables["a"])}, to="a"
        )
    alone = tables["b"].filter(pl.col("subject").is_in([f"s{i}" for i in range(40, 80)] + ["s0"]))
    with pytest.raises(DataError, match=r"1 shared subjects .* at least 2"):
        link({"a": fits["a"], "b": Irt(**WEAK).fit(alone.filter(pl.col("subject").is_in(
            ["s0", *(f"s{i}" for i in range(55, 80))])))}, to="a")  # fmt: skip
    wrong = tables["b"].with_columns(correct=~pl.col("correct"))
    with pytest.raises(DataError, match="do not rise together"):
        link({"a": fits["a"], "b": Irt(model="rasch").fit(wrong)}, to="a")


def test_few_subjects_and_weak_relations_are_warned_about() -> None:
    tables, _, _ = two_datasets(10, items=(30, 30), n=60, shared=3)
    tables["b"] = tables["b"].filter(pl.col("subject").str.slice(1).cast(pl.Int32).is_between(0, 2)
                                     | (pl.col("subject").str.slice(1).cast(pl.Int32) >= 63))  # fmt: skip
    with pytest.warns(LinkWarning, match="only 3 shared subjects"):
        link(fit_each(tables), to="a")
    tables, _, _ = two_datasets(11, items=(40, 40), n=100, shared=60)
    names = tables["b"]["subject"].unique().sort()
    mixed = dict(zip(names, names.sample(fraction=1, shuffle=True, seed=0), strict=True))
    half = {old: new for k, (old, new) in enumerate(mixed.items()) if k % 4}
    rest = [name for name in names if name not in half]
    free = [name for name in names if name not in half.values()]
    tables["b"] = tables["b"].with_columns(
        pl.col("subject").replace({**half, **dict(zip(rest, free, strict=True))})
    )
    try:
        with pytest.warns(LinkWarning, match="hardly measure the same ability"):
            link(fit_each(tables), to="a")
    except DataError as error:
        assert "do not rise together" in str(error)  # noqa: PT017 - either is an answer


def test_subjects_who_decide_the_link_are_named() -> None:
    tables, _, _ = two_datasets(12, items=(60, 60), n=40, shared=20)
    odd = [f"s{i}" for i in (40, 41, 42, 43)]
    tables["b"] = tables["b"].with_columns(correct=pl.col("correct") & ~pl.col("subject").is_in(odd))
    with pytest.warns(LinkWarning, match=r"far off and decide the link \('s4"):
        link(fit_each(tables), to="a")


def test_groups_of_other_ability_are_linked_with_less_bias_than_one_fit_has() -> None:
    """One fit takes all subjects for draws of one normal distribution, which draws the groups together."""
    draw = np.random.default_rng(0)
    theta = np.concatenate([draw.normal(size=300), draw.normal(0.5, 1, 100), draw.normal(1, 1, 300)])
    easy, hard = draw.normal(size=40), draw.normal(0.5, 1, 40)
    tables = []
    for name, who, b in (("a", slice(0, 400), easy), ("b", slice(300, 700), hard)):
        right = draw.random((theta[who].size, 40)) < 1 / (1 + np.exp(b - theta[who, None]))
        ids = np.arange(theta.size)[who]
        items = [f"{name}{j:02}" for j in range(40)]
        tables.append(
            pl.DataFrame(
                {
                    "subject": np.repeat(ids, 40).astype(str),
                    "item": items * ids.size,
                    "correct": right.reshape(-1),
                }
            )
        )
    irt = Irt(model="1pl")
    linked = link({"a": irt.fit(tables[0]), "b": irt.fit(tables[1])}, to="a")
    off = []
    for table in (linked, irt.fit_quietly(pl.concat(tables)).items.sort("item")):
        found = table["difficulty"].to_numpy()
        scale = easy.std() / found[:40].std()
        off.append(abs(float((scale * (found[40:] - found[:40].mean()) + easy.mean() - hard).mean())))
    assert off[0] < 0.1 < off[1]

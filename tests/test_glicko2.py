"""Glicko-2 against Glickman's worked example, a slow reference from the steps, and its laws."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq

from karat.errors import KaratError
from karat.fitting import Fitting
from karat.measured import measure
from karat.scorers.glicko2.model import Glicko2
from karat.scorers.glicko2.rating import SCALE

Player = tuple[float, float, float]
REAL = Path(__file__).parents[2] / "shared" / "data" / "glicko2_reference"


def frame(games: list[tuple[str, str, float]]) -> pl.DataFrame:
    return pl.DataFrame(
        games, schema={"player": pl.String, "opponent": pl.String, "score": pl.Float64}, orient="row"
    )


def ratings(players: dict[str, Player]) -> pl.DataFrame:
    rows = [(name, "player", *facts, 0) for name, facts in players.items()]
    columns = ["player", "role", "rating", "deviation", "volatility", "games"]
    return pl.DataFrame(rows, schema=columns, orient="row")


def plain(player: Player, opponents: list[tuple[Player, float]], tau: float) -> Player:
    """Steps 2 to 8 for one player, the volatility by a root finder of scipy."""
    mu, phi, sigma = (player[0] - 1500) / SCALE, player[1] / SCALE, player[2]
    if not opponents:
        return player[0], SCALE * math.hypot(phi, sigma), sigma
    precision = total = 0.0
    for (rating, deviation, _), score in opponents:
        g = 1 / math.sqrt(1 + 3 * (deviation / SCALE) ** 2 / math.pi**2)
        expected = 1 / (1 + math.exp(-g * (mu - (rating - 1500) / SCALE)))
        precision += g * g * expected * (1 - expected)
        total += g * (score - expected)
    v = 1 / precision
    delta, a = v * total, math.log(sigma**2)

    def f(x: float) -> float:
        power = math.exp(x)
        spread = phi**2 + v + power
        return power * (delta**2 - spread) / (2 * spread**2) - (x - a) / tau**2

    new = math.exp(brentq(f, a - 30, a + 30, xtol=1e-14) / 2)
    phi = 1 / math.sqrt(1 / (phi**2 + new**2) + precision)
    return SCALE * (mu + phi**2 * total) + 1500, SCALE * phi, new


def test_ratings_of_players_to_go_on_from_need_no_role_and_no_count() -> None:
    known = ratings({"a": (1500, 200, 0.06), "b": (1400, 30, 0.06)})
    games = frame([("a", "b", 1)])
    with_role = Glicko2().fit(games, start=known)
    assert Glicko2().fit(games, start=known.drop("role", "games")).players.equals(with_role.players)


def test_glickmans_worked_example_to_full_precision() -> None:
    """Published: 1464.06, 151.52, 0.05999; the digits beyond are those of the reference at full precision."""
    start = ratings(
        {"a": (1500, 200, 0.06), "b": (1400, 30, 0.06), "c": (1550, 100, 0.06), "d": (1700, 300, 0.06)}
    )
    fit = Glicko2(tau=0.5).fit(frame([("a", "b", 1), ("a", "c", 0), ("a", "d", 0)]), start=start)
    assert fit.ratings["a"] == pytest.approx(1464.050671, abs=1e-6)
    assert fit.deviations["a"] == pytest.approx(151.516524, abs=1e-6)
    assert fit.volatilities["a"] == pytest.approx(0.0599959844, abs=1e-10)
    assert fit.players["games"].to_list() == [3, 1, 1, 1]


scores = st.sampled_from([0.0, 0.5, 1.0, 0.25])
facts = st.tuples(st.floats(800, 2200), st.floats(20, 350), st.floats(0.02, 0.2))


@settings(max_examples=60)
@given(
    st.lists(facts, min_size=4, max_size=4),
    st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("abcd"), scores), min_size=1, max_size=12),
    st.floats(0.2, 1.2),
    st.randoms(),
)
def test_a_period_is_that_of_the_definition_in_any_order(
    known: list[Player], games: list[tuple[str, str, float]], tau: float, random: object
) -> None:
    games = [game for game in games if game[0] != game[1]]
    assume(games)  # without one there is no period
    players = dict(zip("abcd", known, strict=True))
    fit = Glicko2(tau=tau).fit(frame(games), start=ratings(players))
    for name in fit.ratings:
        met = [(players[b], s) for a, b, s in games if a == name]
        met += [(players[a], 1 - s) for a, b, s in games if b == name]
        expected = plain(players[name], met, tau)
        found = fit.ratings[name], fit.deviations[name], fit.volatilities[name]
        assert found == pytest.approx(expected, rel=1e-9, abs=1e-9)
    shuffled = list(games)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    turned = [(b, a, 1 - s) if i % 2 else (a, b, s) for i, (a, b, s) in enumerate(shuffled)]
    again = Glicko2(tau=tau).fit(frame(turned), start=ratings(players))
    assert again.players.equals(fit.players)


def test_a_period_without_games_widens_the_deviation_only() -> None:
    games = frame([("a", "b", 1), ("c", "d", 1)]).with_columns(time=pl.Series([1, 4]))
    fit = Glicko2().fit(games)
    once = Glicko2().fit(frame([("a", "b", 1)]))
    assert fit.ratings["a"] == once.ratings["a"]
    assert fit.volatilities["a"] == once.volatilities["a"]
    wide = math.sqrt((once.deviations["a"] / SCALE) ** 2 + 3 * once.volatilities["a"] ** 2) * SCALE
    assert fit.deviations["a"] == pytest.approx(wide, rel=1e-12)
    most = (wide + once.deviations["a"]) / 2
    assert Glicko2(most_deviation=most).fit(games).deviations["a"] == pytest.approx(most, rel=1e-12)


def test_a_newcomer_begins_with_the_deviation_set_whatever_the_period() -> None:
    """Periods before the first game are no idle ones; those of who is known from before are."""
    early, late = [("a", "b", 1.0)], [("c", "d", 0.0)]
    fit = Glicko2().fit(frame(early + late).with_columns(time=pl.Series([0, 9])))
    alone = Glicko2().fit(frame(late))
    for name in "cd":
        assert (fit.ratings[name], fit.deviations[name]) == (alone.ratings[name], alone.deviations[name])
    known = Glicko2().fit(frame(early + late).with_columns(time=pl.Series([0, 9])), start=alone)
    assert known.deviations["c"] > Glicko2().fit(frame(late), start=alone).deviations["c"]


def test_ratings_to_go_on_from_are_checked_and_keep_everybody() -> None:
    answers = pl.DataFrame({"subject": ["s", "t"], "item": ["x", "y"], "correct": [0, 1]})
    start = Glicko2().fit(answers)
    fit = Glicko2().fit(answers.with_columns(subject=pl.Series(["r", "t"])), start=start)
    assert fit.subjects["subject"].to_list() == ["r", "s", "t"]
    assert fit.items["item"].to_list() == ["x", "y"]
    assert fit.subjects["games"].to_list() == [1, 1, 2]
    with pytest.raises(KaratError, match="'s' is there more than once"):
        Glicko2().fit(answers, start=pl.concat([start.players, start.players.head(1)]))
    with pytest.raises(KaratError, match="no column 'role'"):
        Glicko2().fit(answers, start=start.players.drop("role"))


def test_periods_by_count_by_time_and_going_on_agree() -> None:
    games = [("a", "b", 1.0), ("b", "c", 0.5), ("c", "a", 0.0), ("a", "c", 1.0)]
    days = ["2024-01-01", "2024-01-03", "2024-01-08", "2024-01-10"]
    by_count = Glicko2(period=2).fit(frame(games))
    by_week = Glicko2(period="1w").fit(frame(games).with_columns(time=pl.Series(days)))
    by_number = Glicko2().fit(frame(games).with_columns(time=pl.Series([7, 7, 8, 8])))
    going_on = Glicko2().fit(frame(games[2:]), start=Glicko2().fit(frame(games[:2])))
    assert by_count.players.equals(by_week.players)
    assert by_count.players.equals(by_number.players)
    joined = by_count.players.join(going_on.players, on="player", suffix="_on")
    # b does not play in the second period, and is there with a wider deviation all the same.
    assert going_on.players["player"].to_list() == ["a", "b", "c"]
    assert Glicko2().fit(frame(games[:0]), start=by_count).players.equals(by_count.players)
    for column in ("rating", "deviation", "volatility", "games"):
        assert joined[column].to_list() == pytest.approx(joined[f"{column}_on"].to_list(), rel=1e-12)


def test_items_and_subjects_are_players() -> None:
    answers = pl.DataFrame(
        {"subject": ["s", "s", "t", "t"], "item": ["hard", "easy", "hard", "easy"], "correct": [0, 1, 0, 1]}
    )
    fit = Glicko2().fit(answers)
    rating = dict(fit.items.select("item", "rating").iter_rows())
    assert rating["hard"] > 1500 > rating["easy"]
    assert fit.subjects["rating"].to_list() == pytest.approx([1500, 1500])
    assert fit.subjects.columns == ["subject", "rating", "deviation", "volatility", "games"]
    same = answers.with_columns(item=pl.Series(["s", "easy", "s", "easy"]))
    with pytest.raises(KaratError, match="same name"):
        _ = Glicko2().fit(same).ratings


def test_nobody_plays() -> None:
    assert Glicko2().fit(frame([])).players.height == 0


@pytest.mark.parametrize(
    ("games", "told"),
    [
        ([("a", "b", 1.0), ("a", "a", 1.0)], r"row 2.*'a' plays against itself"),
        ([("a", "b", 1.5)], r"row 1.*1\.5 is no score"),
        ([("a", "b", None)], "row 1.*None is no score"),
        ([("a", None, 1.0)], "row 1.*no opponent"),
    ],
)
def test_what_is_no_game_is_named(games: list[tuple[str, str, float]], told: str) -> None:
    with pytest.raises(KaratError, match=told):
        Glicko2().fit(frame(games))


def test_periods_that_cannot_be_are_refused() -> None:
    with pytest.raises(KaratError, match="need the time"):
        Glicko2(period="1w").fit(frame([("a", "b", 1.0)]))
    with pytest.raises(KaratError, match="no duration"):
        Glicko2(period="soon").fit(frame([("a", "b", 1.0)]).with_columns(time=pl.lit("2024-01-01")))
    with pytest.raises(KaratError, match="not understood"):
        Glicko2(period="1w").fit(frame([("a", "b", 1.0)]).with_columns(time=pl.lit("yesterday")))


def test_far_apart_players_do_not_break_the_arithmetic() -> None:
    start = ratings({"a": (90_000, 30, 0.06), "b": (-90_000, 30, 0.06)})
    fit = Glicko2().fit(frame([("a", "b", 1.0)]), start=start)
    assert np.isfinite(fit.players["rating"].to_numpy()).all()
    lost = Glicko2().fit(frame([("a", "b", 0.0)]), start=start)
    assert np.isfinite(lost.players.select("rating", "deviation", "volatility").to_numpy()).all()


@pytest.mark.skipif(not REAL.is_dir(), reason="the reference data is not here")
def test_seasons_of_football_as_playerratings_rates_them() -> None:
    """PlayerRatings iterates the volatility to 1e-6 only, and widens idle players when they next play."""
    games = pl.read_csv(REAL / "afl_games.csv", null_values="NA", infer_schema_length=None)
    week = pl.col("Week").rank("dense").cast(pl.Int64)
    table = games.select(player="HomeTeam", opponent="AwayTeam", score="Score", time=week)
    fit = Glicko2(tau=0.5, most_deviation=350).fit(table)
    known = pl.read_csv(REAL / "afl_glicko2_final_PlayerRatings.csv")
    both = known.join(fit.players, left_on="Player", right_on="player")
    assert both.height == known.height
    assert (both["Rating"] - both["rating"]).abs().max() < 0.005  # type: ignore[operator]
    assert (both["Volatility"] - both["volatility"]).abs().max() < 5e-6  # type: ignore[operator]
    example = json.loads((REAL / "worked_example.json").read_text())["glickman_example"]
    assert example["tau"] == Glicko2().tau


def many(count: int, seed: int = 0) -> pl.DataFrame:
    draw = np.random.default_rng(seed)
    return pl.DataFrame(
        {
            "subject": [f"s{i}" for i in draw.integers(9, size=count)],
            "item": [f"q{i}" for i in draw.integers(20, size=count)],
            "correct": draw.integers(2, size=count),
            "time": draw.integers(4, size=count),
        }
    )


@pytest.mark.parametrize(
    "settings", [{}, {"period": 17}, {"period": 1}, {"period": 30, "shuffle": 2}, {"period": 1, "shuffle": 0}]
)
def test_the_order_of_responses_changes_no_bit(settings: dict[str, Any]) -> None:
    """Also not by count: games of one time are dealt in an order of their own."""
    table = many(300)
    fit = Glicko2(**settings).fit(table)
    for seed in (1, 2):
        shuffled = table.sample(fraction=1, shuffle=True, seed=seed)
        assert Glicko2(**settings).fit(shuffled).players.equals(fit.players)


def test_periods_by_count_hold_so_many_games_in_order_of_time() -> None:
    table = many(100).drop("time").with_columns(time=pl.Series(range(100)) * 5)
    by_count = Glicko2(period=30).fit(table.reverse())
    by_number = Glicko2().fit(table.with_columns(time=pl.int_range(100) // 30))
    assert by_count.players.equals(by_number.players)
    as_they_come = Glicko2(period=30).fit(table.drop("time"))
    assert as_they_come.players.equals(by_number.players)
    dealt = Glicko2(period=30, shuffle=1).fit(table)
    assert not dealt.players.equals(by_number.players)
    assert not dealt.players.equals(Glicko2(period=30, shuffle=2).fit(table).players)
    assert dealt.players["games"].sum() == 200


def test_a_csv_is_rated_as_a_parquet_file_is(tmp_path: Path) -> None:
    """In a CSV all is text: whole numbers are periods all the same."""
    table = many(80)
    table.write_csv(tmp_path / "r.csv")
    table.write_parquet(tmp_path / "r.parquet")
    fits = [Glicko2().fit(str(tmp_path / name)) for name in ("r.csv", "r.parquet")]
    assert fits[0].players.equals(fits[1].players)
    assert not fits[0].players.equals(Glicko2().fit(table.drop("time")).players)


def test_times_with_a_zone_are_periods_of_utc() -> None:
    days = pl.Series(["2024-03-30T23:30:00", "2024-03-31T22:30:00"]).str.to_datetime()
    games = frame([("a", "b", 1.0), ("b", "a", 1.0)]).with_columns(time=days)
    plain_days = Glicko2(period="1d").fit(games)
    zoned = games.with_columns(
        pl.col("time").dt.replace_time_zone("UTC").dt.convert_time_zone("Europe/Berlin")
    )
    assert Glicko2(period="1d").fit(zoned).players.equals(plain_days.players)
    assert Glicko2(period="1mo").fit(games).players.equals(Glicko2().fit(games.drop("time")).players)


@pytest.mark.parametrize(
    ("settings", "times", "told"),
    [
        ({}, [1, None], "1 games have no time"),
        ({}, [-(1 << 63), (1 << 63) - 1], "too far apart"),
        ({"period": "1us"}, ["2024-01-01", "2025-01-01"], "too short"),
        ({"period": "1w"}, [1, 2], "need dates"),
        ({"period": "1w", "shuffle": 1}, [1, 2], "dealt into periods of a number"),
    ],
)
def test_times_that_make_no_periods_are_named(settings: dict[str, Any], times: list[Any], told: str) -> None:
    games = frame([("a", "b", 1.0), ("b", "a", 1.0)]).with_columns(time=pl.Series(times))
    with pytest.raises(KaratError, match=told):
        Glicko2(**settings).fit(games)


def test_items_get_columns_on_three_scales(tmp_path: Path) -> None:
    many(400).write_csv(tmp_path / "r.csv")
    scorer = Glicko2(responses=str(tmp_path / "r.csv"))  # type: ignore[arg-type]
    found = measure(scorer, Fitting())
    fit = scorer.fit(str(tmp_path / "r.csv"))
    assert found.items["glicko2.difficulty"].to_list() == fit.items["rating"].to_list()
    assert found.items["glicko2.difficulty_se"].to_list() == fit.items["deviation"].to_list()
    assert found.items["glicko2.games"].to_list() == fit.items["games"].to_list()
    low, high = fit.items["rating"].min(), fit.items["rating"].max()
    units = [(rating - low) / (high - low) for rating in fit.items["rating"]]  # type: ignore[operator]
    assert found.items["glicko2.difficulty_unit"].to_list() == pytest.approx(units)
    order = fit.items["rating"].arg_sort()
    assert found.items["glicko2.difficulty_quantile"].gather(order).to_list() == pytest.approx(
        [(i + 0.5) / 20 for i in range(20)]
    )
    assert found.tables["subjects"].equals(fit.subjects)
    assert found.facts["repeated"] == 400 - many(400).unique(["subject", "item"]).height
    same = many(40).with_columns(correct=pl.lit(0.5))
    alike = measure(Glicko2(responses=same), Fitting())  # type: ignore[arg-type]
    assert alike.items["glicko2.difficulty_unit"].null_count() == alike.items.height
    assert "draws" in " ".join(alike.notes)


def test_one_period_of_many_games_is_pointed_out() -> None:
    table = many(3000)
    note = "one rating period"
    assert note not in " ".join(measure(Glicko2(responses=table), Fitting()).notes)  # type: ignore[arg-type]
    timeless = table.drop("time")
    assert note in " ".join(measure(Glicko2(responses=timeless), Fitting()).notes)  # type: ignore[arg-type]
    dealt = Glicko2(responses=timeless, period=240, shuffle=0)  # type: ignore[arg-type]
    assert note not in " ".join(measure(dealt, Fitting()).notes)


def test_without_responses_it_says_what_it_needs() -> None:
    with pytest.raises(KaratError, match="needs `responses`"):
        measure(Glicko2(), Fitting())
    with pytest.raises(KaratError, match="there are no responses"):
        measure(Glicko2(responses=many(3).clear()), Fitting())  # type: ignore[arg-type]


def test_games_as_numbers_are_sorted_as_games_are(monkeypatch: pytest.MonkeyPatch) -> None:
    table = many(500)
    fast = Glicko2().fit(table)
    far = table.with_columns(time=pl.col("time") + pl.when(pl.int_range(500) == 7).then(1 << 60).otherwise(0))
    assert Glicko2(most_deviation=350).fit(far).players["games"].sum() == 1000
    monkeypatch.setattr("karat.scorers.glicko2.rating._as_numbers", lambda *_: None)
    assert Glicko2().fit(table).players.equals(fast.players)


def test_several_periods_see_through_who_answered_what() -> None:
    """docs/difficulty.md: one period gives fail rates on another scale, dealt periods do not."""
    draw = np.random.default_rng(5)
    theta, b = draw.normal(size=300), np.sort(draw.normal(size=100))
    near = (np.argsort(np.argsort(theta))[:, None] / 300 - np.arange(100) / 100) / 0.25
    given = draw.random((300, 100)) < np.exp(-(near**2) / 2)
    right = draw.random((300, 100)) < 1 / (1 + np.exp(b - theta[:, None]))
    subject, item = np.nonzero(given)
    table = pl.DataFrame(
        {"subject": [f"s{i:03}" for i in subject], "item": [f"i{j:03}" for j in item],
         "correct": right[given].astype(int)}
    )  # fmt: skip

    def found(glicko: Glicko2) -> float:
        rated = glicko.fit(table).items.sort("item")["rating"].to_numpy()
        return float(np.corrcoef(np.argsort(np.argsort(rated)), np.arange(100))[0, 1])

    games = table.height // 30
    assert found(Glicko2()) < 0.87
    assert found(Glicko2(period=games, shuffle=0)) > 0.92

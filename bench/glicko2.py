"""Glicko-2 of ten million games, beside a plain loop in Python written from the definition.

    python bench/glicko2.py [--games 10000000] > bench/results/glicko2.md

Both rate the same games in one run; the plain loop a first part of them, as it would take hours. The large
run is a process of its own and counts everything: reading Parquet, periods, sorting, rating, the table.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import polars as pl

SCALE, TAU = 173.7178, 0.5
SUBJECTS, ITEMS, PERIODS = 5_000, 100_000, 20
State = tuple[float, float, float]


def main() -> None:
    """Compare on a part, measure the whole, print a page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--games", type=int, default=10_000_000)
    parser.add_argument("--compared", type=int, default=1_000_000)
    parser.add_argument("--rate")
    wanted = parser.parse_args()
    if wanted.rate:
        print(json.dumps(rate(wanted.rate)))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "games.parquet"
        games(wanted.compared).write_parquet(path)
        warm = {"cpu": math.inf}
        for _ in range(2):  # the first compiles, once per machine
            warm = measured(path)
        plain, apart = compared(path)
        games(wanted.games).write_parquet(path)
        large = measured(path)
    print(page(wanted, warm, plain, apart, large))


def games(count: int) -> pl.DataFrame:
    """Responses of a Rasch model, in no order, in rating periods of equal size."""
    draw = np.random.default_rng(0)
    theta, b = draw.standard_normal(SUBJECTS), draw.standard_normal(ITEMS)
    subject, item = draw.integers(SUBJECTS, size=count), draw.integers(ITEMS, size=count)
    right = draw.random(count) < 1 / (1 + np.exp(b[item] - theta[subject]))
    time_ = draw.integers(PERIODS, size=count)
    table = pl.DataFrame({"subject": subject, "item": item, "correct": right.astype(np.int8), "time": time_})
    return table.with_columns(subject=pl.format("model-{}", "subject"), item=pl.format("task/{}", "item"))


def measured(path: Path) -> dict[str, float]:
    """What a fresh process says of rating a file."""
    done = subprocess.run(
        [sys.executable, __file__, "--rate", str(path)], check=True, capture_output=True, text=True
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


def rate(path: str) -> dict[str, float]:
    """Rate one file here, from reading to the table of players."""
    from karat.scorers.glicko2.model import Glicko2
    from karat.scorers.responses.reading import responses

    begin, wall = time.process_time(), time.perf_counter()
    table = responses(path)
    read = time.process_time() - begin
    Glicko2(tau=TAU).fit(table)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "cpu": time.process_time() - begin,
        "wall": time.perf_counter() - wall,
        "read": read,
        "peak": peak / 1024,
    }


def compared(path: Path) -> tuple[float, float]:
    """CPU seconds of the plain loop, and the largest difference of a rating."""
    from karat.scorers.glicko2.model import Glicko2

    begin = time.process_time()
    rated = plain(pl.read_parquet(path))
    seconds = time.process_time() - begin
    fit = Glicko2(tau=TAU).fit(str(path))
    ours = {(role, name): rating for name, role, rating, *_ in fit.players.iter_rows()}
    return seconds, max(abs(ours[who] - (mu * SCALE + 1500)) for who, (mu, _, _) in rated.items())


def plain(table: pl.DataFrame) -> dict[tuple[str, str], State]:
    """Steps 1 to 8 for each period, in Python, one player after the other."""
    start = (0.0, 350 / SCALE, 0.06)
    state: dict[tuple[str, str], State] = {("subject", name): start for name in table["subject"].unique()}
    state |= {("item", name): start for name in table["item"].unique()}
    for period in range(table["time"].min(), table["time"].max() + 1):  # type: ignore[operator,arg-type]
        met: dict[tuple[str, str], list[tuple[State, float]]] = defaultdict(list)
        some = table.filter(pl.col("time") == period).select("subject", "item", "correct")
        for subject, item, correct in some.iter_rows():
            one, other = ("subject", subject), ("item", item)
            met[one].append((state[other], float(correct)))
            met[other].append((state[one], 1.0 - correct))
        state = {who: updated(facts, met.get(who, [])) for who, facts in state.items()}
    return state


def updated(player: State, opponents: list[tuple[State, float]]) -> State:
    """One player after one period."""
    mu, phi, sigma = player
    if not opponents:
        return mu, math.sqrt(phi**2 + sigma**2), sigma
    precision = total = 0.0
    for (other, spread, _), score in opponents:
        g = 1 / math.sqrt(1 + 3 * spread**2 / math.pi**2)
        expected = 1 / (1 + math.exp(-g * (mu - other)))
        precision += g * g * expected * (1 - expected)
        total += g * (score - expected)
    v = 1 / precision
    sigma = volatility(phi, sigma, v, v * total)
    phi = 1 / math.sqrt(1 / (phi**2 + sigma**2) + precision)
    return mu + phi**2 * total, phi, sigma


def volatility(phi: float, sigma: float, v: float, delta: float) -> float:
    """Step 5."""
    a = math.log(sigma**2)

    def f(x: float) -> float:
        power = math.exp(x)
        spread = phi**2 + v + power
        return power * (delta**2 - spread) / (2 * spread**2) - (x - a) / TAU**2

    low, high = a, a - TAU
    if delta**2 > phi**2 + v:
        high = math.log(delta**2 - phi**2 - v)
    else:
        while f(high) < 0:
            high -= TAU
    f_low, f_high = f(low), f(high)
    while abs(high - low) > 1e-6:
        new = low + (low - high) * f_low / (f_high - f_low)
        f_new = f(new)
        if f_new * f_high <= 0:
            low, f_low = high, f_high
        else:
            f_low /= 2
        high, f_high = new, f_new
    return math.exp(low / 2)


def page(
    wanted: argparse.Namespace, warm: dict[str, float], plain: float, apart: float, large: dict[str, float]
) -> str:
    """The page of results."""
    small, many = wanted.compared, wanted.games
    rating = warm["cpu"] - warm["read"]
    return f"""# Glicko-2

Responses of {SUBJECTS:,} subjects to {ITEMS:,} items in {PERIODS} rating periods, tau {TAU};
`python bench/glicko2.py`, Python {platform.python_version()}. karat counts from reading Parquet to the table of
players, with the start of numba, each in a fresh process; what is compiled is kept by the machine.

| games | what | CPU s | of that reading | wall s | peak MB |
|---|---|---|---|---|---|
| {small:,} | plain loop in Python, from the definition | {plain:.1f} | | | |
| {small:,} | karat | {warm["cpu"]:.1f} | {warm["read"]:.1f} | {warm["wall"]:.1f} | {warm["peak"]:,.0f} |
| {many:,} | karat | {large["cpu"]:.1f} | {large["read"]:.1f} | {large["wall"]:.1f} | {large["peak"]:,.0f} |

At {small:,} games the plain loop takes {plain / warm["cpu"]:.0f} times as long as all of karat, and
{plain / rating:.0f} times as long as its rating. The largest difference of a rating is {apart:.1e} points: the
loop iterates the volatility to 1e-6, as Glickman does, and karat to 1e-12."""


if __name__ == "__main__":
    main()

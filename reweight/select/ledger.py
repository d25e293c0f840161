"""Budget, quotas and floors, spent one row at a time, for selectors whose choices depend on each other."""

from __future__ import annotations

from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from karat.errors import SelectionError
from karat.reweight.select.budget import Unit
from karat.reweight.select.cut import nothing_kept

Answer = Literal["taken", "last", "closed", "full"]

_UNITS: tuple[Unit, Unit] = ("rows", "tokens")


class Ledger:
    """What is still to be spent; rows are numbered as in `ranked`.

    Floors first: while `unmet()` names rows, one of them must be given to `reserve`. Then `take` answers
    for each row that is offered. The rule is that of karat.reweight.select.cut: the first row that does not
    fit the budget ends it, and a group whose next row does not fit its quota is closed.
    """

    def __init__(self, ranked: pl.DataFrame, limit: int, unit: Unit) -> None:
        """ranked: rows and, where used, tokens, group and its quotas and floors (limits.limit_columns)."""
        self.limit, self.unit = limit, unit
        self.used = 0
        self._first_offer: int | None = None
        self.free = np.ones(ranked.height, dtype=bool)
        """[N] rows that are not taken and whose group is open."""
        self.floored = np.zeros(ranked.height, dtype=bool)
        """[N] rows that were taken to reach a floor."""
        self.shut = np.zeros(ranked.height, dtype=bool)
        """[N] rows that were not taken because the quota of their group was full."""
        self._cost = {u: ranked[u].to_numpy() for u in _UNITS if u in ranked.columns}
        self._names: list[str] = []
        self._group = np.zeros(ranked.height, dtype=np.int64)
        self._quota: dict[Unit, list[int | None]] = {}
        self._floor: dict[Unit, list[int | None]] = {}
        if "group" in ranked.columns:
            groups = ranked.unique("group", maintain_order=True)
            self._names = groups["group"].to_list()
            codes = groups.select("group").with_row_index("code")
            coded = ranked.select("group").join(codes, on="group", how="left", maintain_order="left")
            self._group = coded["code"].cast(pl.Int64).to_numpy()
            for found, which in ((self._quota, "quota"), (self._floor, "floor")):
                for u in self._cost:
                    found[u] = groups[f"{which}_{u}"].to_list()
        self._spent = {u: [0] * max(len(self._names), 1) for u in self._cost}

    def unmet(self) -> NDArray[np.bool_] | None:
        """[N] free rows of groups below their floor, None when all floors are reached."""
        groups = [g for g in range(len(self._names)) if self._below_floor(g)]
        return self.free & np.isin(self._group, groups) if groups else None

    def reached(self) -> bool:
        """Whether every group has reached its floor."""
        return not any(self._below_floor(g) for g in range(len(self._names)))

    def below_floor(self, row: int) -> bool:
        """Whether the group of a row is below its floor."""
        return self._below_floor(int(self._group[row]))

    def reserve(self, row: int) -> None:
        """Take a row for the floor of its group; raises SelectionError where quota or budget have no room."""
        group = int(self._group[row])
        if not self._fits_quota(row, group):
            raise SelectionError(
                f"group {self._names[group]!r}: the rows that reach its floor are more than its quota",
                hint="rows are whole: leave a gap of one row between floor and quota",
            )
        self._take(row, group)
        self.floored[row] = True
        if self.used > self.limit:
            raise SelectionError(
                f"the rows that reach the floors need more than the budget of {self.limit} {self.unit}",
                hint="rows are whole: lower the floors or raise the budget",
            )

    def take(self, row: int) -> Answer:
        """Take a row if quota and budget have room: "last" if no other will fit, "full" if it does not."""
        group = int(self._group[row])
        if self._first_offer is None:
            self._first_offer = row
        if not self.free[row]:
            return "closed"
        if not self._fits_quota(row, group):
            shut = self.free & (self._group == group)
            self.shut |= shut
            self.free &= ~shut
            return "closed"
        if self.used + int(self._cost[self.unit][row]) > self.limit:
            return "full"
        self._take(row, group)
        # Rows without tokens still fit a budget of tokens that is used up.
        return "last" if self.unit == "rows" and self.used == self.limit else "taken"

    def unreachable(self) -> SelectionError:
        """The error for floors that the rows at hand cannot reach."""
        group = next(g for g in range(len(self._names)) if self._below_floor(g))
        unit = next(u for u in self._cost if self._lacks(u, group))
        return SelectionError(
            f"group {self._names[group]!r}: its floor of {self._floor[unit][group]} {unit} cannot be "
            f"reached, {self._spent[unit][group]} is all that the selector can keep",
            hint="lower the floor",
        )

    def decided(self, ranked: pl.DataFrame, taken: NDArray[np.int64]) -> pl.DataFrame:
        """`ranked` with `kept`, `reason` and `rank`: the order in which rows were taken, else null.

        Raises SelectionError if none was taken.
        """
        if not len(taken):
            offered = ranked.with_columns(open=~pl.Series(self.shut))[self._first_offer :]
            raise nothing_kept(offered, self.limit, self.unit)
        rank = np.zeros(ranked.height, dtype=np.int64)
        rank[taken] = np.arange(1, len(taken) + 1)
        group = pl.col("group") if self._names else pl.lit("")
        marked = ranked.with_columns(
            rank=pl.Series(rank),
            kept=pl.Series(rank > 0),
            floored=pl.Series(self.floored),
            shut=pl.Series(self.shut),
        )
        return marked.with_columns(
            rank=pl.when("kept").then("rank"),
            reason=pl.when("floored")
            .then(pl.format("kept: floor of group {}", group))
            .when("kept")
            .then(pl.format("kept: rank {}", "rank"))
            .when("shut")
            .then(pl.format("dropped: quota of group {} is full", group))
            .otherwise(pl.lit(f"dropped: the budget of {self.limit} {self.unit} was full before")),
        )

    def _take(self, row: int, group: int) -> None:
        self.free[row] = False
        self.used += int(self._cost[self.unit][row])
        for unit, cost in self._cost.items():
            self._spent[unit][group] += int(cost[row])

    def _fits_quota(self, row: int, group: int) -> bool:
        for unit, quotas in self._quota.items():
            quota = quotas[group]
            if quota is not None and self._spent[unit][group] + int(self._cost[unit][row]) > quota:
                return False
        return True

    def _below_floor(self, group: int) -> bool:
        return any(self._lacks(unit, group) for unit in self._floor)

    def _lacks(self, unit: Unit, group: int) -> bool:
        floor = self._floor[unit][group]
        return floor is not None and self._spent[unit][group] < floor

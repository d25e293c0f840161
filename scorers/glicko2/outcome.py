"""What a fit of Glicko-2 returns."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from karat.scorers.glicko2.rating import by_name


@dataclass(frozen=True, eq=False)
class Glicko2Fit:
    """Ratings after the last period."""

    players: pl.DataFrame
    """`player`, `role` (player, subject or item), `rating`, `deviation`, `volatility`, `games`."""

    @property
    def items(self) -> pl.DataFrame:
        """Items alone: `item`, `rating` (its difficulty), `deviation`, `volatility`, `games`."""
        return self._role("item")

    @property
    def subjects(self) -> pl.DataFrame:
        """Subjects alone: `subject`, `rating` (its ability), `deviation`, `volatility`, `games`."""
        return self._role("subject")

    @property
    def ratings(self) -> dict[str, float]:
        """Rating by player."""
        return by_name(self.players, "rating")

    @property
    def deviations(self) -> dict[str, float]:
        """Rating deviation by player."""
        return by_name(self.players, "deviation")

    @property
    def volatilities(self) -> dict[str, float]:
        """Volatility by player."""
        return by_name(self.players, "volatility")

    def _role(self, role: str) -> pl.DataFrame:
        return self.players.filter(pl.col("role") == role).drop("role").rename({"player": role})

"""The table of subjects: abilities with their standard errors."""

from __future__ import annotations

import polars as pl

from karat.scorers.irt.abilities import Abilities
from karat.scorers.irt.response_blocks import Responses
from karat.scorers.irt.response_source import ResponseSource


def subject_table(source: ResponseSource, responses: Responses, found: Abilities) -> pl.DataFrame:
    """subject, theta, se, responses, mean and status, one row per subject in the order of the ids.

    theta and se are null where no response to an item with estimates is there; status says so.
    """
    _, _, answered, solved = source.counts()
    row = responses.row
    table = pl.DataFrame(
        {
            "subject": source.subjects,
            "theta": found.theta[row],
            "se": found.se[row],
            "responses": answered,
            "solved": solved,
            "used": responses.answered()[row],
            "at_bound": found.at_bound[row],
        }
    )
    empty = pl.col("used") == 0
    status = (
        pl.when(pl.col("responses") == 0).then(pl.lit("no responses"))
        .when(empty).then(pl.lit("no responses to items with estimates"))
        .when("at_bound").then(pl.lit("at bound"))
    )  # fmt: skip
    return table.select(
        "subject",
        pl.when(~empty).then("theta").alias("theta"),
        pl.when(~empty & pl.col("se").is_finite()).then("se").alias("se"),
        "responses",
        pl.when(pl.col("responses") > 0).then(pl.col("solved") / pl.col("responses")).alias("mean"),
        status.alias("status"),
    )

"""Published tables: LSAT6 and LSAT7 under every model (ltm, mirt, irtQ), typed from their documents."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from lsat import lsat
from numpy.typing import NDArray

from karat.scorers.irt.irt import Irt

DATA = Path(os.environ.get("KARAT_DATA", Path(__file__).parents[2] / "shared" / "data")) / "irt_reference"

TABLES = [
    ("LSAT6", "rasch", [1] * 5, [2.871971, 1.063029, 0.257611, 1.388059, 2.218778], -2473.053847),
    ("LSAT6", "1pl", [0.755135] * 5, [2.730013, 0.998606, 0.239854, 1.306451, 2.099404], -2466.937600),
    ("LSAT6", "2pl", [0.825660, 0.722744, 0.890875, 0.688368, 0.656856],
     [2.773234, 0.990201, 0.249147, 1.284757, 2.053270], -2466.653377),
    ("LSAT7", "rasch", [1] * 5, [1.863089, 0.788591, 1.456779, 0.519857, 1.987520], -2664.915999),
    ("LSAT7", "1pl", [1.011267] * 5, [1.868265, 0.791006, 1.460980, 0.521506, 1.992975], -2664.900891),
    ("LSAT7", "2pl", [0.987546, 1.080837, 1.707478, 0.764990, 0.735673],
     [1.855856, 0.807970, 1.805206, 0.486000, 1.854458], -2658.805114),
]  # fmt: skip


@pytest.mark.parametrize(("data", "model", "a", "d", "log_likelihood"), TABLES)
def test_the_published_parameters_and_likelihood(
    data: str, model: str, a: list[float], d: list[float], log_likelihood: float
) -> None:
    fit = Irt(model=model).fit(lsat(data))
    assert fit.converged
    np.testing.assert_allclose(fit.items["a"], a, atol=3e-4)
    np.testing.assert_allclose(fit.items["d"], d, atol=3e-4)
    np.testing.assert_allclose(fit.items["b"], -np.array(d) / a, atol=3e-3)
    assert fit.log_likelihood == pytest.approx(log_likelihood, abs=1e-5)
    assert fit.quadrature_error < 1e-4


def test_standard_errors_and_criteria_of_ltm() -> None:
    fit = Irt(model="1pl").fit(lsat("LSAT6"))
    np.testing.assert_allclose(fit.items["b_se"], [0.3266, 0.1422, 0.0977, 0.1691, 0.2510], atol=6e-5)
    np.testing.assert_allclose(fit.items["a_se"], [0.0694] * 5, atol=6e-5)
    assert fit.aic == pytest.approx(4945.875, abs=1e-3)
    assert fit.bic == pytest.approx(4975.322, abs=1e-3)


def test_confidence_interval_of_mirt() -> None:
    fit = Irt(model="2pl").fit(lsat("LSAT7"))
    a, se = fit.items["a"][2], fit.items["a_se"][2]
    assert a - 1.96 * se == pytest.approx(1.078, abs=0.01)
    assert a + 1.96 * se == pytest.approx(2.334, abs=0.01)
    assert fit.aic == pytest.approx(5337.61, abs=1e-2)
    assert fit.bic == pytest.approx(5386.688, abs=1e-2)


def test_three_parameters_without_priors_reach_mirts_likelihood() -> None:
    fit = Irt(model="3pl").fit(lsat("LSAT7"))
    assert fit.log_likelihood == pytest.approx(-2658.055, abs=1e-3)
    np.testing.assert_allclose(fit.items["d"], [1.86562, 0.09404, 1.78052, 0.48189, 1.86845], atol=0.02)
    np.testing.assert_allclose(fit.items["b"], [-1.85292, -0.04877, -1.06840, -0.65463, -2.43552], atol=0.01)
    assert fit.items["flags"][0].to_list() == ["c at its bound"]
    assert fit.items["c_se"][0] is None


CONDITIONAL = [
    ("LSAT6", [-1.256128, 0.474906, 1.235984, 0.168411, -0.623172], -1091.569690),
    ("LSAT7", [-0.541470, 0.536546, -0.133583, 0.805166, -0.666659], -1182.699899),
]


@pytest.mark.parametrize(("data", "b", "log_likelihood"), CONDITIONAL)
def test_the_conditional_rasch_rows(data: str, b: list[float], log_likelihood: float) -> None:
    fit = Irt(model="rasch", estimation="conditional").fit(lsat(data))
    assert fit.converged
    np.testing.assert_allclose(fit.items["b"], b, atol=2e-6)
    assert fit.log_likelihood == pytest.approx(log_likelihood, abs=1e-6)
    assert fit.subjects["status"][0] == "at bound"


def fixed_grid(items: pl.DataFrame, matrix: NDArray[np.float64], nodes: int | None) -> float:
    """Log likelihood from its definition on Gauss-Hermite nodes, or on a dense grid."""
    if nodes:
        x, w = np.polynomial.hermite_e.hermegauss(nodes)
        w = w / w.sum()
    else:
        x = np.linspace(-9, 9, 4001)
        w = np.exp(-0.5 * x * x) / np.sqrt(2 * np.pi) * (x[1] - x[0])
    p = 1 / (1 + np.exp(-(items["a"].to_numpy() * x[:, None] + items["d"].to_numpy())))
    p = np.clip(p, 1e-300, 1 - 1e-16)
    return float(np.log(w @ np.exp(np.log(p) @ matrix.T + np.log1p(-p) @ (1 - matrix).T)).sum())


@pytest.mark.skipif(not DATA.exists(), reason="reference data are not here")
@pytest.mark.parametrize(
    ("name", "file"),
    [("LSAT", "LSAT_responses.csv"), ("WIRS", "WIRS_responses.csv"), ("Abortion", "Abortion_responses.csv"),
     ("Mobility", "Mobility_responses.csv")],
)  # fmt: skip
@pytest.mark.parametrize(
    ("key", "model"), [("rasch_common_disc", "1pl"), ("rasch_disc1", "rasch"), ("ltm_2pl", "2pl")]
)
def test_against_ltm_on_its_own_data(name: str, file: str, key: str, model: str) -> None:
    reference = json.loads((DATA / "ltm_reference.json").read_text())[name]
    if key not in reference:
        pytest.skip("not in the reference")
    matrix = pl.read_csv(DATA / file, null_values="NA").cast(pl.Float64).fill_null(float("nan")).to_numpy()
    wanted = reference[key]
    theirs = pl.DataFrame({"a": [float(row["Dscrmn"]) for row in wanted["coef"]]}).with_columns(
        d=-pl.Series([row["Dffclt"] for row in wanted["coef"]]) * pl.col("a")
    )
    fit = Irt(model=model).fit(matrix)
    assert fit.log_likelihood == pytest.approx(fixed_grid(fit.items, matrix, None), abs=1e-3)
    # ltm's 21 fixed nodes are too few for slopes above three: its likelihood there is not the true one.
    assert fixed_grid(theirs, matrix, 21) == pytest.approx(wanted["loglik"], abs=1e-3)
    assert fit.log_likelihood > fixed_grid(theirs, matrix, None) - 1e-4
    if theirs["a"].max() < 2.2:
        assert fit.log_likelihood == pytest.approx(wanted["loglik"], abs=5e-3)
        np.testing.assert_allclose(fit.items["a"], theirs["a"], atol=3e-3)

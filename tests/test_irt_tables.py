"""Published tables: LSAT6 and LSAT7 under every model (ltm, mirt, irtQ), typed from their documents."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from lsat import lsat

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
    fit = Irt(model=model).fit(matrix)
    assert fit.log_likelihood == pytest.approx(reference[key]["loglik"], abs=2e-2)
    assert fit.log_likelihood > reference[key]["loglik"] - 1e-3
    wanted = np.array([row["Dscrmn"] for row in reference[key]["coef"]])
    np.testing.assert_allclose(fit.items["a"], wanted, rtol=0.02)

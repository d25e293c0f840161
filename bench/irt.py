"""`Irt` against public libraries: `python bench/irt.py [--peers PYTHON]`.

Simulated two-parameter responses (theta ~ N(0, 1), a = exp(.3 z), b ~ N(0, 1), seed 0), the same for all.
CPU time of all threads of the fit alone, after one small fit that compiles what is compiled; recovery of
a, b and theta. Every fit runs in a process of its own with a limit. The peers may live in another Python
(--peers); what is not installed there is said. Also the memory of larger fits. Writes
bench/results/irt.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

SIZES = ((1000, 500), (200, 5000))
MEMORY = ((1000, 5_000), (1000, 10_000), (2000, 10_000), (2000, 20_000))
RESULT = Path(__file__).parent / "results" / "irt.md"
LIMIT = 300
Found = dict[str, Any]


def simulate(subjects: int, items: int, gaps: float = 0.0) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    theta, a, b = draw.standard_normal(subjects), np.exp(0.3 * draw.standard_normal(items)), None
    b = draw.standard_normal(items)
    matrix = np.empty((subjects, items), np.int8)
    for first in range(0, items, 1000):
        part = slice(first, first + 1000)
        p = 1 / (1 + np.exp(-a[part] * (theta[:, None] - b[part])))
        matrix[:, part] = draw.random(p.shape) < p
        if gaps:
            matrix[:, part][draw.random(p.shape) < gaps] = -1
    return {"matrix": matrix, "theta": theta, "a": a, "b": b}


def karat_ml(matrix: np.ndarray) -> Found:
    from karat.scorers.irt.irt import Irt

    return of_karat(Irt(standard_errors="none").fit(matrix))


def karat_map(matrix: np.ndarray) -> Found:
    from karat.scorers.irt.irt import Irt
    from karat.scorers.irt.priors import LogNormal, Normal

    priors = {"slope_prior": LogNormal(sd=0.5), "intercept_prior": Normal(sd=3.0)}
    return of_karat(Irt(standard_errors="none", **priors).fit(matrix))


def karat_1pl(matrix: np.ndarray) -> Found:
    from karat.scorers.irt.irt import Irt

    return of_karat(Irt(model="1pl", standard_errors="none").fit(matrix))


def karat_errors(matrix: np.ndarray) -> Found:
    from karat.scorers.irt.irt import Irt

    return of_karat(Irt(standard_errors="per item").fit(matrix))


def of_karat(fit: Any) -> Found:
    table = fit.items.select("a", "b").fill_null(float("nan"))
    return {
        "a": table["a"].to_numpy(), "b": table["b"].to_numpy(), "theta": fit.subjects["theta"].to_numpy(),
        "iterations": fit.iterations, "log_likelihood": fit.log_likelihood,
    }  # fmt: skip


def py_irt(kind: str) -> Callable[[np.ndarray], Found]:
    def fit(matrix: np.ndarray) -> Found:
        import pandas as pd
        from py_irt.config import IrtConfig
        from py_irt.dataset import Dataset
        from py_irt.training import IrtModelTrainer

        names = [f"q{j}" for j in range(matrix.shape[1])]
        frame = pd.DataFrame(matrix, columns=names)
        frame.insert(0, "subject_id", [f"s{i}" for i in range(matrix.shape[0])])
        data = Dataset.from_pandas(frame, subject_column="subject_id", item_columns=names)
        model, priors = kind.split()
        config = IrtConfig(model_type=model, priors=priors, epochs=40 if matrix.size < 1000 else 2000)
        trainer = IrtModelTrainer(config=config, dataset=data, data_path=None, verbose=False)
        trainer.train(device="cpu")
        found = trainer.last_params
        order = [list(found["item_ids"].values()).index(name) for name in names]
        subjects = list(found["subject_ids"].values())
        who = [subjects.index(f"s{i}") for i in range(matrix.shape[0])]
        b = np.array(found["diff"])[order]
        a = np.array(found["disc"])[order] if "disc" in found else np.ones(b.size)
        return {"a": a, "b": b, "theta": np.array(found["ability"])[who], "iterations": config.epochs}

    return fit


def theta_irt(matrix: np.ndarray) -> Found:
    import theta

    fit = theta.fit(matrix.astype(float), "2PL")
    return {"a": np.asarray(fit.a), "b": np.asarray(fit.b), "iterations": int(fit.n_iter)}


def mirt(matrix: np.ndarray) -> Found:
    from mirt import fit_mirt

    fit = fit_mirt(matrix.astype(int), "2PL", compute_standard_errors=False)
    found = fit.model.parameters
    return {
        "a": np.asarray(found["discrimination"]).reshape(-1),
        "b": np.asarray(found["difficulty"]).reshape(-1),
        "iterations": fit.n_iterations,
    }  # fmt: skip


def girth(matrix: np.ndarray) -> Found:
    from girth import twopl_mml

    found = twopl_mml(matrix.T.astype(int))
    return {
        "a": found["Discrimination"],
        "b": found["Difficulty"],
        "theta": found["Ability"],
        "iterations": 25,
    }


METHODS: dict[str, tuple[str, Callable[[np.ndarray], Found]]] = {
    "karat 2pl": ("karat", karat_ml),
    "karat 2pl, weak priors": ("karat", karat_map),
    "karat 2pl with standard errors": ("karat", karat_errors),
    "karat 1pl": ("karat", karat_1pl),
    "theta-irt 2PL": ("theta", theta_irt),
    "mirt (Python) 2PL": ("mirt", mirt),
    "py-irt 2pl vague": ("py_irt", py_irt("2pl vague")),
    "py-irt 2pl hierarchical": ("py_irt", py_irt("2pl hierarchical")),
    "girth twopl_mml": ("girth", girth),
}


def one(method: str, data: Path) -> None:
    """In a process of its own: fit and print the figures as JSON."""
    import importlib.util

    package, fit = METHODS[method]
    if importlib.util.find_spec(package) is None:
        print(json.dumps({"missing": package}))
        return
    truth = np.load(data)
    # Compiles what is compiled late; a second time at full size where shapes are compiled for.
    fit(np.asarray(simulate(30, 8)["matrix"]))
    if method.startswith("theta"):
        fit(truth["matrix"])
    before, wall = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    found = fit(truth["matrix"])
    after = resource.getrusage(resource.RUSAGE_SELF)
    known = np.isfinite(found["a"]) & np.isfinite(found["b"])
    a, b = found["a"][known], found["b"][known]
    figures = {
        "cpu": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "wall": time.perf_counter() - wall,
        "memory": after.ru_maxrss / 1024,
        "iterations": int(found["iterations"]),
        "items": int(known.sum()),
        "r_a": float(np.corrcoef(a, truth["a"][known])[0, 1]) if np.ptp(a) > 0 else None,
        "r_b": float(np.corrcoef(b, truth["b"][known])[0, 1]),
        "rmse_b": float(np.sqrt(np.mean((b - truth["b"][known]) ** 2))),
        "r_theta": float(np.corrcoef(found["theta"], truth["theta"])[0, 1]) if "theta" in found else None,
    }
    print(json.dumps(figures))


def measured(python: str, method: str, data: Path, limit: int) -> dict[str, Any]:
    command = [python, str(Path(__file__)), "--one", method, str(data)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "JAX_PLATFORMS": "cpu"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, env=environment)
    except subprocess.TimeoutExpired:
        return {"failed": f"not finished in {limit} s of wall time"}
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or ["killed"])[-1][:90]}
    figures: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return figures


def line(method: str, size: str, found: dict[str, Any]) -> str:
    if "missing" in found:
        return f"| {method} | {size} | not installed | | | | | | |"
    if "failed" in found:
        return f"| {method} | {size} | {found['failed']} | | | | | | |"
    show = [f"{found[k]:.4f}" if found[k] is not None else "-" for k in ("r_a", "r_b", "rmse_b", "r_theta")]
    return (
        f"| {method} | {size} | {found['cpu']:.3f} | {found['iterations']} | {' | '.join(show)} | "
        f"{found['items']} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--peers", default=sys.executable, help="a Python with py-irt, girth, theta-irt, mirt"
    )
    parser.add_argument("--limit", type=int, default=LIMIT, help="seconds of wall time for one fit")
    parser.add_argument("--one", nargs=2)
    arguments = parser.parse_args()
    if arguments.one:
        one(arguments.one[0], Path(arguments.one[1]))
        return
    lines = [
        "# Item response theory: time, recovery, memory", "",
        f"{platform.machine()}, one thread each; CPU seconds of the warm fit. r and RMSE: to the truth.", "",
        "| fit | subjects × items | CPU s | iterations | r(a) | r(b) | RMSE b | r(theta) | items |",
        "|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        for subjects, items in SIZES:
            data = Path(folder) / "data.npz"
            np.savez(data, **simulate(subjects, items))
            for method, (package, _) in METHODS.items():
                python = sys.executable if package == "karat" else arguments.peers
                lines.append(
                    line(method, f"{subjects} × {items}", measured(python, method, data, arguments.limit))
                )
                print(lines[-1], flush=True)
        lines += ["", "Memory of the whole process, 5 % gaps, 2pl without standard errors:", "",
                  "| subjects × items | responses | CPU s | peak MB |", "|---|---|---|---|"]  # fmt: skip
        for subjects, items in MEMORY:
            data = Path(folder) / "data.npz"
            np.savez(data, **simulate(subjects, items, gaps=0.05))
            found = measured(sys.executable, "karat 2pl", data, 600)
            shown = f"{found['cpu']:.1f} | {found['memory']:.0f}" if "cpu" in found else f"{found} | "
            lines.append(f"| {subjects} × {items} | {subjects * items * 0.95:,.0f} | {shown} |")
            print(lines[-1], flush=True)
    RESULT.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

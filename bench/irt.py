"""`Irt` against public libraries: `python bench/irt.py [--peers PYTHON]`.

Simulated two-parameter responses (theta ~ N(0, 1), a = exp(.3 z), b ~ N(0, 1), seed 0), the same for all.
CPU time of all threads of the fit alone, after one small fit that compiles what is compiled; recovery of
a, b and theta. Every fit runs in a process of its own with a limit. The peers may live in another Python
(--peers); what is not installed there is said. `--part memory` measures the peak memory of larger
fits instead, from a matrix in a memory-mapped file and from a long Parquet table (`--big` adds five hundred
million responses). Each part replaces its own section of bench/results/irt.md.
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
MEMORY = ((1000, 5_000), (2000, 10_000), (2000, 20_000))
BIG = (5_000, 100_000)
LONG = (5_000, 10_000, 0.8)
"""Subjects, items and gaps of the long table: ten million responses."""
OURS, PEERS = "karat 2pl, weak priors", ("theta-irt", "mirt", "py-irt", "girth")
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
        "memory": peak_mb(),
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


def peak_mb() -> float:
    """Largest resident set of this program; that of getrusage may be its parent's, before it was started."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def memory_case(kind: str, data: Path) -> None:
    """In a process of its own: fit from a file and print CPU, peak memory and recovery as JSON."""
    from karat.scorers.irt.irt import Irt

    Irt().fit(simulate(30, 8)["matrix"])
    before = resource.getrusage(resource.RUSAGE_SELF)
    start = peak_mb()
    source: Any = data
    if kind == "matrix":
        source = np.load(data, mmap_mode="r")
    fit = Irt(standard_errors="none", device="cpu").fit(source)
    after = resource.getrusage(resource.RUSAGE_SELF)
    b = np.load(data.with_suffix(".b.npy"))
    order = np.argsort(np.arange(b.size).astype(str)) if kind == "long" else np.arange(b.size)
    found = fit.items["b"].fill_null(float("nan")).to_numpy()
    known = np.isfinite(found)
    figures = {
        "cpu": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "start": start, "memory": peak_mb(), "iterations": fit.iterations,
        "converged": fit.converged, "r_b": float(np.corrcoef(found[known], b[order][known])[0, 1]),
        "responses": int(fit.items["responses"].sum()),
    }  # fmt: skip
    print(json.dumps(figures))


def write_matrix(path: Path, subjects: int, items: int, gaps: float) -> None:
    """A .npy file made in blocks of items, so that no more than a block is in memory."""
    draw = np.random.default_rng(0)
    theta = draw.standard_normal(subjects, dtype=np.float32)
    a = np.exp(0.3 * draw.standard_normal(items, dtype=np.float32))
    b = draw.standard_normal(items, dtype=np.float32)
    matrix = np.lib.format.open_memmap(path, "w+", np.int8, (subjects, items))
    for first in range(0, items, 500):
        part = slice(first, min(first + 500, items))
        p = 1 / (1 + np.exp(-a[part] * (theta[:, None] - b[part])))
        block = (draw.random(p.shape, dtype=np.float32) < p).astype(np.int8)
        block[draw.random(p.shape, dtype=np.float32) < gaps] = -1
        matrix[:, part] = block
    matrix.flush()
    np.save(path.with_suffix(".b.npy"), b)


def write_long(path: Path, subjects: int, items: int, gaps: float) -> None:
    """A Parquet table of subject, item, correct with ids as text, subject after subject."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    write_matrix(path.with_suffix(".npy"), subjects, items, gaps)
    matrix = np.load(path.with_suffix(".npy"), mmap_mode="r")
    schema = pa.schema([("subject", pa.string()), ("item", pa.string()), ("correct", pa.int8())])
    with pq.ParquetWriter(path, schema) as file:
        for first in range(0, subjects, 100):
            block = np.asarray(matrix[first : first + 100])
            row, item = np.nonzero(block >= 0)
            columns = [(row + first).astype(str).tolist(), item.astype(str).tolist(), block[row, item]]
            file.write_table(
                pa.table([pa.array(c, t) for c, t in zip(columns, schema.types, strict=True)], schema)
            )


def memory_lines(folder: Path, big: bool) -> list[str]:
    lines = [
        "Peak memory of the whole process (resident set, with the mapped pages of the file that it read); "
        "2pl without standard errors, CPU seconds of reading and fitting.", "",
        "| responses | as | number | CPU s | MB before | peak MB | iterations | r(b) |",
        "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    cases = [("matrix", (*size, 0.05)) for size in (*MEMORY, *((BIG,) if big else ()))] + [("long", LONG)]
    for kind, (subjects, items, gaps) in cases:
        data = folder / ("data.npy" if kind == "matrix" else "data.parquet")
        {"matrix": write_matrix, "long": write_long}[kind](data, subjects, items, gaps)
        found = measured(sys.executable, f"memory {kind}", data, 3000)
        what = "int8 matrix, .npy" if kind == "matrix" else f"Parquet, {data.stat().st_size / 1e6:.0f} MB"
        shown = str(found.get("failed"))
        if "cpu" in found:
            shown = (
                f"{found['responses']:,} | {found['cpu']:.1f} | {found['start']:.0f} | "
                f"{found['memory']:.0f} | "
                f"{found['iterations']}{'' if found['converged'] else ', not converged'} | {found['r_b']:.4f}"
            )
        lines.append(f"| {subjects:,} × {items:,} | {what} | {shown} |")
        print(lines[-1], flush=True)
    return lines


def peer_lines(folder: Path, python: str, limit: int) -> list[str]:
    lines = [
        "One thread each; CPU seconds of the warm fit. r and RMSE: to the truth.", "",
        "| fit | subjects × items | CPU s | iterations | r(a) | r(b) | RMSE b | r(theta) | items |",
        "|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    ratios = []
    for subjects, items in SIZES:
        data, size = folder / "data.npz", f"{subjects} × {items}"
        np.savez(data, **simulate(subjects, items))
        found = {}
        for method, (package, _) in METHODS.items():
            found[method] = measured(sys.executable if package == "karat" else python, method, data, limit)
            lines.append(line(method, size, found[method]))
            print(lines[-1], flush=True)
        ratios += [ratio_line(found, method, size, limit) for method in METHODS if method.startswith(PEERS)]
    head = ["", f"CPU of each peer divided by that of {OURS!r} on the same data, in this run:", "",
            "| peer | subjects × items | times the CPU | RMSE b, peer / karat | r(b), peer / karat |",
            "|---|---|---|---|---|"]  # fmt: skip
    return lines + head + ratios


def ratio_line(found: dict[str, dict[str, Any]], method: str, size: str, limit: int) -> str:
    ours, theirs = found[OURS], found[method]
    if "cpu" not in ours or "cpu" not in theirs:
        known = "cpu" in ours and str(theirs.get("failed", "")).startswith("not finished")
        what = f"not finished in {limit} s" if known else theirs.get("failed", "not installed")
        return f"| {method} | {size} | {what} | - | - |"
    return (
        f"| {method} | {size} | {theirs['cpu'] / ours['cpu']:.0f} | "
        f"{theirs['rmse_b']:.3f} / {ours['rmse_b']:.3f} | {theirs['r_b']:.4f} / {ours['r_b']:.4f} |"
    )


def write_section(title: str, lines: list[str]) -> None:
    """Replace one section of the results, or add it."""
    head = "# Item response theory: time, recovery, memory"
    text = RESULT.read_text(encoding="utf-8") if RESULT.exists() else head
    sections = {part.split("\n", 1)[0]: part.split("\n", 1)[1].strip() for part in text.split("\n## ")[1:]}
    sections[title] = "\n".join([f"{platform.machine()}. {lines[0]}", *lines[1:]])
    body = "".join(f"\n\n## {name}\n\n{section}" for name, section in sections.items())
    RESULT.write_text(f"{head}{body}\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--peers", default=sys.executable, help="a Python with py-irt, girth, theta-irt, mirt"
    )
    parser.add_argument("--limit", type=int, default=LIMIT, help="seconds of wall time for one fit")
    parser.add_argument("--part", choices=("peers", "memory"), default="peers")
    parser.add_argument("--big", action="store_true", help=f"{BIG[0]:,} × {BIG[1]:,} in the memory part")
    parser.add_argument("--one", nargs=2)
    arguments = parser.parse_args()
    if arguments.one:
        method, data = arguments.one[0], Path(arguments.one[1])
        if method.startswith("memory "):
            memory_case(method.removeprefix("memory "), data)
        else:
            one(method, data)
        return
    with tempfile.TemporaryDirectory() as folder:
        if arguments.part == "memory":
            write_section("Memory", memory_lines(Path(folder), arguments.big))
        else:
            lines = peer_lines(Path(folder), arguments.peers, arguments.limit)
            write_section("Time and recovery against public libraries", lines)


if __name__ == "__main__":
    main()

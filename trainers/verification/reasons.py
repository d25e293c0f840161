"""From the weights that acted to a sentence with the reason and the way out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from karat.trainers.verification.diagnose import Finding, Guesses, by_row, means_by, near
from karat.trainers.verification.judge import Array, Compared

CALLBACK = (
    "add karat.trainers.ReweightCallback() to the Trainer's callbacks, and let the batch reach the model"
)
SHIFTS = (1, 2, 3, -1, -2, -3)


def diagnose(guesses: Guesses) -> Finding:
    """The first explanation that fits every window, from the plainest to the strangest."""
    for explain in (_late, _another_loss, _lost, _scale, _other_weights, _constant_within, _rows):
        finding = explain(guesses)
        if finding is not None:
            return finding
    worst = max(window.error for window in guesses.found)
    return Finding(
        f"the gradient is not the one that the weights ask for (relative error {worst:.2g}), and no simple "
        "explanation fits",
        "compare the rows in `Verification.rows`: the weight that acted beside the one intended",
    )


def _late(guesses: Guesses) -> Finding | None:
    """Right at first, wrong later."""
    good = [window.error <= guesses.facts.tolerance for window in guesses.found]
    if all(good) or not good[0]:
        return None
    first = good.index(False)
    off, k = guesses.fit(first, np.ones(len(guesses.found[first].samples)))
    how = "the gradient is the unweighted one" if off < guesses.slack and near(k, 1, 0.2) else "they do not"
    return Finding(
        f"weights reach the loss in step 1, and from step {first + 1} on {how}",
        "a callback or hook puts another loss back during training; take it off",
    )


def _another_loss(guesses: Guesses) -> Finding | None:
    """No weights of these rows explain the gradient."""
    if not all(left > guesses.slack for _, left in guesses.solved):
        return None
    if all(not np.any(window.got) for window in guesses.found):
        return Finding("the gradient is zero", "is the loss detached from the parameters?")
    said = guesses.facts.settings
    return Finding(
        "the gradient is no weighted sum of the rows' own gradients: the Trainer minimises another loss than "
        f"the model's{': ' + said if said else ''}",
        "leave label smoothing, compute_loss_func and an overridden compute_loss out"
        if said
        else "look for an overridden compute_loss, a term added to the loss, or random parts of the model",
    )


def _lost(guesses: Guesses) -> Finding | None:
    """Equal weights, or the static ones without the online ones."""

    def ones(window: Compared) -> Array:
        return np.ones(len(window.samples))

    def masked(window: Compared) -> Array:
        return np.asarray(window.static > 0, dtype=np.float64)

    def averaged(window: Compared) -> Array:
        """One in the mean; as the stock loss of heads that take a mean of every micro-batch."""
        scored = np.asarray([max(1, s.measured.scored) for s in window.samples], dtype=np.float64)
        keys = [(s.rank, s.batch) for s in window.samples]
        sums = {key: sum(n for n, k in zip(scored, keys, strict=True) if k == key) for key in set(keys)}
        return np.asarray([scored.sum() / len(sums) / sums[key] for key in keys])

    tries: list[tuple[Callable[[Compared], Array], bool, str]] = [
        (ones, True, ""),
        (masked, False, ", but that rows of weight 0 are left out"),
        (averaged, True, ", a mean of every micro-batch"),
    ]
    for make, stock, which in tries:
        factors = guesses.all_fit(make, stock=stock)
        if factors is not None:
            scale = "" if _all_near(factors, 1, guesses) else f", times {_list(factors)}"
            return Finding(
                f"weights do not reach the loss: the gradient is the unweighted one{which}{scale}", CALLBACK
            )
    factors = guesses.all_fit(lambda window: window.static)
    differs = any(not np.allclose(window.static, window.weights) for window in guesses.found)
    if factors is not None and differs:
        return Finding("the static weights reach the loss, the online ones do not", CALLBACK)
    return None


def _scale(guesses: Guesses) -> Finding | None:
    """The intended gradient times a number."""
    factors = guesses.all_fit(lambda window: window.weights)
    if factors is None:
        return None
    facts = guesses.facts
    if _counts_absent(guesses, factors):
        return Finding(
            f"rows of weight 0 are still counted: scale off by {_list(factors)}, the scored tokens of the "
            "other rows over those of all rows",
            "mask the labels of rows of weight 0 before the Trainer counts the tokens of the window",
        )
    raw = _raw_mean(guesses)
    causes: list[tuple[float, str, str]] = [
        (facts.accumulation, "accumulation is not divided", "divide by the tokens of the whole window"),
        (1 / facts.accumulation, "accumulation is divided twice", "the Trainer has divided already"),
        (
            facts.ranks,
            "it is multiplied by the number of ranks once too often",
            "the Trainer does it already",
        ),
        (1 / facts.ranks, "the mean over ranks is not undone", "multiply the loss by the number of ranks"),
        (raw, "weights are not scaled to mean one", "divide them by their mean over rows of positive weight"),
        (1 / raw, "weights are divided by their mean twice", "divide once"),
    ]
    for value, reason, hint in causes:
        if value != 1 and _all_near(factors, value, guesses):
            return Finding(f"scale off by {value:.4g}: {reason}", hint)
    alike = max(factors) - min(factors) <= 2 * guesses.slack * max(factors)
    hint = "look for a training_step, compute_loss or hook that scales the loss or the gradients"
    if alike:
        return Finding(
            f"scale off by {factors[0]:.4g}: the gradient is that multiple of the intended one", hint
        )
    return Finding(f"scale off by another factor in each step: {_list(factors)}", hint)


def _counts_absent(guesses: Guesses, factors: Sequence[float]) -> bool:
    expected = []
    for number, window in enumerate(guesses.found):
        ones = np.ones(len(window.samples))
        with_all = guesses.judge.coefficients(number, ones, ones).sum()
        without = guesses.judge.coefficients(number, window.static, ones).sum()
        expected.append(with_all / without)
    some = any(abs(value - 1) > guesses.slack for value in expected)
    return some and all(near(k, value, guesses.slack) for k, value in zip(factors, expected, strict=True))


def _raw_mean(guesses: Guesses) -> float:
    raw = guesses.facts.raw
    return 1.0 if raw is None else float(raw[raw > 0].mean())


def _other_weights(guesses: Guesses) -> Finding | None:
    """Weights made from the intended ones in a way that has a name."""
    raw, scaled = guesses.facts.raw, guesses.facts.scaled
    tries: list[tuple[Callable[[Compared], Array], str, str]] = [
        (lambda w: w.weights**2, "weights are applied twice", "one place must weight the loss, not two"),
        (
            lambda w: w.weights / means_by(w, lambda s: (s.rank, s.batch), w.weights),
            "weights are normalised within each micro-batch, so light batches count as much as heavy ones",
            "scale them once, over the whole training set",
        ),
        (
            lambda w: w.weights / np.maximum(1, [s.measured.scored for s in w.samples]),
            "the loss of each sequence is averaged before it is weighted, so short ones count more",
            'weight summed token losses, or ask for reduction="sample"',
        ),
        (
            lambda w: w.weights * [s.measured.scored for s in w.samples],
            "the tokens of a row are summed where their mean is meant",
            'say reduction="token"',
        ),
    ]
    if raw is not None:
        for name, cut in (("rounded", np.rint), ("cut", np.floor)):
            rounded = cut(raw)
            if not np.array_equal(rounded, raw):
                tries.append(
                    (
                        lambda w, rounded=rounded: by_row(rounded, w),  # type: ignore[misc]
                        f"weights are {name} to whole numbers",
                        "keep them as floats: an integer column or cast loses them",
                    )
                )
    for shift in SHIFTS:
        moved = np.roll(scaled, shift)
        tries.append(
            (
                lambda w, moved=moved: by_row(moved, w),  # type: ignore[misc]
                f"every row has the weight of the row {abs(shift)} {'before' if shift > 0 else 'after'} it",
                "weights and rows are out of step: take the weight from the row itself",
            )
        )
    for make, reason, hint in tries:
        if guesses.all_fit(make) is not None:
            return Finding(reason, hint)
    return None


def _constant_within(guesses: Guesses) -> Finding | None:
    """The right weights, times a number for each rank or micro-batch."""
    ratios = guesses.ratios()
    for what, key in (("rank", lambda s: s.rank), ("micro-batch", lambda s: (s.rank, s.batch))):
        lines, several = [], False
        for window, ratio in zip(guesses.found, ratios, strict=True):
            keys = [key(s) for s in window.samples]
            for one in sorted(set(keys)):
                values = ratio[[at for at, k in enumerate(keys) if k == one]]
                values = values[np.isfinite(values)]
                if values.size == 0:
                    continue
                several = several or values.size > 1
                if np.ptp(values) > 3 * guesses.slack * abs(values).max():
                    break
                lines.append(f"{values.mean():.4g}")
            else:
                continue
            break
        else:
            if several and len(set(lines)) > 1:
                return Finding(
                    f"scale off by a factor of its own for each {what}: {', '.join(lines[:8])}",
                    f"something scales the loss of each {what}; the whole window has one denominator",
                )
    return None


def _rows(guesses: Guesses) -> Finding | None:
    """Right numbers on wrong rows, or some rows without theirs."""
    missing = moved = rows = 0
    within = True
    for (solved, _), window in zip(guesses.solved, guesses.found, strict=True):
        if solved is None:
            return None
        known, wanted = np.isfinite(solved), window.weights
        slack = 5 * guesses.slack * max(1.0, float(wanted.max()))
        wrong = known & (np.abs(solved - wanted) > slack)
        rows += int(wrong.sum())
        missing += int((wrong & (np.abs(solved) < slack)).sum())
        acted = solved / _own_count(window, solved, slack)
        wrong = known & (np.abs(acted - wanted) > slack)
        moved += _appear(acted[wrong], guesses.facts.scaled, slack)
        for batch in {(s.rank, s.batch) for s in window.samples}:
            at = np.asarray([(s.rank, s.batch) == batch for s in window.samples]) & known
            within = within and np.allclose(np.sort(acted[at]), np.sort(wanted[at]), atol=slack)
    if rows and within:
        return Finding(
            "weights sit on other rows of their batch: rows have a neighbour's weight",
            "the collator changes the order of the rows; keep it, or sort before batching",
        )
    if rows and missing == rows:
        return Finding(f"{rows} rows that have a weight do not reach the loss", "which step drops them?")
    if moved:
        return Finding(
            f"{moved} rows have the weight of another row of the training set",
            "the data were shuffled, filtered or sorted after the weights were read; take them from the rows",
        )
    return None


def _own_count(window: Compared, solved: Array, slack: float) -> float:
    """Tokens that were meant to be counted, over those of the rows that have acted."""
    items = np.asarray([s.measured.items for s in window.samples], dtype=np.float64)
    acted = items[np.abs(np.nan_to_num(solved)) > slack].sum()
    return float(items[window.static > 0].sum() / acted) if acted else 1.0


def _appear(values: Array, known: Array, slack: float) -> int:
    """How many values are the weight of some row: all of them, or none."""
    if values.size == 0:
        return 0
    known = np.unique(known)
    # Where the weights lie closer than the slack (bfloat16), any number is near one, which says nothing.
    if np.minimum(np.diff(known), 2 * slack).sum() > (known[-1] - known[0]) / 2:
        return 0
    distance = np.abs(values[:, None] - known[None, :]).min(axis=1)
    return int(values.size) if bool((distance <= slack).all()) else 0


def _all_near(factors: Sequence[float], value: float, guesses: Guesses) -> bool:
    return all(near(k, value, guesses.slack) for k in factors)


def _list(factors: Sequence[float]) -> str:
    return ", ".join(dict.fromkeys(f"{k:.4g}" for k in factors))

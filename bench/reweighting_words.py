"""What each table of the reweighting bench shows."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from typing import Any

HEAD = """
`python bench/reweighting.py`, {today}; {where}.

Means ± standard deviation over seeds. "To uniform": the mean paired difference over the seeds with its 95 %
interval (t). All rules of a task share the seeds: initial weights, order of the rows, wrong labels, split.
Every weight comes from the rule's own `update`. Settings were tried on seeds 100 to 102, and the numbers are
those of seeds 0 and up. The last epoch is what training without a look at other data gives; the early stop
takes the epoch that is best on validation rows, which have as many wrong labels as the training rows."""


def _toy(scale: Any) -> str:
    toy = scale.toy
    return f"""Linear regression: {toy.features} features with scales 1 to 0.15, {toy.rows} rows, SGD with
batches of {toy.batch}, {toy.steps} steps, {scale.toy_seeds} seeds. Steps: until the test error is a
twentieth of the first one, at learning rate 0.02; a run that never got there counts with all its steps.
Chosen
rate: of 0.01 to 1.6 in doublings, the one with the lowest mean last error on 8 other seeds. The loss is a
squared error, and the settings with λ and SuperLoss's are in its units."""


def _news(scale: Any) -> str:
    noise, net = scale.noise, scale.noise.net
    return f"""AG News, four classes: {noise.train} rows to train on, {noise.validation} to stop by,
{noise.test} clean ones to test on; TF-IDF of {noise.words} words, one hidden layer of {net.hidden},
{net.epochs} epochs of Adam, batches of {net.batch}; {scale.seeds} seeds. Test accuracy. AUC: how well low
weights in the last epoch find the wrong labels; losses of another form have equal weights, and none."""


_DATA = {
    "adult": "UCI Adult, income over 50K; the groups are sex × income, and sex is an input.",
    "digits": "Parity of scikit-learn's digits with a bright column that tells the parity in 95 % of the "
    "training rows and in half of the validation and test rows; the groups are parity × column.",
}


def _groups(what: str) -> Callable[[Any], str]:
    def words(scale: Any) -> str:
        sizes = getattr(scale, what)
        net = sizes.net
        return f"""{_DATA[what]} {sizes.train} rows to train on, {sizes.validation} to stop by, the rest to
test on; one hidden layer of {net.hidden}, {net.epochs} epochs of AdamW, weight decay {net.decay}, batches of
{net.batch}; {scale.seeds} seeds. The early stop takes the epoch with the best worst group on the validation
rows, for every rule, so all of them use group labels there; in training only the group-balanced weights,
GroupDro and DoReMi use them. Uniform is ERM. DoReMi's reference is an ERM model of another seed. Weight of
the smallest group: its rows' mean weight in the last epoch over that of all rows."""

    return words


def _text(pool: str) -> Callable[[Any], str]:
    def words(scale: Any) -> str:
        mix = scale.mix
        return f"""{pool} {mix.pool} documents of {mix.length} bytes from news, Alpaca, code, mathematics and
a play in equal shares; a Llama over bytes, 2 layers of {mix.width}, {mix.steps} steps of {mix.batch}
documents under every rule, so equal tokens; {scale.text_seeds} seeds. Test bits per byte on {mix.evaluated}
other documents, lower is better; early stop: the best of {mix.evaluations} evaluations on as many more."""

    return words


_INTRODUCTIONS: dict[str, Callable[[Any], str]] = {
    "toy, clean": _toy,
    "toy, 5 % outliers": lambda _: "The same with N(0, 10) added to the targets of 5 % of the training rows.",
    "news, clean labels": lambda scale: _news(scale) + " Here without wrong labels, for scale.",
    "news, 40 % wrong labels": lambda _: (
        "The same with 40 % of the training and validation labels replaced by one of the other three."
    ),
    "adult": _groups("adult"),
    "digits": _groups("digits"),
    "half duplicates": _text("Half of the pool are copies of 40 documents."),
    "half duplicates, deduplicated": lambda _: (
        "The same pool after exact deduplication, as many steps; differences are to uniform on all copies."
    ),
    "no duplicates": lambda _: (
        "A pool of the same size without copies; differences are to uniform on this pool."
    ),
}


def introduction(task: str, scale: Any) -> str:
    """The paragraph above the task's table."""
    return textwrap.fill(_INTRODUCTIONS[task](scale), 108)

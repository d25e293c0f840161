"""`karat run`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from karat.cli.live import live
from karat.config import load_config
from karat.inputs import check_scorers, run_key
from karat.record import complete
from karat.statuses import status_lines

err = Console(stderr=True, highlight=False)
out = Console(highlight=False)


def say(line: Text | str = "") -> None:
    """One line, however long: a pipe or a narrow terminal must not break paths and commands apart."""
    out.print(line, soft_wrap=True)


def run_command(file: Path, overrides: list[str], *, fresh: bool, verbose: bool) -> None:
    """Run the config; a complete run is recognised and left as it is."""
    loaded = load_config(file, overrides)
    check_scorers(loaded)
    done = None if fresh else complete(loaded.config.out, run_key(loaded.config))
    if done is not None:
        say(f"nothing to compute: {loaded.config.out} is complete and unchanged")
    else:
        # Prefect and torch take seconds to import: say something first.
        err.print(Text(f"karat: {loaded.config.name} → {loaded.config.out}", style="bold"))
        with live(err):
            done = _flow(file, overrides, verbose)
    summary(done, loaded.config.out, file)


def _flow(file: Path, overrides: list[str], verbose: bool) -> dict[str, Any]:
    from karat.flows.runtime import prefect_runtime

    with prefect_runtime(verbose=verbose, console=err, tell=err.print):
        # Importing a flow makes Prefect look at its home, which the runtime has prepared by now.
        from karat.flows.run import run

        done: dict[str, Any] = run(str(file.absolute()), overrides)
    return done


_SYNTHESIS = (
    ("synthesis/", 'the fine-tuning set: load_dataset("parquet", data_files="…/synthesis/train-*.parquet")'),
    ("synthesis/queries.parquet", "every query with target, counts and why it fell short"),
)


def rows_of(count: int) -> str:
    """`1 row`, `2 rows`."""
    return f"{count:,} row{'' if count == 1 else 's'}"


def summary(done: dict[str, Any], folder: Path, file: Path) -> None:
    """What came out, where it is and what to try next."""
    counts = done["counts"]
    lines = [f"kept {counts['selected']:,} of {rows_of(counts['rows'])}"]
    if counts["tokens"]:
        share = counts["tokens"]["selected"] / max(1, counts["tokens"]["pool"])
        lines.append(f"{counts['tokens']['selected']:,} tokens, {share:.1%} of the pool")
    lines += [f"{rows_of(count)} skipped: {reason}" for reason, count in counts["skipped"].items()]
    lines += status_lines(done["statuses"])
    made = done.get("synthesis")
    if made is not None:
        lines.append(
            f"{made['kept']:,} right responses to {made['queries']:,} queries ({made['target']:,} wanted), "
            f"of {made['asked']:,} sampled in {made['rounds']:,} rounds"
        )
    lines += [f"warning: {warning}" for warning in done["warnings"]]
    for comparison in (done["training"] or {}).get("comparisons", ()):
        lines.append(_comparison(comparison, done["training"]["unit"]))
    for line in lines:
        say(Text(line))
    say()
    shown = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
    model, ledger = ((done["training"] or {}).get(name) for name in ("folder", "ledger"))
    for name, what in (
        ("report.html", "open it in a browser"),
        ("dataset/", 'datasets.load_dataset("parquet", data_files="…/dataset/*.parquet")'),
        *(_SYNTHESIS if made is not None else ()),
        ("selection.parquet", "every row with weight, reason, rank and scores"),
        *([(ledger, "what the training did to each row; `karat explain`")] if ledger else ()),
        ("run.json", "config, digests, versions, timings, counts, metrics"),
        *([(f"{model}/", "trained on the selection; `model:` of scorers takes it")] if model else []),
    ):
        say(Text(f"  {shown / name}".ljust(44), style="cyan") + Text(what, style="dim"))
    say()
    again = f"karat run {shlex.quote(str(file))}"
    if "budget" in done["config"]["select"]:
        say(Text(f'next: {again} select.budget="5%"   (scores are reused)'))
    else:
        say(Text(f"next: {again} select.KEY=VALUE   (scores are reused)"))
    say(Text(f"      karat push {shlex.quote(str(shown))} user/name            (private by default)"))


def _comparison(comparison: dict[str, Any], unit: str) -> str:
    low, high = comparison["low"], comparison["high"]
    told = f"no interval: {comparison['note']}"
    if low is not None:
        verdict = (
            "better" if high < 0 else "worse" if low > 0 else "no clear difference, the interval holds zero"
        )
        interval = f"{comparison['level']:.0%} interval [{low:+.3f}, {high:+.3f}]"
        told = f"{interval}, {comparison['seeds']} seeds: {verdict}"
    return (
        f"held-out {unit}: selection {comparison['mean_selection']:.3f}, {comparison['label']} "
        f"{comparison['mean_against']:.3f}; difference {comparison['difference']:+.3f}, {told}"
    )

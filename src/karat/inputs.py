"""What a run works on: the pool, the reference for the scorers and the rows to measure on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from karat.config import Config, Loaded
from karat.errors import ConfigError, SelectionError, closest
from karat.progress import current
from karat.reading import RowSet, hold_out, load_rows, rows_key
from karat.store import DIGEST, Store, frame_digest, key_of, write_parquet
from karat.yaml_lines import Loc


@dataclass(frozen=True)
class Inputs:
    """Rows of one run, all of them kept in the store."""

    pool: RowSet
    view: pl.DataFrame
    reference: pl.DataFrame | None
    reference_file: Path | None
    heldout: pl.DataFrame | None
    warnings: tuple[str, ...]

    def skipped(self) -> dict[str, int]:
        """Rows that the user chose to skip, by reason."""
        return dict(self.pool.about["skipped"])


def gather(loaded: Loaded, store: Store) -> Inputs:
    """Read every source (or find it in the store) and split the reference; raises for what cannot work."""
    config = loaded.config
    pool = _read(config.data, store, "read the pool")
    view = pool.view()
    reference = heldout = None
    if config.reference is not None:
        reference = _read(config.reference, store, "read the reference").view()
    if isinstance(config.evaluate, float):
        assert reference is not None  # noqa: S101 - Config has checked it
        try:
            reference, heldout = hold_out(reference, config.evaluate, config.seed)
        except ConfigError as error:
            raise loaded.error(("evaluate",), error.problem, error.hint) from None
    elif config.evaluate is not None:
        heldout = _read(config.evaluate, store, "read the held-out rows").view()
    file = None
    if reference is not None:
        file = store.root / "references" / f"{frame_digest(reference[DIGEST].to_list())}.parquet"
        if not file.is_file():
            write_parquet(reference, file)
    inputs = Inputs(pool, view, reference, file, heldout, tuple(_warnings(view, reference, heldout)))
    check(loaded, inputs)
    return inputs


def _read(spec: Any, store: Store, stage: str) -> RowSet:
    current().start(stage, 0, "rows")
    rows = load_rows(spec, store)
    current().finish(stage, f"{len(rows):,} rows{'' if rows.fresh else ' (in the store)'}")
    return rows


def _warnings(view: pl.DataFrame, reference: pl.DataFrame | None, heldout: pl.DataFrame | None) -> list[str]:
    found = []
    if heldout is not None:
        copies = view.filter(pl.col(DIGEST).is_in(heldout[DIGEST].implode())).height
        if copies:
            found.append(
                f"{copies:,} rows of the pool are exact copies of held-out rows: the evaluation is too kind"
            )
    if heldout is not None and reference is not None:
        both = reference.filter(pl.col(DIGEST).is_in(heldout[DIGEST].implode())).height
        if both:
            found.append(f"{both:,} reference rows are held-out rows as well: the evaluation is too kind")
    return found


def check(loaded: Loaded, inputs: Inputs) -> None:
    """What can be known to be impossible before anything is computed; raises ConfigError at the key."""
    config = loaded.config
    selector = config.select
    known = [*config.score_columns(), *(["group"] if inputs.view["group"].null_count() == 0 else [])]
    for column in selector.needs():
        if column in known:
            continue
        key = next((name for name in type(selector).model_fields if getattr(selector, name) == column), None)
        loc = ("select", key) if key in loaded.document.data["select"] else ("select",)
        if column == "group":
            raise loaded.error(
                loc, "needs a group for every row", "name a column: `data: {columns: {group: ...}}`"
            )
        if column.startswith("length."):
            raise loaded.error(loc, f"needs the column {column}", "add `- kind: length` to `scorers`")
        raise loaded.error(loc, f"no scorer writes the column {column!r}", closest(column, known))
    try:
        selector.check(inputs.view)
    except SelectionError as error:
        raise loaded.error(selection_key(loaded, error), error.problem, error.hint) from None
    if config.train is not None:
        _check_training(loaded, inputs.view)
    if inputs.reference is not None and inputs.reference["text"].null_count():
        row = inputs.reference.filter(pl.col("text").is_null())["id"][0]
        raise loaded.error(("reference",), f"row {row!r} has no text", "leave it out of the reference")


def _check_training(loaded: Loaded, view: pl.DataFrame) -> None:
    """What would end a training after everything else was computed."""
    train = loaded.config.train
    if train.missing_folder():
        raise loaded.error(
            ("train", "model"), f"there is no folder {train.model!r}", '"tiny", a folder, or a Hub id'
        )
    if view["group"].null_count() < view.height:
        return
    grouped = "name a column: `data: {columns: {group: ...}}`"
    if train.reweighter is not None and train.reweighter.needs_groups():
        raise loaded.error(("train", "reweighter"), f"{train.reweighter.kind} needs groups", grouped)
    if any("group" in control for control in train.controls):
        raise loaded.error(("train", "controls"), "a control matched on groups needs groups", grouped)


def selection_key(loaded: Loaded, error: SelectionError) -> Loc:
    """The key that a SelectionError is about: the one it names, else the budget."""
    given = loaded.document.data["select"]
    said = [key for key in ("quota", "floor") if key in error.problem]
    for key in [*said, "budget"]:
        if isinstance(given, dict) and key in given:
            return ("select", key)
    return ("select",)


def run_key(config: Config) -> str:
    """Key of everything that determines a run's results; cheap, nothing is parsed."""
    from karat.report import write_report

    sources = [config.data, config.reference, config.evaluate]
    keys = [source if source is None or isinstance(source, float) else rows_key(source) for source in sources]
    parts = [part.digest() for part in (*config.scorers, config.select)]
    train = None
    if config.train is not None:
        train = config.train.digest()
    report = write_report.__module__
    return key_of("run", keys, config.seed, parts, train, config.export.model_dump(), report)

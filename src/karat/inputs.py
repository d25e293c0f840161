"""What a run works on: the pool, the reference for the scorers and the rows to measure on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from karat.code_digest import modules_digest
from karat.config import Config, Loaded
from karat.errors import ConfigError, DataError, KaratError, SelectionError, StoreError, closest
from karat.progress import current
from karat.reading import RowSet, hold_out, load_rows, rows_key
from karat.record import versions
from karat.store import DIGEST, Store, check_writable, keep, key_of
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
    pool = _read(loaded, "data", store, "read the pool")
    view = pool.view()
    reference = heldout = None
    if config.reference is not None:
        reference = _read(loaded, "reference", store, "read the reference").view()
    if isinstance(config.evaluate, float):
        assert reference is not None  # noqa: S101 - Config has checked it
        try:
            reference, heldout = hold_out(reference, config.evaluate, config.seed)
        except ConfigError as error:
            raise loaded.error(("evaluate",), error.problem, error.hint) from None
    elif config.evaluate is not None:
        heldout = _read(loaded, "evaluate", store, "read the held-out rows").view()
    file = None
    if reference is not None:
        file = keep(reference, store.reference(reference))
    inputs = Inputs(pool, view, reference, file, heldout, tuple(_warnings(view, reference, heldout)))
    check(loaded, inputs)
    return inputs


def _read(loaded: Loaded, key: str, store: Store, stage: str) -> RowSet:
    current().start(stage, 0, "rows")
    try:
        rows = load_rows(getattr(loaded.config, key), store)
    except DataError as error:
        # A row that is wrong is found by its file and row; a setting that is wrong by its key and line.
        if not error.key:
            raise
        problem = f"{error.where}: {error.problem}" if error.where else error.problem
        raise loaded.error((key, *error.key), problem, error.hint) from None
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
    check_scorers(loaded)
    selector = config.select
    known = [*config.score_columns(), *(["group"] if inputs.view["group"].null_count() == 0 else [])]
    for column in selector.needs():
        if column in known:
            continue
        key = next((name for name in type(selector).model_fields if getattr(selector, name) == column), None)
        loc = ("select", key) if key in loaded.document.data["select"] else ("select",)
        if column == "group":
            raise _no_group(loaded, inputs.view)
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


def check_folders(loaded: Loaded) -> None:
    """Fail before the work rather than after it where `out` or `store` cannot be written."""
    for key in ("out", "store"):
        try:
            check_writable(getattr(loaded.config, key))
        except StoreError as error:
            raise loaded.error((key,), f"{error.where} {error.problem}", error.hint) from None


def check_scorers(loaded: Loaded) -> None:
    """Name the key of a scorer whose files (a model) cannot be had; raises ConfigError."""
    for number, scorer in enumerate(loaded.config.scorers):
        try:
            scorer.digest()
        except KaratError as error:
            raise loaded.error(("scorers", number), error.problem, error.hint) from None
    if loaded.config.synthesize is not None:
        try:
            loaded.config.synthesize.digest()
        except KaratError as error:
            raise loaded.error(("synthesize",), error.problem, error.hint) from None


def check_tokens(loaded: Loaded, inputs: Inputs, lengths: pl.DataFrame) -> None:
    """What can be known to be impossible once the lengths are there; raises ConfigError at the key."""
    try:
        loaded.config.select.check(inputs.view, lengths)
    except SelectionError as error:
        raise loaded.error(selection_key(loaded, error), error.problem, error.hint) from None


def _no_group(loaded: Loaded, view: pl.DataFrame) -> ConfigError:
    given = loaded.document.data["select"]
    key = next((name for name in ("quota", "floor") if isinstance(given, dict) and name in given), None)
    loc: Loc = ("select", key) if key else ("select",)
    column = loaded.config.data.columns.group
    if column is None:
        return loaded.error(
            loc, "needs a group for every row", "name a column: `data: {columns: {group: ...}}`"
        )
    lost = view.filter(pl.col("group").is_null())["id"]
    return loaded.error(
        loc,
        f"needs a group for every row; {len(lost):,} of {view.height:,} rows have none in the column "
        f"{column!r}, the first is {lost[0]!r}",
        "give them a group in the data, or leave quota and floor out",
    )


def _check_training(loaded: Loaded, view: pl.DataFrame) -> None:
    """What would end a training after everything else was computed."""
    train = loaded.config.train
    if train.missing_folder():
        raise loaded.error(
            ("train", "model"), f"there is no folder {train.model!r}", '"tiny", a folder, or a Hub id'
        )
    if train.groups is not None:
        _check_strata(loaded, view)
    if view["group"].null_count() < view.height:
        return
    grouped = "name a column: `data: {columns: {group: ...}}`"
    if train.groups is None and train.reweighter is not None and train.reweighter.needs_groups():
        raise loaded.error(("train", "reweighter"), f"{train.reweighter.kind} needs groups", grouped)
    if any("group" in control for control in train.controls):
        raise loaded.error(("train", "controls"), "a control matched on groups needs groups", grouped)


def _check_strata(loaded: Loaded, view: pl.DataFrame) -> None:
    """Groups by the quantile of a score: the score is there, and no other groups are meant."""
    config = loaded.config
    groups = config.train.groups
    known = {name: dtype for scorer in config.scorers for name, dtype in scorer.columns().items()}
    if groups.by not in known:
        problem, hint = f"no scorer writes the column {groups.by!r}", closest(groups.by, list(known))
        raise loaded.error(("train", "groups", "by"), problem, hint)
    if not known[groups.by].is_numeric():
        raise loaded.error(("train", "groups", "by"), f"{groups.by} is {known[groups.by]}, not a number")
    if view["group"].null_count() < view.height and not groups.replace:
        raise loaded.error(
            ("train", "groups"),
            f"the data has groups of its own, and groups by {groups.by} are asked for: a reweighter can "
            "follow one of them",
            "leave one out, or say `replace: true` here if these are meant (quotas and controls keep those "
            "of the data)",
        )


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
    sources = [config.data, config.reference, config.evaluate]
    keys = [source if source is None or isinstance(source, float) else rows_key(source) for source in sources]
    parts = [part.digest() for part in (*config.scorers, config.select)]
    train = None
    if config.train is not None:
        train = [config.train.digest(), modules_digest("karat.trainers.train"), versions()]
    code = modules_digest(
        "karat.selecting", "karat.deriving", "karat.export", "karat.alarms", "karat.report.page"
    )
    synthesis = None if config.synthesize is None else config.synthesize.digest()
    facts = (config.name, keys, config.seed, parts, train, synthesis, config.export.model_dump(), code)
    return key_of("run", *facts)

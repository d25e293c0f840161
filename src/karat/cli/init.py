"""`karat init`: a commented starter config for the user's own file."""

from __future__ import annotations

import os
import re
from pathlib import Path

import yaml

from karat.errors import ConfigError
from karat.rows.survey import Survey, survey

_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*")
_WIDTH = 36


def init(file: Path, out: Path, force: bool = False, reference: Path | None = None) -> Path:
    """Write a config that runs as it is; raises DataError for unreadable rows, ConfigError for `out`."""
    if out.is_dir():
        raise ConfigError("is a folder", where=str(out), hint="name a file: --out karat.yaml")
    if out.exists() and not force:
        raise ConfigError(
            "is there already", where=str(out), hint="--force overwrites it, --out names another"
        )
    for path in filter(None, (file, reference)):
        _writable(path)
    pool = survey(str(file))
    _no_responses(pool, file)
    text = starter(pool, survey(str(reference)) if reference else None)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(out)
    except OSError as error:
        raise ConfigError(f"cannot be written: {error.strerror}", where=str(out)) from None
    finally:
        temporary.unlink(missing_ok=True)
    return out


def _writable(path: Path) -> None:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise ConfigError("a config can only name paths that are UTF-8", where=repr(str(path))) from None


def _no_responses(pool: Survey, file: Path) -> None:
    """A table of who solved what is no pool: nothing in it can be selected."""
    from karat.scorers.responses.reading import GRADES, ITEMS, SUBJECTS

    original = pool.rows.original
    named = [
        next((name for name in names if name in original.columns), None)
        for names in (SUBJECTS, ITEMS, GRADES)
    ]
    subject, item, grade = named
    if subject is None or item is None or grade is None or not pool.guessed:
        return
    # Many answered, and many were answered: what is unique to a row is an id or a text.
    rows = original.height + sum(pool.rows.skipped.values())
    repeated = all(original[name].n_unique() < rows for name in (subject, item))
    if repeated and pool.spec.columns.text in (subject, item):
        raise ConfigError(
            f"looks like responses, who solved what ({subject}, {item}, {grade}), not like a pool of rows",
            where=str(file),
            hint="run `karat init` on the file of the items, and name this one under `scorers:`, "
            f"`- {{kind: irt, responses: {file}}}`; docs/difficulty.md has an example",
        )


def quoted(value: str) -> str:
    """A string as a YAML scalar on one line, in quotes where it needs them."""
    if _PLAIN.fullmatch(value) and yaml.safe_load(value) == value:
        return value
    written: str = yaml.safe_dump(value, default_style='"', width=2**31, allow_unicode=True)
    return written.strip()


def line(text: str, comment: str = "") -> str:
    """A line with its comment in a column of its own."""
    return f"{text.ljust(_WIDTH)} # {comment}" if comment else text


def starter(pool: Survey, reference: Survey | None) -> str:
    """The config as text."""
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(str(pool.spec.path)).name)
    name = re.sub(r"\W+$", "", stem.split(".")[0].lstrip("._-"))[:60] or "my-run"
    parts = [
        "# Look first: karat plan FILE. Then: karat run FILE. Any key can be set there too: select.budget=5%",
        line(f"name: {quoted(name)}", f"the run's folder is runs/{name}; `out:` names another"),
        line("seed: 0", "of the evaluation split and of the controls"),
        "",
        line("data:", f"the pool to choose from: {len(pool.rows):,} rows"),
        *source(pool),
        "",
        *_reference(reference),
        "",
        *_scorers(reference is not None),
        "",
        *_select(len(pool.rows), reference is not None),
        "",
        *TRAIN,
    ]
    return "\n".join(parts) + "\n"


def source(found: Survey) -> list[str]:
    """The keys of one data source."""
    spec, rows = found.spec, found.rows
    lines = [line(f"  path: {quoted(str(spec.path))}", "file, folder or glob; a list of them")]
    if found.format:
        lines.append(line(f"  format: {found.format}", "jsonl, json, parquet, csv, tsv, arrow, saved"))
    if spec.split:
        lines.append(line(f"  split: {quoted(spec.split)}", "of " + ", ".join(map(quoted, found.splits))))
    others = f"; here also {' or '.join(found.layouts)} would fit" if found.layouts else ""
    kinds = "text, alpaca, prompt_completion, preference, messages, sharegpt"
    lines.append(line(f"  layout: {spec.layout}", (kinds if not others else "detected") + others))
    lines.extend(_columns(found))
    skipped = ", ".join(f"{count:,} {reason}" for reason, count in rows.skipped.items())
    bad = (
        f"these rows are left out: {skipped}"
        if spec.on_bad_row == "skip"
        else "or skip: left out and counted"
    )
    lines.append(line(f"  on_bad_row: {spec.on_bad_row}", bad))
    twins = (
        f"left out, the first is kept: {skipped}"
        if spec.on_duplicate == "skip"
        else "or skip: the first is kept"
    )
    lines.append(line(f"  on_duplicate: {spec.on_duplicate}", twins))
    return lines


def _columns(found: Survey) -> list[str]:
    columns = found.spec.columns
    comments = {
        "id": "unique key; false: a hash of the content",
        "group": "for quotas and composition",
        "text": "what is scored",
        "prompt": "what is asked",
        "input": "second part of what is asked",
        "response": "what is answered",
        "rejected": "the other answer",
        "messages": "the list of turns",
    }
    said = {"id": found.ids[1:], "group": found.groups[1:]}
    lines = []
    for key, comment in comments.items():
        value = getattr(columns, key)
        if value is None:
            continue
        if found.guessed and key not in said:
            comment += " (a guess: check it)"
        if said.get(key):
            comment += "; or " + ", ".join(map(quoted, said[key][:8]))
        if value is False:
            comment = "ids are hashes of the content: the column id does not tell the rows apart"
        lines.append(line(f"    {key}: {'false' if value is False else quoted(value)}", comment))
    return ["  columns:", *lines] if lines else []


def _reference(found: Survey | None) -> list[str]:
    if found is None:
        return [
            "# Rows like those that the model is for: `karat init DATA --reference FILE` writes this part,",
            "# or take the # away here, before zip_fit and before top_k below.",
            "# reference:",
            "#   path: target.jsonl",
            line("# evaluate: 50%", "share of the reference that is kept from the scorers, to measure on"),
        ]
    return [
        line("reference:", f"rows like those that the model is for: {len(found.rows):,} rows"),
        *source(found),
        line("# evaluate: 50%", "share of the reference that is kept from the scorers, to measure on"),
    ]


def _scorers(with_reference: bool) -> list[str]:
    off = "" if with_reference else "# "
    return [
        line("scorers:", "`karat list` shows all of them"),
        line(f"  {off}- kind: zip_fit", "likeness to the reference by joint compression"),
        line(f"  {off}  compressor: gzip", "or lz4: quicker, coarser"),
        line(f"  {off}  level: 1", "gzip: 1-9; lz4: 0-12"),
        line("  - kind: length", "bytes, characters and tokens: budgets in tokens need it"),
        line("    tokenizer: words", "words, bytes, or a Hugging Face tokenizer"),
        line("  # - {kind: length_control, of: zip_fit.alignment}", "a score without its length"),
        "  # What a causal language model says of each row (a folder or a Hub id); those of one model share",
        "  # one pass over it, and every row gets a status: ok, truncated, or failed with the reason.",
        line("  # - {kind: perplexity, model: MODEL}", "surprise at the text, nats per token"),
        line("  # - {kind: loss, model: MODEL}", "loss of the response given the prompt"),
        "  # How hard each row is, from who solved what: subject, item (the row's id), correct.",
        line("  # - {kind: irt, responses: FILE}", "or glicko2, dart: docs/difficulty.md"),
    ]


def _select(rows: int, with_reference: bool) -> list[str]:
    budget = line(f"  budget: {'10%' if rows >= 10 else '1 row'}", "1000 rows, 10%, 2M tokens or 10% tokens")
    if with_reference:
        return [
            line("select:", "top_k, threshold, gumbel_top_k (keeps variety), random"),
            line("  kind: top_k", "the best rows by one score"),
            line("  by: zip_fit.alignment", "higher is more like the reference; or length.tokens"),
            budget,
        ]
    return [
        line("select:", "top_k, threshold, gumbel_top_k and random: `karat list`"),
        line("  kind: random", "a uniform sample: what every selection has to beat"),
        budget,
        line("  # kind: top_k", "with a reference: instead of `kind: random`"),
        "  # by: zip_fit.alignment",
    ]


TRAIN = [
    "# Train with the selection and with random controls, and compare on held-out rows (needs `evaluate`):",
    "# train:",
    line("#   model: tiny", "a small byte-level model from scratch, or a folder or Hub id"),
    "#   steps: 150",
    line("#   seeds: [0, 1, 2]", "one model for each seed and arm"),
    line("#   reweighter: {kind: lin_upper}", "weights from the losses while training"),
    line("#   controls: [tokens]", "random rows with as many tokens"),
]

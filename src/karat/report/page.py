"""The page: everything computed, put into the template, written at once."""

from __future__ import annotations

import base64
import hashlib
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import polars as pl
import yaml
from markupsafe import Markup

from karat.length_correlation import remedy
from karat.report import headline, words
from karat.report.advice import next_steps
from karat.report.difficulty import difficulty_facts
from karat.report.examples import examples
from karat.report.facts import tiles, training_facts, what_the_frame_says
from karat.report.figures import DARK, LIGHT, as_json
from karat.report.run import DERIVED_LENGTH, Run, load
from karat.store import replacing


def write_report(run_dir: Path, rows: pl.DataFrame) -> Path:
    """Write `run_dir/report.html` from selection.parquet and run.json there, and the rows' texts.

    rows: columns id, text, group (String), one line per row of the selection. The page loads nothing from
    the network, and the same inputs give the same bytes. Raises DataError where the run's files are missing
    or not what they should be.
    """
    run_dir = Path(run_dir)
    run = load(run_dir, rows)
    # never the absolute path: the page is passed on, and the same run elsewhere is the same page
    out = (run.record.get("config") or {}).get("out") or run_dir.name
    page = render(run, "/".join(Path(str(out)).parts[-2:]))
    path = run_dir / "report.html"
    with replacing(path) as temporary:
        temporary.write_bytes(page.encode("utf-8", "replace"))
    return path


def _settings(record: dict[str, Any]) -> str:
    """The config as YAML, without the folders of one machine."""
    config = {
        key: value for key, value in (record.get("config") or {}).items() if key not in ("out", "store")
    }
    return yaml.safe_dump(config, sort_keys=False, allow_unicode=True)


def render(run: Run, run_dir: str) -> str:
    """The page as a string."""
    facts = what_the_frame_says(run)
    training = training_facts(run)
    record = run.record
    script = _file("charts.html").strip().removeprefix("<script>").removesuffix("</script>")
    library = _plotly()
    values: dict[str, Any] = {
        "run": run, "record": record, "counts": run.counts, "w": words, **facts, **training,
        **difficulty_facts(run),
        "sentence": headline.what_was_done(run), "tiles": tiles(run, facts),
        "sections": examples(run, facts["cut"]), "derived": run.lengths == (DERIVED_LENGTH,),
        "remedy": remedy, "next_steps": next_steps(run, run_dir, training["outcomes"], facts),
        "config_yaml": _settings(record),
        "css": Markup(_file("report.css")), "script": Markup(script), "plotly": Markup(library),  # noqa: S704 - ours
        "hashes": " ".join(_csp_hash(text) for text in (library, script)),
        "palette": as_json({LIGHT[name]: DARK[name] for name in LIGHT}),
    }  # fmt: skip
    environment = jinja2.Environment(
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.ChainableUndefined,
        loader=jinja2.FunctionLoader(_file),
    )
    return environment.get_template("report.html").render(values).lstrip()


def _file(name: str) -> str:
    return resources.files("karat.report").joinpath(name).read_text("utf-8")


def _plotly() -> str:
    """plotly.js as a script element can hold it, with newlines as browsers see them."""
    from plotly.offline import get_plotlyjs

    text = str(get_plotlyjs()).replace("\r\n", "\n").replace("\r", "\n")
    return text.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _csp_hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

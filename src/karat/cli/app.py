"""The verbs. Each imports what it needs when it runs, so that `karat --help` is quick."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

import karat
from karat.cli.stopped import Verbs

app = typer.Typer(
    cls=Verbs,
    help="Score, select and weight training data, and get the weights to the gradient.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ConfigFile = Annotated[Path, typer.Argument(metavar="FILE", help="A config file (see `karat init`).")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...", help="Settings to override, e.g. select.budget=5%.", show_default=False
    ),
]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"karat {karat.__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Version.")
    ] = False,
) -> None:
    """Score, select and weight training data, and get the weights to the gradient."""


@app.command()
def run(
    file: ConfigFile,
    overrides: Overrides = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Do the run again, though it is complete.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show Prefect's log.")] = False,
) -> None:
    """Run a config: rows, scores, selection, dataset, training, report."""
    from karat.cli.run import run_command

    run_command(file, overrides or [], fresh=fresh, verbose=verbose)


@app.command()
def plan(file: ConfigFile, overrides: Overrides = None) -> None:
    """Show what a run would do, what the store holds already, and about how long it takes."""
    from karat.cli.plan import plan_command

    plan_command(file, overrides or [])


@app.command()
def init(
    data: Annotated[
        Path, typer.Argument(metavar="DATA", help="Your rows: JSONL, Parquet, CSV, Arrow, a saved folder.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Where to write the config.")] = Path("karat.yaml"),
    reference: Annotated[Path | None, typer.Option(help="Rows like those that the model is for.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
) -> None:
    """Write a commented starter config for your own file."""
    from karat.cli.init import init as write_starter

    path = write_starter(data, out, force=force, reference=reference)
    typer.echo(f"wrote {path}\nnext: karat plan {shlex.quote(str(path))}")


@app.command("list")
def list_parts(
    name: Annotated[str | None, typer.Argument(help="One scorer, selector or reweighter.")] = None,
) -> None:
    """List scorers, selectors and reweighters; with a name, its settings, formula and paper."""
    from karat.cli.listing import list_all, list_one

    if name is None:
        list_all()
    else:
        list_one(name)


@app.command()
def explain(
    run_dir: Annotated[
        Path,
        typer.Argument(metavar="RUN", help="A finished run's folder, its config file, or a ledger.parquet."),
    ],
    row: Annotated[str, typer.Argument(metavar="ID", help="The id of a row of the pool.")],
) -> None:
    """Show why one row was kept or dropped, what scorers said of it, and how its training went."""
    from karat.cli.explain import explain_command

    explain_command(run_dir, row)


@app.command()
def verify(
    target: Annotated[
        str,
        typer.Argument(
            metavar="FILE.py:FUNCTION|CONFIG",
            help="A function of yours that returns the Trainer (also module:function), or a config file.",
        ),
    ],
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps to compare.")] = 2,
    seed: Annotated[int, typer.Option(help="Of the probe weights, where weights do not differ.")] = 0,
    last: Annotated[bool, typer.Option("--last", help="Compare the last layers alone.")] = False,
    tolerance: Annotated[
        float | None, typer.Option(help="Relative error allowed; default by precision.")
    ] = None,
) -> None:
    """Check that weights reach the gradient, on your model and data: exit code 1 if they do not."""
    from karat.cli.verify import verify_command

    verify_command(target, steps=steps, seed=seed, last=last, tolerance=tolerance)


@app.command()
def push(
    run_dir: Annotated[
        Path, typer.Argument(metavar="RUN", help="A finished run's folder, or its config file.")
    ],
    repo: Annotated[str, typer.Argument(metavar="REPO", help="user/name on the Hugging Face Hub.")],
    public: Annotated[
        bool, typer.Option("--public", help="Make a new repository public; default private.")
    ] = False,
    branch: Annotated[str | None, typer.Option(help="Branch of the repository; default main.")] = None,
    message: Annotated[str | None, typer.Option(help="Commit message.")] = None,
) -> None:
    """Push a run's dataset with a card to the Hugging Face Hub."""
    from karat.cli.hub import push_command

    push_command(run_dir, repo, private=not public, branch=branch, message=message)


@app.command()
def schedule(
    file: ConfigFile,
    overrides: Overrides = None,
    cron: Annotated[str, typer.Option(help='When, e.g. "0 2 * * *" for two each night.')] = ...,  # type: ignore[assignment]
    timezone: Annotated[str | None, typer.Option(help="e.g. Europe/Berlin; default this machine's.")] = None,
) -> None:
    """Serve a config as a Prefect deployment that runs by the clock."""
    from karat.cli.hub import schedule_command

    schedule_command(file, overrides or [], cron=cron, timezone=timezone)

"""A verification as a table for a person."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from karat.trainers.verification.verify import Verification

MODULES = 6
"""Parts of the model that are shown where the gradient is off."""
MARKS = {True: ("ok", "green"), False: ("fails", "bold red"), None: ("", "dim")}


def show_verification(found: Verification, console: Console | None = None) -> None:
    """Print the checks, what it took, and the verdict."""
    out = console if console is not None else Console(highlight=False)
    table = Table(box=None)
    for title in ("check", "", "found", ""):
        table.add_column(title)
    for check in found.checks:
        mark, style = MARKS[check.passed]
        table.add_row(
            Text(check.name, style="cyan"), Text(mark, style=style), Text(check.value), Text(check.detail)
        )
    out.print(table)
    if not found.passed:
        for name, error in found.modules[:MODULES]:
            out.print(Text(f"  {name}: {error:.1e} off"), soft_wrap=True)
    for note in found.notes:
        out.print(Text(note, style="dim"), soft_wrap=True)
    out.print(
        Text(
            f"{found.windows} steps, {found.samples} rows, {found.parameters:,} parameters, trained in "
            f"{found.precision}; {found.seconds:.1f} s, {found.copied_bytes / 2**20:,.0f} MiB for a copy of "
            "the model",
            style="dim",
        ),
        soft_wrap=True,
    )
    if found.passed:
        out.print(Text("weights reach the gradient", style="bold green"))
        return
    out.print(Text("weights do not reach the gradient as they should: ", style="bold red"), end="")
    out.print(Text(str(found.reason)), soft_wrap=True)
    if found.hint:
        out.print(Text(f"  {found.hint}", style="dim"), soft_wrap=True)

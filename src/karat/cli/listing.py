"""`karat list`."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from karat.describe import catalogue, contract_of, find_all, settings_of
from karat.parts import Part

out = Console(highlight=False)


def list_all() -> None:
    """A line for each part."""
    for title, parts in catalogue().items():
        table = Table(title=title, title_justify="left", title_style="bold", box=None, show_header=False)
        table.add_column(style="cyan", no_wrap=True)
        table.add_column()
        for part in parts:
            table.add_row(part.kind, Text(part.summary))
        out.print(table)
        out.print()
    out.print("`karat list NAME` shows the settings, the formula and the paper of one.")


def list_one(name: str) -> None:
    """Everything about one part, or about each of those that share the name."""
    for number, part in enumerate(find_all(name)):
        if number:
            out.print()
        _describe(part)


def _describe(part: type[Part]) -> None:
    out.print(
        Text(f"{part.kind}", style="bold cyan") + Text(f" ({contract_of(part)}, {part.__name__} in Python)")
    )
    out.print(Text(part.summary))
    for title, text in (("formula", part.formula), ("paper", part.paper)):
        if text:
            out.print(Text(f"\n{title}", style="bold"))
            out.print(Text(text))
    table = Table(box=None, title="\nsettings", title_justify="left", title_style="bold", show_header=False)
    for column in ("cyan", "", "dim", ""):
        table.add_column(style=column or None)
    for setting in settings_of(part):
        table.add_row(
            setting.name, Text(setting.type), Text(f"= {setting.default}"), Text(setting.description)
        )
    out.print(table if table.row_count else Text("\nno settings", style="dim"))

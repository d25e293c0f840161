"""Progress bars for a terminal; plain lines where there is none."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn

from karat.progress import Lines, Reporter, pace, reporting


class Bars:
    """One bar for each running stage, one line for each finished one."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, tuple[TaskID, int, str, float]] = {}

    def start(self, stage: str, total: int, unit: str) -> None:
        """Open a bar; a total of 0 means unknown."""
        task = self._progress.add_task(stage, total=total or None, pace="")
        self._tasks[stage] = (task, total, unit, time.monotonic())

    def advance(self, stage: str, done: int, also: str = "") -> None:
        """Move it."""
        if stage in self._tasks:
            task, total, unit, began = self._tasks[stage]
            shown = f"{done:,}/{total:,} {unit}, {pace(done, total, time.monotonic() - began, unit)}"
            self._progress.update(task, completed=done, pace=f"{shown}, {also}" if also else shown)

    def finish(self, stage: str, note: str) -> None:
        """Close it with a line."""
        seconds = ""
        if stage in self._tasks:
            task, _, _, began = self._tasks.pop(stage)
            self._progress.remove_task(task)
            seconds = f" [dim]{time.monotonic() - began:.1f} s[/]"
        self._progress.console.print(f"[green]✓[/] {stage}: {note}{seconds}", highlight=False)


@contextmanager
def live(console: Console) -> Iterator[Reporter]:
    """Report on `console` inside the block, as fits it."""
    if not console.is_terminal:
        with reporting(Lines()) as lines:
            yield lines
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[pace]}"),
    )
    with Progress(*columns, console=console, transient=True) as progress, reporting(Bars(progress)) as bars:
        yield bars

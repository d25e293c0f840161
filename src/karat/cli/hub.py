"""`karat push` and `karat schedule`."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.text import Text

from karat.config import load_config
from karat.errors import DataError

out = Console(highlight=False)


def run_folder(path: Path) -> Path:
    """A run's folder, given itself or the config file that made it; raises DataError where there is none."""
    folder = load_config(path).config.out if path.suffix in (".yaml", ".yml") else path
    if not folder.is_dir():
        raise DataError("no such run", where=str(folder), hint="`karat run FILE` makes one")
    return folder


def push_command(run_dir: Path, repo: str, *, private: bool, branch: str | None, message: str | None) -> None:
    """Push, and say where it went."""
    from karat.flows.publish import push

    folder = run_folder(run_dir)
    url = push(
        folder, repo, private=private, branch=branch, message=message, tell=lambda line: out.print(Text(line))
    )
    out.print(Text(f"pushed {folder / 'dataset'} to {url}" + (" (private)" if private else "")))
    out.print(Text(f'next: datasets.load_dataset("{repo}")'))


def schedule_command(file: Path, overrides: list[str], *, cron: str, timezone: str | None) -> None:
    """Serve until interrupted."""
    from karat.flows.schedule import schedule

    schedule(
        file,
        cron,
        timezone=timezone,
        overrides=overrides,
        check=lambda path, given: load_config(path, list(given)),
        tell=lambda line: out.print(Text(line), soft_wrap=True),
    )

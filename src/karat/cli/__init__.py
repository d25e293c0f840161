"""The command line: every verb in one place, every error as a message."""

from __future__ import annotations

import signal
import sys
import tempfile
import traceback
from pathlib import Path

from rich.console import Console
from rich.text import Text

from karat.cli.stopped import Stopped
from karat.errors import ConfigError, DataError, KaratError

err = Console(stderr=True, highlight=False)


def main() -> None:
    """Run the command line; exit codes: 0 done, 1 failed, 2 bad input, 130 Ctrl-C, 143 SIGTERM."""
    from karat.cli.app import app

    signal.signal(signal.SIGTERM, _terminated)
    try:
        app(prog_name="karat")
    except KaratError as error:
        show(error)
        sys.exit(2 if isinstance(error, ConfigError | DataError) else 1)
    except Stopped as stop:
        err.print("\n[yellow]stopped[/]; the same command goes on from here")
        sys.exit(stop.exit_code)
    except BrokenPipeError:
        sys.exit(141)
    except Exception as error:  # noqa: BLE001 - the last resort: a person gets a sentence, the trace goes to a file
        unexpected(error)
        sys.exit(1)


def _terminated(*_: object) -> None:
    # As an exception, so that servers, workers and temporary files are cleared away on the way out.
    raise Stopped(128 + signal.SIGTERM)


def show(error: KaratError) -> None:
    """Print what was wrong, where, and what to do; the text may hold brackets from data, so no markup."""
    where = Text(error.where + ": " if error.where else "")
    # Soft: a pipe or a narrow terminal must not break paths apart.
    err.print(Text("error: ", style="bold red") + where + Text(error.problem), soft_wrap=True)
    if error.hint:
        err.print(Text("  " + error.hint, style="dim"), soft_wrap=True)


def unexpected(error: Exception) -> None:
    """A defect of karat's: name it and keep the traceback where it can be sent along with a report."""
    with tempfile.NamedTemporaryFile(
        "w", prefix="karat-", suffix=".log", delete=False, encoding="utf-8"
    ) as log:
        log.write("".join(traceback.format_exception(error)))
    err.print(Text("error: ", style="bold red") + Text(f"{type(error).__name__}: {error}"))
    err.print(Text(f"  this looks like a defect of karat; the details are in {Path(log.name)}", style="dim"))

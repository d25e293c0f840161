"""Where Prefect's log lines go, and how loud they are, for the length of a block."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefect.logging.handlers import PrefectConsoleHandler
    from rich.console import Console


@contextmanager
def share_console(console: Console) -> Iterator[None]:
    """Send Prefect's log lines through the console of a progress bar, above the bar instead of across it."""

    class Plain:
        """Prints a line as it is: square brackets in it are text, not markup."""

        def print(self, message: object, soft_wrap: bool = True) -> None:
            console.print(message, soft_wrap=soft_wrap, markup=False, highlight=False)

    handlers = {handler: handler.console for handler in _console_handlers()}
    plain: Any = Plain()
    for handler in handlers:
        handler.console = plain
    try:
        yield
    finally:
        for handler, before in handlers.items():
            handler.console = before


@contextmanager
def environment(changes: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables, and put back what was there."""
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def log_level(level: str, *, verbose: bool) -> Iterator[None]:
    """The level of Prefect's loggers; the settings alone come too late, logging is set up at import.

    Unless verbose, what a run raised is not printed by Prefect as well: it reaches the caller.
    """
    loggers = [logging.getLogger(name) for name in ("prefect", "prefect.client", "prefect.extra")]
    before = [logger.level for logger in loggers]
    handlers = [] if verbose else list(_console_handlers())
    for logger in loggers:
        logger.setLevel(level)
    for handler in handlers:
        handler.addFilter(_worth_showing)
    try:
        yield
    finally:
        for logger, old in zip(loggers, before, strict=True):
            logger.setLevel(old)
        for handler in handlers:
            handler.removeFilter(_worth_showing)


def _worth_showing(record: logging.LogRecord) -> bool:
    """A logging filter: False for what the caller hears anyway, and for the patience of Prefect's queues."""
    if record.name in ("EventsWorker", "APILogWorker"):
        return record.levelno > logging.WARNING
    if record.name not in ("prefect.flow_runs", "prefect.task_runs"):
        return True
    said = str(record.msg)
    return not record.exc_info and not said.startswith("Finished in state") and "Crash detected" not in said


def _console_handlers() -> set[PrefectConsoleHandler]:
    from prefect.logging.handlers import PrefectConsoleHandler

    names = list(logging.Logger.manager.loggerDict)
    loggers = [logging.getLogger(), *(logging.getLogger(name) for name in names)]
    return {h for logger in loggers for h in logger.handlers if isinstance(h, PrefectConsoleHandler)}

"""The user, or the system, ends a command before its end."""

from __future__ import annotations

import signal
from typing import Any

from typer.core import TyperGroup


class Stopped(BaseException):
    """Passes every `except Exception` on its way out; `exit_code` is 128 and the signal's number."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(exit_code)
        self.exit_code = exit_code


class Verbs(TyperGroup):
    """typer answers Ctrl-C with "Aborted!"; we have more to say."""

    def invoke(self, ctx: Any) -> Any:
        """Run the verb; raises Stopped on Ctrl-C."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise Stopped(128 + signal.SIGINT) from None

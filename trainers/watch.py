"""Progress and evaluation inside a run of `transformers.Trainer`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback

from karat.errors import ConfigError


class Watch(TrainerCallback):
    """Report every step; evaluate and log every `every` steps and at the last one.

    `bits` maps a step to its evaluation. Raises ConfigError as soon as that is not finite.
    """

    def __init__(
        self, every: int, evaluate: Callable[[], float], on_step: Callable[[int, int], None] | None = None
    ) -> None:
        self.every = every
        self.evaluate = evaluate
        self.on_step = on_step
        self.bits: dict[int, float] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After an optimizer step."""
        step, total = state.global_step, state.max_steps
        if step % self.every == 0 or step == total:
            self.bits[step] = value = self.evaluate()
            if not math.isfinite(value):
                raise ConfigError(
                    f"training diverged: {value} bits per byte after step {step}",
                    where="train.learning_rate",
                    hint=f"lower it; it is {args.learning_rate:g}",
                )
            control.should_log = True
        if self.on_step is not None:
            self.on_step(step, total)

"""One model in memory at a time: a second would seldom fit beside it."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from karat.scorers.model.loading import Asked, Replicas
    from karat.scorers.model.source import ModelSource


class Held:
    """A claim on a model, which is in memory while it is borrowed and until another one is needed.

    kind: what `karat.scorers.model.loading.load` is asked for. A claim costs nothing, so many of them may be
    kept: scorers of several models in one config take turns, and each is loaded again if the other was
    used in between. Scorers of one model share it.
    """

    def __init__(self, scorer: ModelSource, kind: str = "causal") -> None:
        self.scorer = scorer
        self.kind = kind

    @contextmanager
    def borrowed(self) -> Iterator[Asked]:
        """A replica of the model that nobody else uses meanwhile; raises ScoreError if it cannot load."""

        def loaded() -> Replicas:
            from karat.scorers.model.loading import load

            return load(self.scorer, self.kind)

        with (
            _slot.using((self.kind, *self.scorer.source()), loaded) as replicas,
            replicas.borrowed() as asked,
        ):
            yield asked


class Slot:
    """The place for one model. A thread that needs another waits until nobody uses the one that is here."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._mine = threading.local()
        self._source: object = None
        self._replicas: Any = None
        self._users = 0

    @contextmanager
    def using(self, source: object, load: Callable[[], Any]) -> Iterator[Any]:
        """The replicas of a source, loaded if they are not here."""
        mine = getattr(self._mine, "count", 0)
        with self._changed:
            # What this thread itself has borrowed is not waited for: that would never end.
            while self._source != source and self._users > mine:
                self._changed.wait()
            if self._source != source:
                self._drop()
                self._replicas = load()
                self._source = source
            self._users += 1
            replicas = self._replicas
        self._mine.count = mine + 1
        try:
            yield replicas
        finally:
            self._mine.count = mine
            with self._changed:
                self._users -= 1
                self._changed.notify_all()

    def release(self) -> None:
        """Let go of the model; one that is in use is freed when its users are done."""
        with self._changed:
            self._drop()

    def _drop(self) -> None:
        held, self._replicas, self._source = self._replicas, None, None
        if held is None:
            return
        del held
        gc.collect()
        import torch

        if torch.cuda.is_available():
            torch.cuda.empty_cache()


_slot = Slot()


def release() -> None:
    """Free the model that scorers used last; it stays in memory for the next call otherwise."""
    _slot.release()

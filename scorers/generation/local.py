"""Responses from a model in memory, by transformers' `generate` in batches of prompts of like length."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

from karat.errors import ScoreError
from karat.interrupts import on_interrupt
from karat.progress import spend
from karat.scorers.generation.samples import Ask, OnSample, Sample, failure
from karat.scorers.generation.settings import Generation
from karat.scorers.model.holding import Held
from karat.scorers.model.source import ModelSource

if TYPE_CHECKING:
    from karat.scorers.generation.batch import Row
    from karat.scorers.model.loading import Asked

BATCH_SIZE = {"cpu": 16}
MOST_ROWS = 256
BATCH_TOKENS = {"cpu": 32_768}
MOST_TOKENS = 262_144
"""Responses written together, and tokens of them with their prompts, on a CPU and elsewhere; halved where
memory runs out."""


class LocalSampler:
    """Samples from a model that is loaded here; memory holds one model at a time, see `Held`.

    The tokens of a response are drawn with random numbers of its own (seed, query, number), so that it is the
    same in any batch, in any order of the asks and after a kill, as long as the logits are: rounding
    differs a little between batches of different shape, and where two tokens are within that of each
    other (about 1e-6 of a logit in float32, 1e-2 in bfloat16), another one may be drawn. Batches are a
    function of the asks given and of the settings, so the same call gives the same responses; and so does
    what is left of it with `among`: a batch with one missing response is written again as a whole.

    A prompt that fills the model's positions is `failed: ...`; one that leaves less than `max_new_tokens`
    gets a shorter response. Raises ScoreError where the model cannot be loaded.
    """

    def __init__(self, source: ModelSource, generation: Generation) -> None:
        self.source = source
        self.generation = generation
        self._held = Held(source)
        self._rows_at_most = MOST_ROWS
        self._lock = threading.Lock()
        self._given_up = threading.Event()
        on_interrupt(self)

    def interrupt(self) -> None:
        """End what is being written after the next token, and what comes, until a new run begins."""
        self._given_up.set()

    def resume(self) -> None:
        """Write again."""
        self._given_up.clear()

    def sample(
        self, asks: Sequence[Ask], on_sample: OnSample | None = None, among: Sequence[Ask] = ()
    ) -> list[Sample]:
        """One response for each ask, in order; equal asks are answered once. among: see `Sampler`."""
        wanted = {(ask.query, ask.number) for ask in asks}
        found: dict[tuple[str, int], Sample] = {}

        def deliver(ask: Ask, sample: Sample) -> None:
            if (ask.query, ask.number) not in wanted:
                return
            with self._lock:
                found[ask.query, ask.number] = sample
                if on_sample is not None:
                    on_sample(ask, sample)

        if asks:
            with self._held.borrowed() as asked:
                rows = [
                    row if (row.ask.query, row.ask.number) in wanted else replace(row, known=True)
                    for row in self._rows([*among, *asks], asked, deliver)
                ]
                batches = list(self._plan(rows, asked.device.type))
            self._run(batches, deliver)
        # Here, as what other threads spend is not heard.
        spend("tokens", sum(sample.tokens or 0 for sample in found.values()))
        return [found[ask.query, ask.number] for ask in asks]

    def _rows(self, asks: Sequence[Ask], asked: Asked, deliver: OnSample) -> list[Row]:
        """The asks that fit into the model, each once; the others fail."""
        from karat.scorers.generation.batch import Row
        from karat.scorers.generation.prompts import prompt_tokens

        longest = getattr(asked.runner, "longest", None)
        tokens: dict[str, tuple[int, ...] | str] = {}
        rows = []
        for ask in {(ask.query, ask.number): ask for ask in asks}.values():
            if ask.prompt not in tokens:
                tokens[ask.prompt] = prompt_tokens(asked.tokenizer, self.generation, ask.prompt)
            ids = tokens[ask.prompt]
            if isinstance(ids, str):
                deliver(ask, failure(ids))
                continue
            room = self.generation.max_new_tokens if longest is None else longest - len(ids)
            if room < 1:
                deliver(ask, failure(f"the prompt has {len(ids)} tokens, and the model reads {longest}"))
            else:
                rows.append(Row(ask, ids, min(room, self.generation.max_new_tokens)))
        return rows

    def _plan(self, rows: Sequence[Row], device: str) -> Iterator[list[Row]]:
        """Batches, longest prompts first, so that too little memory shows at once."""
        most_rows = self.generation.batch_size or BATCH_SIZE.get(device, MOST_ROWS)
        most_tokens = self.source.batch_tokens or BATCH_TOKENS.get(device, MOST_TOKENS)
        batch: list[Row] = []
        longest = 0
        for row in sorted(rows, key=lambda row: (-len(row.ids), row.ask.query, row.ask.number)):
            longest = longest or len(row.ids) + self.generation.max_new_tokens
            if batch and (len(batch) >= most_rows or longest * (len(batch) + 1) > most_tokens):
                yield batch
                batch, longest = [], len(row.ids) + self.generation.max_new_tokens
            batch.append(row)
        if batch:
            yield batch

    def _run(self, batches: Sequence[list[Row]], deliver: OnSample) -> None:
        workers = min(self._replicas(), len(batches))
        if workers <= 1:
            for batch in batches:
                self._write(batch, deliver)
            return
        with ThreadPoolExecutor(workers) as pool:
            running = [pool.submit(self._write, batch, deliver) for batch in batches]
            try:
                for future in running:
                    future.result()
            finally:
                for future in running:
                    future.cancel()

    def _write(self, batch: list[Row], deliver: OnSample) -> None:
        from karat.scorers.generation.batch import OutOfMemoryError, write

        with self._held.borrowed() as asked:
            waiting = [batch]
            while waiting:
                rows = waiting.pop()
                if all(row.known for row in rows):
                    continue
                if len(rows) > self._rows_at_most:
                    waiting += [rows[self._rows_at_most :], rows[: self._rows_at_most]]
                    continue
                try:
                    samples = write(asked, self.generation, rows, self._go_on)
                except OutOfMemoryError:
                    if len(rows) == 1:
                        raise
                    self._rows_at_most = len(rows) // 2
                    waiting.append(rows)
                    continue
                for row, sample in zip(rows, samples, strict=True):
                    deliver(row.ask, sample)

    def _go_on(self) -> None:
        if self._given_up.is_set():
            raise ScoreError("was given up", where="generate")

    def _replicas(self) -> int:
        from karat.scorers.model.loading import devices

        if isinstance(self.source.model, str) or self.source.device != "auto":
            return len(set(devices(self.source.device)))
        return 1

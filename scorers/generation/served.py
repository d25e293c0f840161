"""Responses from a model that is served: many requests in flight, each response handed on as it arrives."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from karat.errors import ScoreError
from karat.progress import spend
from karat.scorers.generation.requests import body_of, path_of, samples_in
from karat.scorers.generation.samples import Ask, OnSample, Sample, failure
from karat.scorers.generation.settings import Generation
from karat.scorers.model.source import ModelSource
from karat.scorers.server.client import channel
from karat.scorers.server.replies import Ask as Request
from karat.scorers.server.replies import Refused, Reply

ENOUGH = 16
"""So many requests without one response show that the next will have none either."""


class ServedSampler:
    """Samples from an OpenAI-compatible server: `/completions`, or `/chat/completions` with `chat`.

    Each response has a seed of its own, a function of (seed, query, number); whether the same seed gives the
    same response is up to the server (most differ between batches in the last digit of a
    probability). With `per_request` above 1 responses of a query are asked for together; those that an
    answer lacks are asked for one by one.

    What concerns one request (HTTP 400, 413, 422; 5xx, 429 and time limits at every try) is `failed: why` for
    its responses. Raises ScoreError for all else (a wrong key, an unknown model, nobody at the address), and
    where the server gives no response to anything: what arrived until then has been handed to `on_sample`.
    """

    def __init__(self, source: ModelSource, generation: Generation) -> None:
        if source.server is None:
            raise ScoreError("names no server", where="server", hint="server: http://127.0.0.1:8000/v1")
        self.server = source.server
        self.model = str(source.model)
        self.generation = generation
        self._answered = False

    def sample(
        self, asks: Sequence[Ask], on_sample: OnSample | None = None, among: Sequence[Ask] = ()
    ) -> list[Sample]:
        """One response for each ask, in order; equal asks are answered once. `among` changes nothing here."""
        collected = _Collected(on_sample)
        groups = self._groups({(ask.query, ask.number): ask for ask in asks}.values())
        left = self._ask(groups, collected)
        self._ask([[ask] for ask in left], collected)
        return [collected.samples[ask.query, ask.number] for ask in asks]

    def _groups(self, asks: Iterable[Ask]) -> list[list[Ask]]:
        """Asks that share a request, in the order of the queries."""
        by_query: dict[str, list[Ask]] = {}
        for ask in asks:
            by_query.setdefault(ask.query, []).append(ask)
        size = self.generation.per_request
        return [
            same[start : start + size] for same in by_query.values() for start in range(0, len(same), size)
        ]

    def _ask(self, groups: Sequence[Sequence[Ask]], collected: _Collected) -> list[Ask]:
        """Send a request for each group; returns those that a partial answer left out."""
        left: list[Ask] = []
        refused, in_a_row = 0, 0

        def arrived(index: int, reply: Reply) -> None:
            nonlocal refused, in_a_row
            samples = self._samples(reply, len(groups[index]))
            for ask, sample in zip(groups[index], samples, strict=False):
                collected(ask, sample)
            left.extend(groups[index][len(samples) :])
            self._answered |= not isinstance(reply, Refused)
            refused += isinstance(reply, Refused)
            in_a_row = in_a_row + 1 if isinstance(reply, Refused) and reply.passing else 0
            if isinstance(reply, Refused) and (
                in_a_row >= ENOUGH or (refused >= ENOUGH and not self._answered)
            ):
                self._give_up(reply.why)

        channel(self.server).ask([self._request(group) for group in groups], arrived)
        return left

    def _request(self, group: Sequence[Ask]) -> Request:
        body = body_of(self.model, self.generation, self.server.dialect, group[0], len(group))
        return Request(path_of(self.generation), body, f"{group[0].query}#{group[0].number}", excused=True)

    def _samples(self, reply: Reply, wanted: int) -> list[Sample]:
        if isinstance(reply, Refused):
            return [failure(f"the server {reply.why}")] * wanted
        found = samples_in(self.generation, reply)
        return found or [failure("the answer holds no choice")] * wanted

    def _give_up(self, why: str) -> None:
        raise ScoreError(
            f"the last {ENOUGH} requests have no response: the server {why}",
            where=f"server {self.server.url}",
            hint="what arrived is kept: the same command goes on from there. `request` changes what is sent: "
            "{max_completion_tokens: 512, max_tokens: null}, say; dialect: openai sends plain fields only",
        )


@dataclass
class _Collected:
    """The responses so far, each handed on."""

    on_sample: OnSample | None
    samples: dict[tuple[str, int], Sample] = field(default_factory=dict)

    def __call__(self, ask: Ask, sample: Sample) -> None:
        self.samples[ask.query, ask.number] = sample
        spend("tokens", sample.tokens or 0)
        if self.on_sample is not None:
            self.on_sample(ask, sample)

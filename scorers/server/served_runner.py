"""A server in the place of a loaded model: the same requests, answered over HTTP, all in flight at once."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from threading import Lock
from typing import TYPE_CHECKING, Any

import torch

from karat.errors import ScoreError
from karat.scorers.model.runner import Request
from karat.scorers.model.tokens import ids_of, start_of
from karat.scorers.server.client import channel
from karat.scorers.server.completions import TOP, Answer, body, read
from karat.scorers.server.replies import Ask, Refused, Reply
from karat.scorers.server.served_model import longest
from karat.scorers.server.served_states import ServedStates
from karat.scorers.server.settings import Server

if TYPE_CHECKING:
    from karat.scorers.model.source import ModelScorer

Consume = Callable[[int, "ServedStates | str"], None]
"""Called once for each request with its states, or with why there are none."""


class ServedRunner:
    """Runs requests through a server. Equal sequences are asked once, whoever wants them."""

    def __init__(self, server: Server, model: str, tokenizer: Any, longest: int | None = None) -> None:
        self.server = server
        self.model = model
        self.tokenizer = tokenizer
        self.longest = longest
        """Tokens that the server can be asked about; None where it does not say."""
        self.tokens = 0
        """Tokens asked about so far."""
        self._trying = Lock()
        self._works: set[tuple[bool, int]] = set()

    def run(self, requests: Sequence[Request], consume: Consume) -> None:
        """Ask about every request and hand what is told to `consume`."""
        askers: dict[tuple[int, ...], list[int]] = {}
        for index, request in enumerate(requests):
            askers.setdefault(request.ids, []).append(index)
        wanted = [(ids, *self._wanted(ids, [requests[i] for i in same])) for ids, same in askers.items()]
        with self._trying:
            for prompt, top in sorted({(prompt, top) for _, prompt, top in wanted} - self._works):
                self._try_out(prompt, top)
        asks = [self._ask(*of_one) for of_one in wanted]
        for (ids, prompt, top), reply in zip(wanted, channel(self.server).ask(asks), strict=True):
            answer = self._answer(reply, ids, prompt, top)
            self.tokens += len(ids)
            for index in askers[ids]:
                consume(index, answer if isinstance(answer, str) else self._states(requests[index], answer))

    def _wanted(self, ids: tuple[int, ...], requests: Sequence[Request]) -> tuple[bool, int]:
        """Whether the sequence's own log-probabilities are wanted, and how many next tokens."""
        last = len(ids) - 1
        places = {place for request in requests for place in request.positions}
        return bool(places - {last}), TOP if last in places else 0

    def _ask(self, ids: tuple[int, ...], prompt: bool, top: int) -> Ask:
        about = f"that begins with {self.tokenizer.decode(ids[:24])!r}"
        return Ask("/completions", body(self.server, self.model, ids, prompt, top), about)

    def _answer(self, reply: Reply, ids: tuple[int, ...], prompt: bool, top: int) -> Answer | str:
        if isinstance(reply, Refused):
            return f"the server {reply.why}"
        return read(self.server, reply, ids, prompt, top)

    def _try_out(self, prompt: bool, top: int) -> None:
        """One small request of the kind; raises ScoreError where the server cannot do it for any row."""
        ids = (*start_of(self.tokenizer), *ids_of(self.tokenizer, "a b"))
        reply = channel(self.server).ask([self._ask(ids, prompt, top)])[0]
        found = self._answer(reply, ids, prompt, top)
        if isinstance(found, str):
            other = "openai" if self.server.dialect == "vllm" else "vllm"
            raise ScoreError(
                f"a first request shows that it cannot be used: {found}",
                where=f"server {self.server.url}",
                hint=f"the server must give log-probabilities for echoed token ids; or try dialect: {other}; "
                "is `tokenizer` that of the served model?",
            )
        self._works.add((prompt, top))

    def _states(self, request: Request, answer: Answer) -> ServedStates:
        positions = torch.tensor(request.positions, dtype=torch.long)
        following = torch.tensor((*request.ids[1:], -1), dtype=torch.long)[positions]
        by_id = self.server.dialect == "vllm"
        return ServedStates(positions, following, answer, self.tokenizer, by_id)


@dataclass(frozen=True)
class ServedModel:
    """What scorers ask through, in the shape of a loaded replica; chunks share it rather than take turns."""

    tokenizer: Any
    runner: ServedRunner

    @contextmanager
    def borrowed(self) -> Iterator[ServedModel]:
        """With a runner of its own, which counts its own tokens; the channel bounds what is in flight."""
        yield replace(self, runner=copy.copy(self.runner))


def connect(scorer: ModelScorer) -> ServedModel:
    """The served model of a scorer, with its tokenizer loaded here; raises ScoreError."""
    import transformers

    assert scorer.server is not None  # noqa: S101 - the caller's condition
    name = scorer.tokenizer or str(scorer.model)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            name, trust_remote_code=scorer.trust_remote_code
        )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise ScoreError(
            f"cannot load the tokenizer {name!r}: {' '.join(str(error).split())[:300]}",
            where="tokenizer",
            hint="name the served model's tokenizer: a folder, or a Hub id",
        ) from error
    reads = longest(scorer.server, str(scorer.model))
    return ServedModel(tokenizer, ServedRunner(scorer.server, str(scorer.model), tokenizer, reads))

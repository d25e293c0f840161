"""A forward pass through any transformer, with an attention mask: encoders, bare decoders, classifiers."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from karat.errors import ScoreError
from karat.scorers.model.described import position_limit
from karat.scorers.model.head import Head, accumulator
from karat.scorers.model.runner import Consume, Request, out_of_memory
from karat.scorers.model.states import States

Forward = Callable[[Tensor, Tensor], Tensor]
"""[b, t] token ids and mask -> [b, t, k] what is known at each place."""
AGREE = {torch.float64: 1e-9, torch.float32: 1e-4}
"""Largest difference that padding may make, relative to the largest number; 5e-2 for 16 bits."""


class MaskedRunner:
    """Runs requests in batches of bounded size, as `Runner` does for causal language models.

    Equal sequences run once. Batches hold sequences of like length, at most `batch_tokens` padded tokens and
    `batch_rows` sequences; where memory runs out they are halved, down to single sequences. Padding stands
    on the right, whatever side the tokenizer pads, and is masked: a sequence's states depend on its batch by
    rounding only. `States` come without a head.
    """

    def __init__(
        self,
        forward: Forward,
        model: Any,
        batch_tokens: int,
        *,
        batch_rows: int | None = None,
        longest: int | None = None,
    ) -> None:
        self._forward = forward
        self._batch_tokens = batch_tokens
        self._batch_rows = batch_rows
        self.longest = longest
        """Positions that the model knows; None where it says nothing."""
        self.tokens = 0
        """Tokens run so far, padding not counted."""
        some = next(model.parameters())
        self._device = some.device
        self._head = Head(torch.empty(0, 0, dtype=some.dtype, device=some.device))
        # RoBERTa counts its positions by it, BART would take another one for the end.
        pad = model.config.get_text_config().pad_token_id
        self._pad = pad if isinstance(pad, int) and pad >= 0 else 0

    def run(self, requests: Sequence[Request], consume: Consume) -> None:
        """Run every request and hand its states to `consume`."""
        askers: dict[tuple[int, ...], list[int]] = {}
        for index, request in enumerate(requests):
            askers.setdefault(request.ids, []).append(index)
        # Longest first: if memory is too small it shows at once.
        todo = sorted(askers, key=lambda ids: (-len(ids), ids))
        most = self._batch_tokens
        with torch.inference_mode():
            while todo:
                batch = self._fitting(todo, most)
                try:
                    states_btk = self._run(batch)
                except (torch.OutOfMemoryError, RuntimeError) as error:
                    if not out_of_memory(error):
                        raise
                    most = max(1, len(batch[0]) * len(batch) // 2)
                    if torch.cuda.is_available():
                        torch.cuda.empty_cache()
                    if len(batch) > 1:
                        continue
                    states_btk = None
                for row, ids in enumerate(batch):
                    for index in askers[ids]:
                        told = None if states_btk is None else self._states(states_btk[row], requests[index])
                        consume(index, told)
                todo = todo[len(batch) :]

    def _fitting(self, todo: list[tuple[int, ...]], most: int) -> list[tuple[int, ...]]:
        rows = max(1, most // max(1, len(todo[0])))
        return todo[: rows if self._batch_rows is None else min(rows, self._batch_rows)]

    def _run(self, batch: Sequence[tuple[int, ...]]) -> Tensor:
        lengths = [len(ids) for ids in batch]
        ids_bt = torch.full((len(batch), max(lengths)), self._pad, dtype=torch.long)
        mask_bt = torch.zeros_like(ids_bt)
        for row, ids in enumerate(batch):
            ids_bt[row, : len(ids)] = torch.tensor(ids)
            mask_bt[row, : len(ids)] = 1
        found = self._forward(ids_bt.to(self._device), mask_bt.to(self._device))
        self.tokens += sum(lengths)
        return found

    def _states(self, states_tk: Tensor, request: Request) -> States:
        places = torch.tensor(request.positions, dtype=torch.long, device=states_tk.device)
        following = torch.tensor((*request.ids[1:], -1), dtype=torch.long, device=states_tk.device)
        return States(places, states_tk[places], following[places], self._head)


def hidden_runner(
    model: Any, tokenizer: Any, batch_tokens: int, batch_rows: int | None = None
) -> MaskedRunner:
    """Last hidden states of the model without its head; of an encoder-decoder the encoder's."""
    forward = _last_states(model)

    longest = position_limit(model, tokenizer)
    return MaskedRunner(forward, model, batch_tokens, batch_rows=batch_rows, longest=longest)


def _last_states(model: Any) -> Forward:
    """Last hidden states by the model without its head."""
    bare = getattr(model, "base_model", model)
    bare = bare.get_encoder() if model.config.is_encoder_decoder and hasattr(bare, "get_encoder") else bare
    # Decoders would keep the keys and values of every token otherwise.
    cached = "use_cache" in inspect.signature(bare.forward).parameters
    more = {"use_cache": False} if cached else {}

    def forward(ids_bt: Tensor, mask_bt: Tensor) -> Tensor:
        hidden: Tensor = bare(input_ids=ids_bt, attention_mask=mask_bt, **more).last_hidden_state
        return hidden

    return forward


def class_runner(model: Any, tokenizer: Any, batch_tokens: int) -> MaskedRunner:
    """Outputs of a classification head for a sequence, at its last place.

    Decoders put a layer `score` on the state of the last token, which transformers finds by comparing
    tokens with the padding token: wrong where that token is also the end of a text, refused where there is
    none. Here the layer is applied at the place that is known to be the last, in float32. Other classes are
    run as they are; where padding turns out to matter to one, its sequences run alone.
    """
    layer = getattr(model, "score", None)
    longest = position_limit(model, tokenizer)
    if isinstance(layer, torch.nn.Module) and not model.config.is_encoder_decoder:
        dtype = next(layer.parameters()).dtype
        wide = accumulator(dtype)
        layer = copy.deepcopy(layer).to(wide)

        forward = _last_states(model)

        def at_each_place(ids_bt: Tensor, mask_bt: Tensor) -> Tensor:
            scores: Tensor = layer(forward(ids_bt, mask_bt).to(wide))
            return scores

        return MaskedRunner(at_each_place, model, batch_tokens, longest=longest)

    separator = segment_end(model, tokenizer)

    def of_the_whole(ids_bt: Tensor, mask_bt: Tensor) -> Tensor:
        more = {} if separator is None else {"token_type_ids": segments(ids_bt, separator)}
        logits: Tensor = model(input_ids=ids_bt, attention_mask=mask_bt, **more).logits
        return logits[:, None, :].expand(-1, ids_bt.shape[1], -1)

    runner = MaskedRunner(of_the_whole, model, batch_tokens, longest=longest)
    if padding_is_nothing(runner, tokenizer):
        return runner
    return MaskedRunner(of_the_whole, model, batch_tokens, batch_rows=1, longest=longest)


def segment_end(model: Any, tokenizer: Any) -> int | None:
    """The token that ends the first text of a pair, for a model that is told which text a token is of.

    Raises ScoreError where the tokenizer numbers the texts in another way.
    """
    if "token_type_ids" not in inspect.signature(model.forward).parameters:
        return None
    pair = tokenizer("a b", "c d e")
    wanted = pair.get("token_type_ids") or ()
    if not any(wanted):
        return None
    end = tokenizer.sep_token_id
    if end is None or segments(torch.tensor([pair["input_ids"]]), end).tolist() != [list(wanted)]:
        raise ScoreError(
            f"{type(model).__name__} is told which text a token belongs to in a way that karat does not know",
            where="model",
            hint="use a model whose tokenizer numbers the texts of a pair 0 and 1, as BERT's does",
        )
    return int(end)


def segments(ids_bt: Tensor, end: int) -> Tensor:
    """[b, t] 0 up to the first `end`, 1 after it."""
    ends_bt = (ids_bt == end).long()
    return ((ends_bt.cumsum(dim=1) - ends_bt) > 0).long()


def padding_is_nothing(runner: MaskedRunner, tokenizer: Any) -> bool:
    """Whether a short text gives the same beside a longer one as alone."""
    short, long = (_whole(tuple(tokenizer(text)["input_ids"])) for text in ("a b", "a b c d e f g h"))
    if not short.ids:
        return False
    alone: dict[int, Any] = {}
    beside: dict[int, Any] = {}
    runner.run([short], alone.__setitem__)
    runner.run([short, long], beside.__setitem__)
    if alone[0] is None or beside[0] is None:
        return False
    one, other = alone[0].hidden_nd, beside[0].hidden_nd
    close = AGREE.get(one.dtype, 5e-2) * float(one.abs().max().clamp(min=1e-3))
    return bool(float((one - other).abs().max()) <= close)


def _whole(ids: tuple[int, ...]) -> Request:
    return Request(ids, (len(ids) - 1,))

"""The gradient of a matrix that is both output layer and input embedding: one backward pass a sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from karat.errors import ScoreError
from karat.scorers.model.head import accumulator
from karat.scorers.model.runner import Consume, Request, Runner, out_of_memory
from karat.scorers.model.states import States
from karat.scorers.output_step import EmbeddingGradient, hidden_gradient


@dataclass(frozen=True, eq=False)
class TiedStates(States):
    """States, and what the mean loss over their positions asks of the input embedding."""

    embedding: EmbeddingGradient | None = field(default=None, repr=False)


class TiedRunner(Runner):
    """Runs requests one at a time and goes back through the decoder, to the embedded tokens only.

    No gradient of any weight is made: the loss's gradient at the last hidden states, which is known in
    closed form, is carried back to the output of the embedding, once for each request.
    """

    def __init__(self, model: Any, runner: Runner) -> None:
        super().__init__(runner.decoder, runner.head, 1, runner.longest)
        self.embedding = model.get_input_embeddings()

    def run(self, requests: Sequence[Request], consume: Consume) -> None:
        """Run every request and hand its states, with the embedding's gradient, to `consume`."""
        for index, request in enumerate(requests):
            try:
                states = self._both_roles(request)
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if not out_of_memory(error):
                    raise
                consume(index, None)
                continue
            with torch.no_grad():
                consume(index, states)

    def _both_roles(self, request: Request) -> TiedStates:
        device = self.head.weight_vd.device
        ids_t = torch.tensor(request.ids, dtype=torch.long, device=device)
        places_n = torch.tensor(request.positions, dtype=torch.long, device=device)
        looked_up: list[Tensor] = []

        def as_leaf(module: Any, given: Any, output: Tensor) -> Tensor:
            looked_up.append(output.detach().requires_grad_(True))
            return looked_up[-1]

        handle = self.embedding.register_forward_hook(as_leaf)
        try:
            with torch.inference_mode(False), torch.enable_grad():
                out = self.decoder(input_ids=ids_t[None], use_cache=False)
                hidden_nd = out.last_hidden_state[0, places_n]
                with torch.no_grad():
                    states = States(places_n, hidden_nd.detach(), ids_t[places_n + 1], self.head)
                    wanted_nd = hidden_gradient(states).to(hidden_nd.dtype)
                (found,) = torch.autograd.grad(hidden_nd, looked_up[0], wanted_nd)
        finally:
            handle.remove()
        self.tokens += len(request.ids)
        with torch.no_grad():
            embedding = self._by_token(ids_t, looked_up[0][0], found[0])
        shared = {each.name: getattr(states, each.name) for each in fields(States)}
        return TiedStates(**shared, embedding=embedding)

    def _by_token(self, ids_t: Tensor, looked_up_td: Tensor, found_td: Tensor) -> EmbeddingGradient:
        """Sums over the places of each token, times what the embedding multiplies its rows by."""
        weight_td = self.embedding.weight[ids_t]
        factor = float(torch.as_tensor(getattr(self.embedding, "embed_scale", 1.0)).to(weight_td.dtype))
        if not torch.allclose(weight_td * factor, looked_up_td.detach(), rtol=1e-2, atol=1e-6):
            raise ScoreError(
                f"the input embedding {type(self.embedding).__name__} does more than look up and scale",
                where="donod, tied: exact",
                hint="use tied: head, which counts the matrix's role as output layer",
            )
        if self.embedding.padding_idx is not None:  # its row has no gradient in this role
            found_td = found_td * (ids_t != self.embedding.padding_idx)[:, None]
        tokens_u, place_t = torch.unique(ids_t, return_inverse=True)
        wide = accumulator(found_td.dtype)
        rows_ud = torch.zeros(len(tokens_u), found_td.shape[1], dtype=wide, device=found_td.device)
        return EmbeddingGradient(tokens_u, rows_ud.index_add_(0, place_t, found_td.to(wide) * factor))

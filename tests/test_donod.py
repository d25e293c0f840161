"""DON and NOD against updates that are really made, in float64, one sample at a time."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from tiny_models import KINDS, TIED, tiny_pair
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import karat
from karat.scorers.donod import Donod
from karat.scorers.loss import Loss
from karat.scorers.model.head import Head, head_of
from karat.scorers.model.states import States
from karat.scorers.output_step import (
    Direction,
    Residuals,
    adamw_direction,
    frobenius,
    sgd_direction,
    step_norms,
)
from karat.scoring import view_of
from karat.trainers.byte_tokenizer import BOS, PAD

LONG = "every word of this answer counts, and there are more of them than the model is wide " * 2
ROWS = pl.DataFrame(
    {
        "id": list("abcdef"),
        "prompt": ["Add 1 and 1.", "Say hi.", None, "P" * 90, "Count", ""],
        "response": ["2", "🙂 hi there", "free of any prompt", "R", LONG, "ab"],
    }
)
TEXTS = pl.DataFrame({"id": ["t", "u"], "text": ["x", "plain text, all of it scored"]})
every_kind = pytest.mark.parametrize("kind", list(KINDS))
STEPS: list[dict[str, Any]] = [
    {"lr": 1e-2},
    {"lr": 1e-2, "optimizer": "adamw", "eps": 1e-6, "weight_decay": 0.1},
]


def sequences(rows: pl.DataFrame, tokenizer: Any) -> list[tuple[list[int], int]]:
    """Ids of each row, and the place of the first that is scored."""
    found = []
    for row in rows.to_dicts():
        prompt = row.get("prompt")
        before = [BOS, *(tokenizer(f"{prompt}\n")["input_ids"] if prompt else [])]
        answer = row["response"] if "response" in row else row["text"]
        found.append((before + tokenizer(answer)["input_ids"], len(before)))
    return found


def gradient(model: Any, ids: list[int], first: int) -> torch.Tensor:
    """Of the mean loss over the response, with respect to the output layer, by autograd."""
    weight = model.get_output_embeddings().weight
    model.requires_grad_(False)
    weight.requires_grad_(True)
    weight.grad = None
    logits = model(torch.tensor([ids])).logits[0, first - 1 : -1]
    torch.nn.functional.cross_entropy(logits, torch.tensor(ids[first:])).backward()  # type: ignore[no-untyped-call]
    found: torch.Tensor = weight.grad
    return found


def untied(model: Any) -> Any:
    """The same model, its output layer a matrix of its own."""
    apart = copy.deepcopy(model)
    layer = apart.get_output_embeddings()
    layer.weight = torch.nn.Parameter(layer.weight.detach().clone())
    assert layer.weight is not apart.get_input_embeddings().weight
    return apart


def step(model: Any, ids: list[int], first: int, scorer: Donod) -> tuple[float, float]:
    """(don, nod) of the optimiser's own step on a copy."""
    stepped = copy.deepcopy(model)
    before = stepped.get_output_embeddings().weight.detach().numpy().astype(np.longdouble)
    gradient(stepped, ids, first)
    weight = stepped.get_output_embeddings().weight
    how: dict[str, Any] = {"lr": scorer.lr}
    if scorer.optimizer == "adamw":
        how |= {"eps": scorer.eps, "weight_decay": scorer.weight_decay}
    optimizer = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[scorer.optimizer]
    optimizer([weight], **how).step()
    after = weight.detach().numpy().astype(np.longdouble)
    norm = [np.sqrt((matrix**2).sum()) for matrix in (after, before, after - before)]
    return float(norm[0] - norm[1]), float(norm[2])


def check(model: Any, tokenizer: Any, naive: Any, rows: pl.DataFrame, **settings: Any) -> None:
    # One at a time: some layers round to float32 inside, which in another batch may fall the other way.
    scorer = Donod(model=(model, tokenizer), batch_tokens=1, **settings)
    table = karat.score(scorer, rows)
    for found, (ids, first) in zip(table.to_dicts(), sequences(rows, tokenizer), strict=True):
        don, nod = step(naive, ids, first, scorer)
        assert found["donod.nod"] == pytest.approx(nod, rel=1e-10, abs=0)
        # The optimiser rounds each weight of the naive step to float64.
        assert found["donod.don"] == pytest.approx(don, rel=1e-10, abs=3e-15)


@every_kind
@pytest.mark.parametrize("settings", STEPS, ids=["sgd", "adamw"])
def test_the_step_of_the_output_layer(kind: str, settings: dict[str, Any]) -> None:
    model, tokenizer = tiny_pair(kind)
    assert head_of(model).tied == (kind in (*TIED, "llama_tied"))
    for rows in (ROWS, TEXTS):
        check(model, tokenizer, untied(model), rows, **settings)


@pytest.mark.parametrize("kind", ["gpt2", "gemma2", "llama_tied", "llama"])
@pytest.mark.parametrize("settings", STEPS, ids=["sgd", "adamw"])
def test_the_step_of_a_matrix_with_two_roles(kind: str, settings: dict[str, Any]) -> None:
    model, tokenizer = tiny_pair(kind)
    for rows in (ROWS, TEXTS):
        check(model, tokenizer, model, rows, tied="exact", **settings)


def test_a_padding_token_in_the_sequence_has_no_gradient_as_input() -> None:
    model, tokenizer = tiny_pair("llama_tied")
    model.get_input_embeddings().padding_idx = BOS
    assert BOS != PAD
    check(model, tokenizer, model, ROWS, tied="exact", lr=1e-2)


@pytest.mark.parametrize("tied", ["head", "exact"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("kind", ["gemma2", "phi"])
def test_no_chunk_of_the_vocabulary_changes_anything(
    kind: str, tied: Any, optimizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = tiny_pair(kind)
    scorer = Donod(model=pair, tied=tied, optimizer=optimizer, batch_tokens=1)
    whole = karat.score(scorer, ROWS)
    monkeypatch.setattr("karat.scorers.model.head.CHUNK_BYTES", 4 * 32 * 7)
    short = Residuals(
        states_of(torch.zeros(3, 32, dtype=torch.float64), torch.zeros(3, dtype=torch.long), head_of(pair[0]))
    )
    assert [len(residual[0]) for _, residual, _ in short] == [7] * 37
    cut = karat.score(scorer, ROWS)
    for column in ("donod.don", "donod.nod"):
        assert cut[column].to_list() == pytest.approx(whole[column].to_list(), rel=1e-11, abs=0)


class LargestTensor(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the shapes of all tensors that operations return, views of the weights left out."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.weight, self.elements = weight, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                own = leaf.untyped_storage().data_ptr() != self.weight.untyped_storage().data_ptr()
                self.elements = max(self.elements, leaf.numel() if own else 0)
        return out


@pytest.mark.parametrize("tied", ["head", "exact"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2", "phi"])
def test_no_tensor_of_the_size_of_the_output_layer(
    kind: str, tied: Any, optimizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = tiny_pair(kind)
    model.resize_token_embeddings(20_000)
    short = ROWS.filter(pl.col("response").str.len_bytes() < 20)
    scorer = Donod(model=(model, tokenizer), tied=tied, optimizer=optimizer)
    size = model.get_output_embeddings().weight.numel()
    monkeypatch.setattr("karat.scorers.model.head.CHUNK_BYTES", size // 2 * 4)
    prepared = scorer.prepare(None)
    with LargestTensor(model.get_output_embeddings().weight) as seen:
        scorer.score(view_of(short), prepared)
    assert 0 < seen.elements < size


def states_of(hidden: torch.Tensor, following: torch.Tensor, head: Head) -> States:
    return States(torch.arange(len(hidden)), hidden, following, head)


@pytest.mark.parametrize("cap", [None, 5.0])
def test_sixteen_bit_weights_and_states_lose_nothing_in_the_step(cap: float | None) -> None:
    """Of the same bfloat16 numbers: float32 sums agree with float64 to 1e-5, for DON to 1e-4 of NOD's size.

    At this size the naive difference of norms in bfloat16 or float32 has no digit left.
    """
    draw = torch.Generator().manual_seed(3)
    weight = (0.02 * torch.randn(4_000, 64, generator=draw)).bfloat16()
    hidden = (3 * torch.randn(24, 64, generator=draw)).bfloat16()
    following = torch.randint(0, 4_000, (24,), generator=draw)
    for lr in (1e-6, 1e-3):
        short = states_of(hidden, following, Head(weight, cap=cap))
        exact = states_of(hidden.double(), following, Head(weight.double(), cap=cap))
        norm = frobenius(exact.head)
        assert frobenius(short.head) == pytest.approx(norm, rel=1e-12, abs=0)
        don, nod = step_norms(sgd_direction(short), norm, lr)
        true_don, true_nod = step_norms(sgd_direction(exact), norm, lr)
        assert nod == pytest.approx(true_nod, rel=1e-5, abs=0)
        assert don == pytest.approx(true_don, rel=1e-4, abs=0)
        don, nod = step_norms(adamw_direction(short, 1e-8, 0.0), norm, lr)
        true_don, true_nod = step_norms(adamw_direction(exact, 1e-8, 0.0), norm, lr)
        assert nod == pytest.approx(true_nod, rel=1e-5, abs=0)
        assert don == pytest.approx(true_don, rel=2e-3, abs=0)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2"])
def test_a_model_in_bfloat16_against_the_same_weights_in_float64(kind: str) -> None:
    """Its hidden states have 8 bits: within 5 % here, where a step in bfloat16 changes no norm at all."""
    model, tokenizer = tiny_pair(kind, "bfloat16")
    wide = copy.deepcopy(model).double()
    short = karat.score(Donod(model=(model, tokenizer)), ROWS)
    exact = karat.score(Donod(model=(wide, tokenizer)), ROWS)
    assert short["donod.nod"].to_list() == pytest.approx(exact["donod.nod"].to_list(), rel=0.05, abs=0)
    spread = float(exact["donod.don"].abs().max())  # type: ignore[arg-type]
    assert short["donod.don"].to_list() == pytest.approx(exact["donod.don"].to_list(), abs=0.05 * spread)


def test_tokens_that_the_model_is_sure_of_keep_their_digits() -> None:
    draw = torch.Generator().manual_seed(5)
    weight = torch.nn.functional.normalize(torch.randn(50, 64, generator=draw, dtype=torch.float64))
    hidden = 40 * weight[:4]
    following = torch.arange(4)
    sure = states_of(hidden, following, Head(weight))
    assert float(sure.nats_n.max()) < 1e-4
    exact = sgd_direction(sure)
    short = sgd_direction(states_of(hidden.float(), following, Head(weight.float())))
    assert short.squared_norm == pytest.approx(exact.squared_norm, rel=1e-4, abs=0)
    assert short.along_weights == pytest.approx(exact.along_weights, rel=1e-4, abs=0)


@pytest.mark.parametrize("lr", [1e-30, 1e-12, 1.0, 1e3, 1e12])
def test_tiny_and_huge_learning_rates(lr: float) -> None:
    model, tokenizer = tiny_pair("llama")
    table = karat.score(Donod(model=(model, tokenizer), lr=lr, batch_tokens=1), ROWS)
    weight = model.get_output_embeddings().weight.detach()
    for found, (ids, first) in zip(table.to_dicts(), sequences(ROWS, tokenizer), strict=True):
        g = gradient(untied(model), ids, first)
        norm, slope = float(weight.norm()), float((weight * g).sum())
        q = lr * (lr * float((g**2).sum()) - 2 * slope)
        assert found["donod.don"] == pytest.approx(q / (math.sqrt(norm**2 + q) + norm), rel=1e-9, abs=0)
        assert found["donod.nod"] == pytest.approx(lr * float(g.norm()), rel=1e-10, abs=0)


def test_a_step_beyond_all_numbers_is_a_failed_score() -> None:
    table = karat.score(Donod(model=tiny_pair("llama"), lr=1e300), ROWS)
    assert table["donod.don"].null_count() == ROWS.height
    assert set(table["donod.status"].str.slice(0, 21)) == {"failed: the model gav"}


def test_no_step_and_no_weights() -> None:
    assert step_norms(Direction(0.0, 0.0), 0.0, 1.0) == (0.0, 0.0)
    assert step_norms(Direction(4.0, 0.0), 0.0, 0.5) == (1.0, 1.0)
    # The step that undoes the weights: U = W, lr = 1.
    assert step_norms(Direction(9.0, 9.0), 3.0, 1.0) == (-3.0, 3.0)


def test_along_the_weights_is_cross_entropy_less_entropy() -> None:
    draw = torch.Generator().manual_seed(2)
    head = Head(torch.randn(40, 6, generator=draw, dtype=torch.float64))
    states = states_of(
        torch.randn(5, 6, generator=draw, dtype=torch.float64), torch.tensor([0, 39, 3, 3, 7]), head
    )
    expected = float((states.nats_n - states.entropy_n).mean())
    assert sgd_direction(states).along_weights == pytest.approx(expected, rel=1e-12, abs=0)
    total = sum(residual.sum(dim=1) for _, residual, _ in Residuals(states))
    assert torch.as_tensor(total).abs().max() < 1e-15, "residuals of a position sum to zero"


def test_the_prompt_has_no_part_in_the_loss_but_in_the_states() -> None:
    model, tokenizer = tiny_pair("llama")
    rows = pl.DataFrame({"id": ["a", "b"], "prompt": ["one", "two"], "response": ["same", "same"]})
    table = karat.score(Donod(model=(model, tokenizer)), rows)
    assert table["donod.nod"].n_unique() == 2
    ids, first = sequences(rows, tokenizer)[0]
    for part in (ids, ids[:-1]):
        whole = gradient(untied(model), part, 1)
        assert float(whole.norm()) * 1e-5 != pytest.approx(table["donod.nod"][0], rel=1e-3, abs=0)
    assert float(gradient(untied(model), ids, first).norm()) * 1e-5 == pytest.approx(
        table["donod.nod"][0], rel=1e-6, abs=0
    )


def test_weights_that_change_between_calls_are_seen() -> None:
    model, tokenizer = tiny_pair("llama")
    scorer = Donod(model=(model, tokenizer), lr=1.0)
    before = karat.score(scorer, TEXTS)["donod.don"].to_list()
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(1.5)
    after = karat.score(scorer, TEXTS)["donod.don"].to_list()
    fresh = karat.score(Donod(model=(copy.deepcopy(model), tokenizer), lr=1.0), TEXTS)["donod.don"].to_list()
    assert after == fresh != before


def test_exact_runs_alone_and_head_with_the_others() -> None:
    pair = tiny_pair("gpt2")
    head, exact, loss = Donod(model=pair), Donod(model=pair, tied="exact"), Loss(model=pair)
    assert head.shares() == loss.shares() is not None
    assert exact.shares() is None
    assert (
        karat.score([exact, loss], ROWS)["donod.nod"].to_list()
        != karat.score(head, ROWS)["donod.nod"].to_list()
    )
    apart = tiny_pair("llama")
    both = [karat.score(Donod(model=apart, tied=tied), ROWS) for tied in ("head", "exact")]
    assert both[0].equals(both[1])


class Doubling(torch.nn.Linear):
    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(hidden)


class Deep(torch.nn.Module):
    def __init__(self, layer: torch.nn.Linear) -> None:
        super().__init__()
        self.weight = layer.weight
        self.layer = layer

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.layer(hidden).relu()
        return found


def doubling(layer: torch.nn.Linear) -> torch.nn.Module:
    made = Doubling(layer.in_features, layer.out_features, bias=False).double()
    made.weight = layer.weight
    return made


def in_bytes(layer: torch.nn.Linear) -> torch.nn.Module:
    layer.weight = torch.nn.Parameter(torch.zeros(layer.weight.shape, dtype=torch.int8), requires_grad=False)
    return layer


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (doubling, "not its output layer times its last hidden states"),
        (Deep, r"Deep, not a linear layer"),
        (in_bytes, "keep the output layer unquantised"),
    ],
)
def test_an_output_layer_that_is_not_linear_is_refused(made: Any, message: str) -> None:
    model, tokenizer = tiny_pair("llama")
    model.lm_head = made(model.lm_head)
    with pytest.raises(karat.KaratError, match=message):
        karat.score(Donod(model=(model, tokenizer)), ROWS)


def test_settings_without_effect_are_refused() -> None:
    for settings in ({"eps": 1e-6}, {"weight_decay": 0.1}):
        with pytest.raises(ValueError, match="belong to optimizer: adamw"):
            Donod(model="somewhere", **settings)
    for lr in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="lr"):
            Donod(model="somewhere", lr=lr)

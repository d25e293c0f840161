"""Chunked losses of transformers' causal models against those of their own logits."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_models
import torch
from torch.nn import functional

from karat.errors import WeightError
from karat.trainers.chunked import ChunkedHead, chunked_causal_losses

torch.set_num_threads(1)
FULL = 2 * 15 * tiny_models.VOCABULARY


def batch(rows: int = 2, length: int = 15) -> dict[str, torch.Tensor]:
    ids = torch.randint(0, 250, (rows, length), generator=torch.Generator().manual_seed(3))
    labels = ids.clone()
    labels[0, :6] = -100
    labels[-1, 11:] = -100
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def model_of(kind: str, dtype: str = "float64") -> Any:
    model, _ = tiny_models.tiny_pair(kind, dtype)
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def own_losses(model: Any, given: dict[str, torch.Tensor]) -> torch.Tensor:
    """[B, T] from the model's own logits, in its own dtype."""
    inputs = {name: value for name, value in given.items() if name != "labels"}
    logits = model(**inputs).logits[:, :-1]
    shifted = given["labels"][:, 1:]
    wide = logits if logits.dtype == torch.float64 else logits.float()
    flat = functional.cross_entropy(wide.flatten(0, 1), shifted.flatten(), reduction="none")
    return functional.pad(flat.view(shifted.shape), (0, 1))


def slopes(model: Any, loss: torch.Tensor) -> torch.Tensor:
    model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize("kind", tiny_models.KINDS)
def test_losses_and_gradients_are_those_of_the_models_logits(kind: str) -> None:
    """Plain and tied heads, a bias, a cap, a factor, a divisor; both ways, any weights."""
    model, given, w = model_of(kind), batch(), torch.tensor([0.5, 2.0], dtype=torch.float64)
    head = ChunkedHead(model, chunk_tokens=4)
    stock = own_losses(model, given)
    found = chunked_causal_losses(model, given, head)
    torch.testing.assert_close(found.elements, stock)
    assert torch.equal(found.scored, functional.pad(given["labels"][:, 1:] != -100, (0, 1)))
    expected = slopes(model, (w * stock.sum(dim=1)).sum())
    torch.testing.assert_close(slopes(model, (w * found.elements.sum(dim=1)).sum()), expected)
    undo = head.swapped()
    states = model(input_ids=given["input_ids"]).logits
    undo()
    total, losses = head.weighted(w, "token", states, given["labels"])
    torch.testing.assert_close(losses.elements, stock.detach())
    torch.testing.assert_close(slopes(model, total), expected)


def test_by_sample() -> None:
    model, given, w = model_of("llama"), batch(), torch.tensor([0.5, 2.0], dtype=torch.float64)
    head = ChunkedHead(model)
    undo = head.swapped()
    states = model(input_ids=given["input_ids"]).logits
    undo()
    total, losses = head.weighted(w, "sample", states, given["labels"])
    means = own_losses(model, given).sum(dim=1) / losses.counts()
    torch.testing.assert_close(slopes(model, total), slopes(model, (w * means).sum()))


@pytest.mark.parametrize("kind", ["llama", "gemma2", "phi", "cohere"])
def test_bfloat16(kind: str) -> None:
    """Within rounding of the logits: caps and factors are applied in float32 here, in 16 bits there."""
    model, given = model_of(kind, "bfloat16"), batch()
    stock, found = own_losses(model, given), chunked_causal_losses(model, given).elements
    assert found.dtype == torch.float32
    assert float((found - stock).abs().max()) < 2e-2
    expected = slopes(model, stock.sum()).float()
    assert float((slopes(model, found.sum()).float() - expected).norm() / expected.norm()) < 2e-2


def test_the_model_is_as_before() -> None:
    model, given = model_of("gemma2"), batch()
    before = model(**given)
    config = model.config.to_dict()
    chunked_causal_losses(model, given)
    broken = {**given, "input_ids": torch.full((2, 15), 10**6)}
    with pytest.raises(IndexError):
        chunked_causal_losses(model, broken)
    assert model.config.to_dict() == config
    assert "forward" not in model.lm_head.__dict__
    after = model(**given)
    assert torch.equal(after.logits, before.logits)
    assert torch.equal(after.loss, before.loss)
    assert model.training


def test_given_shifted_labels_and_adapters() -> None:
    import peft

    plain, given = model_of("llama"), batch()
    adapted = peft.get_peft_model(plain, peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    adapted = adapted.double()
    stock = own_losses(adapted, given)
    shifted = functional.pad(given["labels"], (0, 1), value=-100)[:, 1:]
    inputs = {"input_ids": given["input_ids"], "shift_labels": shifted}
    found = chunked_causal_losses(adapted, inputs)
    torch.testing.assert_close(found.elements, stock)
    lora = [p for p in adapted.parameters() if p.requires_grad]
    ours = torch.autograd.grad(found.elements.sum(), lora)
    torch.testing.assert_close(ours, torch.autograd.grad(stock.sum(), lora))


def test_the_full_logits_never_exist() -> None:
    from test_linear_cross_entropy import Sizes

    model, given = model_of("llama", "float32"), batch()
    head = ChunkedHead(model, chunk_tokens=4)
    weights = {p.numel() for p in model.parameters()}
    with Sizes(weights) as sizes:
        chunked_causal_losses(model, given, head).elements.sum().backward()
    assert sizes.largest < FULL / 2
    with Sizes(weights) as whole:
        model(**given).loss.backward()
    assert whole.largest >= FULL


def _norm_after_head(model: Any) -> None:
    forward = model.lm_head.forward
    model.lm_head.forward = lambda states: forward(states).softmax(dim=-1)


def _hook(model: Any) -> None:
    model.lm_head.register_forward_hook(lambda module, args, output: 2 * output)


def _other_layer(model: Any) -> None:
    model.lm_head = torch.nn.Sequential(model.lm_head)


def _no_layer(model: Any) -> None:
    model.get_output_embeddings = lambda: None


def _other_loss(model: Any) -> None:
    model.loss_function = lambda logits, labels, **kwargs: logits.sum()


def _sub_layer(model: Any) -> None:
    class Doubled(torch.nn.Linear):
        def forward(self, states: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(states)

    model.lm_head.__class__ = Doubled


def _shaped_logits(model: Any) -> None:
    class Shifted(type(model)):  # type: ignore[misc]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            made = super().forward(*args, **kwargs)
            made.logits = made.logits * torch.linspace(0.9, 1.1, made.logits.shape[-1]).to(made.logits)
            return made

    model.__class__ = Shifted


@pytest.mark.parametrize(
    "change", [_norm_after_head, _hook, _other_layer, _no_layer, _other_loss, _sub_layer, _shaped_logits]
)
def test_other_heads_are_refused(change: Any) -> None:
    model = model_of("llama")
    change(model)
    with pytest.raises(WeightError, match="no chunked loss"):
        ChunkedHead(model)


def test_classifiers_and_encoder_decoders_are_refused() -> None:
    import transformers

    sizes = {"vocab_size": 50, "d_model": 8, "num_layers": 1, "num_heads": 2, "d_kv": 4, "d_ff": 8}
    t5 = transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes))
    with pytest.raises(WeightError, match="no chunked loss"):
        ChunkedHead(t5)


def test_places_without_states_are_an_error() -> None:
    model, given = model_of("llama"), batch()
    with pytest.raises(WeightError, match="logits_to_keep"):
        chunked_causal_losses(model, {**given, "logits_to_keep": 3})
    del given["labels"]
    with pytest.raises(WeightError, match="no labels"):
        chunked_causal_losses(model, given)

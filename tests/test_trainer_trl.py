"""ReweightCallback on TRL's own trainers: SFT plain, packed and padding-free, masks, and DPO pairs."""

from __future__ import annotations

import contextlib
import copy
import io
from pathlib import Path
from typing import Any

import datasets
import polars as pl
import pytest
import torch
from tiny_models import tiny_pair
from torch.nn import functional

from karat.errors import WeightError
from karat.reweight.online import Cvar, KlDro, LinUpper
from karat.trainers.byte_tokenizer import byte_tokenizer
from karat.trainers.callback import ReweightCallback

trl = pytest.importorskip("trl")

TOKENS = byte_tokenizer()
RAW = [0.0, 0.5, 3.0, 1.0, 2.25, 0.0, 0.125, 1.5, 4.0, 0.75, 0.0, 1.0]
TEXTS = [f"word {i} " * (i % 4 + 2) for i in range(12)]
CHAT = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{% generation %}a:{{ m['content'] }};"
    "{% endgeneration %}{% else %}u:{{ m['content'] }};{% endif %}{% endfor %}"
)
Deltas = dict[str, torch.Tensor]

PLAIN = {
    "learning_rate": 1.0,
    "optim": "sgd",
    "lr_scheduler_type": "constant",
    "max_grad_norm": 0.0,
    "report_to": [],
    "disable_tqdm": True,
    "save_strategy": "no",
    "logging_steps": 1,
    "use_cpu": True,
    "seed": 5,
    "max_steps": 1,
    "bf16": False,
    "gradient_checkpointing": False,
    "per_device_train_batch_size": 12,
}


def model(seed: int = 7) -> Any:
    return tiny_pair("llama", "float32", seed)[0]


def mean_one(raw: list[float]) -> list[float]:
    return [w * sum(1 for x in raw if x) / sum(raw) for w in raw]


def texts(weights: list[float] | None = None) -> Any:
    data = [{"text": text, "id": f"r{i}"} for i, text in enumerate(TEXTS)]
    if weights is not None:
        data = [{**row, "weight": weight} for row, weight in zip(data, weights, strict=True)]
    return datasets.Dataset.from_list(data)


def run(trainer: Any) -> Deltas:
    """How far one training moves the parameters."""
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    with contextlib.redirect_stdout(io.StringIO()):
        trainer.train()
    return {name: before[name] - value for name, value in trainer.model.state_dict().items()}


def sft(
    folder: Path, data: Any, callback: Any = None, tokens: Any = TOKENS, **changes: Any
) -> tuple[Any, Deltas]:
    peft_config = changes.pop("peft_config", None)
    settings = {**PLAIN, "max_length": 64, **changes}
    trainer = trl.SFTTrainer(
        model=model(),
        args=trl.SFTConfig(output_dir=str(folder), **settings),
        train_dataset=data,
        processing_class=tokens,
        callbacks=[callback] if callback else None,
        peft_config=peft_config,
    )
    return trainer, run(trainer)


def gradient(pieces: list[tuple[list[int], list[int], float]]) -> Deltas:
    """float64, sequence by sequence: sum_i w_i S_i / N over (tokens, labels, weight)."""
    oracle, total, count = model().double().train(), torch.zeros((), dtype=torch.float64), 0
    for ids, labels, weight in pieces:
        targets = torch.tensor(labels)[1:]
        if weight:
            logits = oracle(torch.tensor([ids])).logits[0, :-1]
            total = total + weight * functional.cross_entropy(logits, targets, reduction="sum")
            count += int((targets != -100).sum())
    (total / count).backward()
    return {name: parameter.grad.float() for name, parameter in oracle.named_parameters()}


def error(found: Deltas, expected: Deltas) -> float:
    wrong = sum(float((found[name] - expected[name]).square().sum()) for name in expected)
    return (wrong / sum(float(value.square().sum()) for value in expected.values())) ** 0.5


def identical(a: Deltas, b: Deltas) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def encoded(text: str) -> list[int]:
    ids: list[int] = TOKENS(text)["input_ids"]
    return [*ids, TOKENS.eos_token_id]


WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulated": {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 3},
    "short last batch": {"per_device_train_batch_size": 5, "gradient_accumulation_steps": 3},
    "padding-free": {"padding_free": True, "max_length": None},
    "padding-free, accumulated": {
        "padding_free": True,
        "max_length": None,
        "per_device_train_batch_size": 3,
        "gradient_accumulation_steps": 4,
    },
    "packed": {"packing": True},
    "packed, shuffled, accumulated": {
        "packing": True,
        "shuffle_dataset": True,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 12,
    },
    "packed by splitting": {"packing": True, "packing_strategy": "bfd_split"},
}


@pytest.mark.parametrize("way", WAYS)
def test_sft_weighs_every_row(tmp_path: Path, way: str) -> None:
    pieces = [(encoded(t), encoded(t), w) for t, w in zip(TEXTS, mean_one(RAW), strict=True)]
    trainer, found = sft(tmp_path, texts(RAW), ReweightCallback(), **WAYS[way])
    assert error(found, gradient(pieces)) < 5e-6
    _, stock = sft(tmp_path / "stock", texts(), **WAYS[way])
    _, ones = sft(tmp_path / "ones", texts(), ReweightCallback(), **WAYS[way])
    assert identical(stock, ones)
    assert error(stock, found) > 0.1
    assert not trainer.model._forward_hooks
    ledger = pl.read_parquet(tmp_path / "karat_ledger.parquet")
    assert ledger["id"].to_list() == [f"r{i}" for i in range(12)]


def test_wrapped_packing_cuts_rows_and_keeps_their_weights(tmp_path: Path) -> None:
    trainer, found = sft(
        tmp_path, texts(RAW), ReweightCallback(), packing=True, packing_strategy="wrapped", max_length=50
    )
    flat = [token for text in TEXTS for token in encoded(text)]
    owner = [w for text, w in zip(TEXTS, mean_one(RAW), strict=True) for _ in encoded(text)]
    oracle, total, count = model().double().train(), torch.zeros((), dtype=torch.float64), 0
    for start in range(0, len(flat), 50):
        ids, weights = torch.tensor(flat[start : start + 50]), torch.tensor(owner[start : start + 50])
        losses = functional.cross_entropy(oracle(ids[None]).logits[0, :-1], ids[1:], reduction="none")
        total = total + (weights[1:].double() * losses).sum()
        count += int((weights[1:] > 0).sum())
    (total / count).backward()
    expected = {name: parameter.grad.float() for name, parameter in oracle.named_parameters()}
    assert error(found, expected) < 5e-6
    assert trainer.train_dataset.num_rows == -(-len(flat) // 50)


def test_rows_packed_before_the_callback_need_their_data_set(tmp_path: Path) -> None:
    import karat.trainers.packed as packed

    watched = trl.SFTTrainer._prepare_dataset
    del trl.SFTTrainer._karat_watches
    trl.SFTTrainer._prepare_dataset = getattr(watched, "__wrapped__", watched)
    try:
        trainer = trl.SFTTrainer(
            model=model(),
            args=trl.SFTConfig(output_dir=str(tmp_path), max_length=64, packing=True, **PLAIN),
            train_dataset=texts(RAW),
            processing_class=TOKENS,
        )
    finally:
        packed.remember_given()
    late = ReweightCallback()
    trainer.add_callback(late)
    with pytest.raises(WeightError, match="before a ReweightCallback"):
        run(trainer)
    trainer.remove_callback(late)
    other = ReweightCallback(dataset=texts(RAW).select(range(11, -1, -1)))
    trainer.add_callback(other)
    with pytest.raises(WeightError, match="not those of the data set"):
        run(trainer)
    trainer.remove_callback(other)
    trainer.add_callback(ReweightCallback(dataset=texts(RAW)))
    _, expected = sft(tmp_path, texts(RAW), ReweightCallback(), packing=True)
    assert identical(run(trainer), expected)


def test_completion_only(tmp_path: Path) -> None:
    pairs = [(f"question {i}: ", f"answer {i}" * (i % 3 + 1)) for i in range(12)]
    data = datasets.Dataset.from_list(
        [{"prompt": p, "completion": c, "weight": w} for (p, c), w in zip(pairs, RAW, strict=True)]
    )
    pieces = []
    for (prompt, completion), weight in zip(pairs, mean_one(RAW), strict=True):
        ids, hidden = encoded(prompt + completion), len(TOKENS(prompt)["input_ids"])
        pieces.append((ids, [-100] * hidden + ids[hidden:], weight))
    expected = gradient(pieces)
    for way in ("plain", "accumulated", "packed", "padding-free"):
        _, found = sft(tmp_path, data, ReweightCallback(), **WAYS[way])
        assert error(found, expected) < 5e-6, way


def test_assistant_masks(tmp_path: Path) -> None:
    tokens = byte_tokenizer()
    tokens.chat_template = CHAT
    talks = [[("user", f"hi {i}"), ("assistant", "yes " * (i % 3 + 1))] for i in range(12)]
    data = datasets.Dataset.from_list(
        [
            {"messages": [{"role": r, "content": c} for r, c in talk], "weight": w}
            for talk, w in zip(talks, RAW, strict=True)
        ]
    )
    pieces = []
    for talk, weight in zip(talks, mean_one(RAW), strict=True):
        asked, answered = (TOKENS(f"{r[0]}:{c};")["input_ids"] for r, c in talk)
        pieces.append((asked + answered, [-100] * len(asked) + answered, weight))
    _, found = sft(tmp_path, data, ReweightCallback(), tokens, assistant_only_loss=True)
    assert error(found, gradient(pieces)) < 5e-6


def test_dft_scales_the_gradient_and_not_the_value(tmp_path: Path) -> None:
    oracle, total, count = model().double().train(), torch.zeros((), dtype=torch.float64), 0
    for text, weight in zip(TEXTS, mean_one(RAW), strict=True):
        if weight:
            ids = torch.tensor(encoded(text))
            losses = functional.cross_entropy(oracle(ids[None]).logits[0, :-1], ids[1:], reduction="none")
            total = total + weight * (losses * (-losses).exp().detach()).sum()
            count += len(ids) - 1
    (total / count).backward()
    expected = {name: parameter.grad.float() for name, parameter in oracle.named_parameters()}
    _, found = sft(tmp_path, texts(RAW), ReweightCallback(), loss_type="dft")
    assert error(found, expected) < 1e-4  # probabilities of e^-10 in float32
    _, stock = sft(tmp_path, texts(), loss_type="dft")
    _, ones = sft(tmp_path, texts(), ReweightCallback(), loss_type="dft")
    assert identical(stock, ones)


def test_the_form_per_sample(tmp_path: Path) -> None:
    oracle, total = model().double().train(), torch.zeros((), dtype=torch.float64)
    for text, weight in zip(TEXTS, mean_one(RAW), strict=True):
        if weight:
            ids = torch.tensor(encoded(text))
            logits = oracle(ids[None]).logits[0, :-1]
            total = total + weight * functional.cross_entropy(logits, ids[1:])
    (total / sum(1 for w in RAW if w)).backward()
    expected = {name: parameter.grad.float() for name, parameter in oracle.named_parameters()}
    for way in ("plain", "accumulated", "packed", "padding-free, accumulated"):
        _, found = sft(tmp_path, texts(RAW), ReweightCallback(reduction="sample"), **WAYS[way])
        assert error(found, expected) < 5e-6, way


@pytest.mark.parametrize("rule", [LinUpper(temperature=0.4), Cvar(alpha=0.4)], ids=lambda r: r.kind)
def test_online_rules_see_segments(tmp_path: Path, rule: Any) -> None:
    _, plain = sft(tmp_path, texts(RAW), ReweightCallback(rule))
    for way in ("packed", "padding-free"):
        _, found = sft(tmp_path, texts(RAW), ReweightCallback(rule), **WAYS[way])
        assert error(found, plain) < 1e-5, way
    seen = rule.model_copy(update={"scope": "window"})
    _, found = sft(tmp_path, texts(RAW), ReweightCallback(seen), **WAYS["accumulated"])
    assert error(found, plain) < 1e-5


def test_lora_under_sft(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    options = {"peft_config": config, "max_steps": 3, "gradient_checkpointing": True}
    _, stock = sft(tmp_path, texts(), **options)
    _, ones = sft(tmp_path, texts(), ReweightCallback(), **options)
    assert identical(stock, ones)
    _, ours = sft(tmp_path, texts(RAW), ReweightCallback(), **options)
    kept = texts(RAW).filter(lambda row: row["weight"] > 0)
    _, without = sft(tmp_path, kept, ReweightCallback(), **options | {"per_device_train_batch_size": 9})
    assert error(ours, without) < 1e-4
    assert error(ours, stock) > 1e-2


def test_evaluation_of_sft_is_untouched(tmp_path: Path) -> None:
    def evaluated(callback: Any) -> list[float]:
        trainer = trl.SFTTrainer(
            model=model(),
            args=trl.SFTConfig(
                output_dir=str(tmp_path), max_length=64, eval_strategy="steps", eval_steps=1, **PLAIN
            ),
            train_dataset=texts([2.0] * 12),
            eval_dataset=texts(RAW),
            processing_class=TOKENS,
            callbacks=[callback] if callback else None,
        )
        run(trainer)
        return [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]

    assert evaluated(None) == evaluated(ReweightCallback())


PAIRS = [(f"q{i} ", "yes " * (i % 3 + 1) + str(i), "no " * (i % 4 + 1) + str(i)) for i in range(8)]


def preferences(weights: list[float] | None = None) -> Any:
    data: list[dict[str, Any]] = [{"prompt": p, "chosen": c, "rejected": r} for p, c, r in PAIRS]
    if weights is not None:
        data = [{**row, "weight": weight} for row, weight in zip(data, weights, strict=True)]
    return datasets.Dataset.from_list(data)


def dpo(folder: Path, data: Any, callback: Any = None, **changes: Any) -> tuple[Any, Deltas]:
    peft_config = changes.pop("peft_config", None)
    trainer = trl.DPOTrainer(
        model=model(),
        ref_model=None if peft_config else model(8),
        args=trl.DPOConfig(output_dir=str(folder), **PLAIN | {"per_device_train_batch_size": 8} | changes),
        train_dataset=data,
        processing_class=TOKENS,
        callbacks=[callback] if callback else None,
        peft_config=peft_config,
    )
    return trainer, run(trainer)


def log_probability(of: Any, prompt: str, answer: str) -> torch.Tensor:
    start, ids = len(TOKENS(prompt)["input_ids"]), torch.tensor(encoded(prompt + answer))
    logs = of(ids[None]).logits[0, :-1].log_softmax(-1).gather(1, ids[1:, None])
    return logs[start - 1 :].sum()


def pair_losses(policy: Any, kind: str) -> list[torch.Tensor]:
    reference, losses = model(8).double(), []
    for prompt, chosen, rejected in PAIRS:
        with torch.no_grad():
            base = log_probability(reference, prompt, chosen) - log_probability(reference, prompt, rejected)
        gap = log_probability(policy, prompt, chosen) - log_probability(policy, prompt, rejected) - base
        losses.append(-functional.logsigmoid(0.1 * gap) if kind == "sigmoid" else torch.relu(1 - 0.1 * gap))
    return losses


def pair_gradient(weights: list[float], kind: str = "sigmoid") -> Deltas:
    policy = model().double().train()
    losses = pair_losses(policy, kind)
    total = torch.stack([w * loss for w, loss in zip(weights, losses, strict=True) if w]).sum()
    (total / sum(1 for w in weights if w)).backward()
    return {name: parameter.grad.float() for name, parameter in policy.named_parameters()}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
        {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 3},
        {"precompute_ref_log_probs": True},
        {"loss_type": "hinge"},
    ],
    ids=["plain", "accumulated", "short last batch", "precomputed", "hinge"],
)
def test_dpo_weighs_every_pair(tmp_path: Path, options: Any) -> None:
    raw = RAW[:8]
    trainer, found = dpo(tmp_path, preferences(raw), ReweightCallback(), **options)
    assert error(found, pair_gradient(mean_one(raw), options.get("loss_type", "sigmoid"))) < 1e-5
    _, stock = dpo(tmp_path, preferences(), **options)
    _, ones = dpo(tmp_path, preferences(), ReweightCallback(accumulation="stock"), **options)
    assert identical(stock, ones)
    if options.get("per_device_train_batch_size") != 3:
        _, exact = dpo(tmp_path, preferences(), ReweightCallback(), **options)
        assert identical(stock, exact)
    unweighted = trainer.state.log_history[0]["karat/loss_unweighted"]
    losses = [
        float(loss.detach()) for loss in pair_losses(model().double(), options.get("loss_type", "sigmoid"))
    ]
    present = [loss for loss, w in zip(losses, raw, strict=True) if w]
    assert unweighted == pytest.approx(sum(present) / len(present), rel=1e-4)
    assert not trainer.ref_model or not trainer.ref_model._forward_hooks


def test_other_losses_of_pairs_take_static_weights(tmp_path: Path) -> None:
    options = {"loss_type": "robust", "label_smoothing": 0.1}
    half = [i % 2 for i in range(8)]
    _, ours = dpo(tmp_path, preferences(half), ReweightCallback(), **options)
    kept = preferences().select(range(1, 8, 2))
    _, without = dpo(tmp_path, kept, **options, per_device_train_batch_size=4)
    assert error(ours, without) < 1e-5
    with pytest.raises(WeightError, match="follows losses"):
        dpo(tmp_path, preferences(), ReweightCallback(LinUpper()), **options)
    with pytest.raises(WeightError, match="takes the pairs of a batch together"):
        dpo(tmp_path, preferences(), ReweightCallback(), loss_type="aot")


def test_online_rules_on_pairs(tmp_path: Path) -> None:
    losses = torch.stack([loss.detach() for loss in pair_losses(model().double(), "sigmoid")]).float()
    rule = KlDro(temperature=1.0)
    weights, _ = rule.update(torch.ones(8), losses, torch.arange(8), rule.init(8))
    expected = pair_gradient(weights.tolist())
    _, found = dpo(tmp_path, preferences(), ReweightCallback(rule))
    assert error(found, expected) < 1e-5
    seen = ReweightCallback(KlDro(temperature=1.0, scope="window"))
    _, found = dpo(
        tmp_path, preferences(), seen, per_device_train_batch_size=2, gradient_accumulation_steps=4
    )
    assert error(found, expected) < 1e-5


def test_lora_under_dpo(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    options = {"max_steps": 3, "learning_rate": 0.5}
    results = {}
    for name, data, callback in (
        ("stock", preferences(), None),
        ("ones", preferences(), ReweightCallback()),
        ("window", preferences(), ReweightCallback(KlDro(temperature=1e6, scope="window", warmup_steps=9))),
        ("half", preferences([i % 2 for i in range(8)]), ReweightCallback()),
    ):
        _, results[name] = dpo(tmp_path, data, callback, peft_config=copy.deepcopy(config), **options)
    assert identical(results["stock"], results["ones"])
    assert identical(results["stock"], results["window"])
    assert error(results["half"], results["stock"]) > 1e-2


def test_other_trainers_of_trl_are_refused(tmp_path: Path) -> None:
    from karat.trainers import checks

    class Kto(trl.SFTTrainer):  # type: ignore[misc, name-defined]
        pass

    checks.check_trainer(object.__new__(Kto))
    foreign = type("KTOTrainer", (object,), {"__module__": "trl.trainer.kto_trainer"})
    with pytest.raises(WeightError, match="KTOTrainer"):
        checks.check_trainer(foreign())

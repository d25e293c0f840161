"""A small language model over bytes on five domains, by transformers' Trainer with karat's callback."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import log
from pathlib import Path
from typing import Any

import torch
from alignment_corpora import AbsentError, domains_of
from reweighting_rules import Rule


@dataclass(frozen=True)
class Mix:
    """Documents of `length` bytes each; `copied` of them are copied until they make up half of the pool."""

    pool: int = 4000
    copied: int = 40
    length: int = 64
    evaluated: int = 100
    steps: int = 240
    batch: int = 16
    evaluations: int = 3
    width: int = 64
    rate: float = 3e-3


Pool = tuple[list[bytes], list[bytes], list[bytes]]


def text_record(rule: Rule, pool: Pool, mix: Mix, seed: int) -> dict[str, Any]:
    """Test bits per byte at the last step, and at the evaluation with the lowest on validation documents."""
    import datasets
    import transformers

    from karat.trainers.callback import ReweightCallback

    transformers.utils.logging.set_verbosity_error()
    train, validation, test = (
        datasets.Dataset.from_dict({"input_ids": rows, "labels": rows})
        for rows in ([list(document) for document in part] for part in pool)
    )
    every = max(1, mix.steps // mix.evaluations)
    with tempfile.TemporaryDirectory() as scratch:
        arguments = transformers.TrainingArguments(
            output_dir=scratch,
            max_steps=mix.steps,
            per_device_train_batch_size=mix.batch,
            per_device_eval_batch_size=50,
            learning_rate=mix.rate,
            lr_scheduler_type="cosine",
            warmup_steps=mix.steps // 10,
            eval_strategy="steps",
            eval_steps=every,
            prediction_loss_only=True,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            log_level="error",
            logging_strategy="no",
            use_cpu=True,
            seed=seed,
        )
        torch.manual_seed(seed)
        trainer = transformers.Trainer(
            model=_model(mix),
            args=arguments,
            train_dataset=train,
            eval_dataset={"validation": validation, "test": test},
            data_collator=transformers.default_data_collator,
            callbacks=[ReweightCallback(rule.part)],
        )
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
    curve = {
        name: [
            row[f"eval_{name}_loss"] / log(2)
            for row in trainer.state.log_history
            if f"eval_{name}_loss" in row
        ]
        for name in ("validation", "test")
    }
    stop = curve["validation"].index(min(curve["validation"]))
    return {"last": curve["test"][-1], "stopped": curve["test"][stop], "curve": curve["test"]}


def _model(mix: Mix) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=256,
        hidden_size=mix.width,
        intermediate_size=3 * mix.width,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=mix.length,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
        initializer_range=0.08,
        use_cache=False,
    )
    return LlamaForCausalLM(config)


POOLS = ("half duplicates", "half duplicates, deduplicated", "no duplicates")


def pools(domains: Sequence[Sequence[bytes]], mix: Mix, seed: int) -> dict[str, Pool]:
    """Equal shares of the domains; no document is in two of pool, validation and test."""
    rng = random.Random(f"reweighting {seed}")  # noqa: S311 - no secret
    each = mix.pool // len(domains) + 2 * mix.evaluated // len(domains)
    drawn = [rng.sample(sorted(set(domain)), each) for domain in domains]
    documents = [document for same in zip(*drawn, strict=True) for document in same]
    validation, test = documents[: mix.evaluated], documents[mix.evaluated :][: mix.evaluated]
    unique = documents[2 * mix.evaluated :]
    half = unique[: len(unique) // 2]
    copies = [half[place % mix.copied] for place in range(len(unique) - len(half))]
    made = ([*half, *copies], list(dict.fromkeys([*half, *copies])), unique)
    return {name: (pool, validation, test) for name, pool in zip(POOLS, made, strict=True)}


@cache
def documents(data: Path, length: int) -> tuple[tuple[bytes, ...], ...]:
    """A window of each long enough text of four domains, and passages of a play; or AbsentError."""
    rng = random.Random(0)  # noqa: S311 - no secret
    found = []
    for _, texts in sorted(domains_of(data).items()):
        long = [text.encode() for text in texts if len(text.encode()) > length]
        starts = [rng.randrange(len(text) - length) for text in long]
        found.append(tuple(text[at : at + length] for text, at in zip(long, starts, strict=True)))
    try:
        play = (data / "lm_shakespeare" / "input.txt").read_bytes()
    except FileNotFoundError:
        raise AbsentError("no lm_shakespeare/input.txt in the data folder") from None
    passages = (play[at : at + length] for at in range(0, len(play) - length, length))
    return (*found, tuple(passages))

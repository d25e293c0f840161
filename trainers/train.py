"""The training stage: one arm of a comparison, from rows with weights to held-out bits per byte."""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from karat.errors import DataError
from karat.ledger_file import RUN_FILE, by_row, write_ledger
from karat.store import read_json
from karat.trainers.blocks import Blocks, Collate, blocks
from karat.trainers.evaluate import HeldOut, bits_per_byte
from karat.trainers.language_model import LanguageModel, language_model
from karat.trainers.settings import TrainSettings

if TYPE_CHECKING:
    import polars as pl

OnStep = Callable[[int, int], None]
METRICS = "metrics.json"


@dataclass(frozen=True)
class ArmResult:
    """What one arm reached, and what it saw."""

    seed: int
    final: float
    """Held-out bits per byte after the last step."""
    curve: list[dict[str, float | int | None]]
    """step, train_loss, bits_per_byte, effective_sample_size, largest_weight."""
    tokens: int
    """Tokens trained on, without padding."""
    rows: int
    """Rows trained on; `blocks` in all, of which `rows_split` rows needed more than one."""
    blocks: int
    rows_split: int
    left_out: dict[str, int]
    epochs: float
    heldout_rows: int
    heldout_bytes: int
    heldout_lossy: int
    """Held-out rows that the tokenizer does not give back exactly: not comparable in bits per byte."""
    parameters: int

    @classmethod
    def read(cls, out_dir: Path) -> ArmResult | None:
        """The result that an earlier call wrote, or None where it did not come to its end."""
        path = out_dir / METRICS
        found = read_json(path)
        try:
            return cls(**found) if isinstance(found, dict) else None
        except TypeError:  # cut short by hand, or written by another version
            return None


def train_arm(
    rows: pl.DataFrame,
    heldout: pl.DataFrame,
    settings: TrainSettings,
    seed: int,
    out_dir: str | Path,
    on_step: OnStep | None = None,
) -> ArmResult:
    """Train one model with an unmodified `transformers.Trainer` and evaluate it on held-out text.

    rows: `id`, `text`, `weight` (absent: 1; 0: left out), `group` (absent or all null: none) and, for
    `order: rank`, `stage`, a number, the smallest first. heldout: `id`, `text`.
    The static weights act through ReweightCallback, as does the reweighter.
    Writes model.safetensors with its config and tokenizer into `out_dir`, ledger.parquet with the visits,
    weights and losses of every row, and metrics.json last; each appears whole. The same inputs and seed
    give the same bytes on one machine with one number of threads. The caller's random state and logging
    level are as before. Raises DataError for rows that cannot be trained on, ConfigError for a model that
    cannot be loaded or diverges, WeightError where weights cannot reach the loss.
    """
    from transformers import set_seed

    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    (out / METRICS).unlink(missing_ok=True)
    texts = heldout_texts(heldout, settings.evaluate_rows)
    with _surroundings_kept():
        set_seed(seed)
        lm = language_model(settings.model, settings.max_length)
        held = HeldOut.encode(lm, texts)
        data = blocks(lm, rows, settings.max_length)
        if settings.order == "rank" and data.stages is None:
            raise DataError("train.order is rank, and the rows have no stage", hint="add a column `stage`")
        with tempfile.TemporaryDirectory(
            prefix=".partial-", suffix=f".{os.getpid()}.tmp", dir=out
        ) as partial:
            trainer, weighted, watch = _trainer(lm, data, held, settings, seed, partial, on_step)
            trainer.train()
            result = _result(trainer.state, watch.bits, lm, data, held, len(texts), seed)
            _keep_ledger(weighted.ledger_table(), data, rows, settings, seed, Path(partial))
            _write(lm, result, Path(partial), out)
    return result


def heldout_texts(heldout: pl.DataFrame, at_most: int | None) -> list[str]:
    """Non-empty held-out texts, at most so many, drawn by the hash of their id and sorted by it."""
    import polars as pl

    full = heldout.filter(pl.col("text").is_not_null() & (pl.col("text") != ""))
    if full.is_empty():
        raise DataError("there is no held-out text to evaluate on", where="reference")
    pairs = full.select("id", "text").rows()
    pairs.sort(key=lambda pair: hashlib.blake2b(pair[0].encode(), digest_size=16).digest())
    return [text for _, text in pairs[:at_most]]


def _trainer(
    lm: LanguageModel,
    data: Blocks,
    held: HeldOut,
    settings: TrainSettings,
    seed: int,
    folder: str,
    on_step: OnStep | None,
) -> tuple[Any, Any, Any]:
    from transformers import PrinterCallback, Trainer, TrainingArguments

    from karat.trainers.callback import ReweightCallback
    from karat.trainers.watch import Watch

    args = TrainingArguments(
        output_dir=folder,
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation,
        learning_rate=settings.rate,
        lr_scheduler_type="cosine",
        adam_beta2=0.95,
        warmup_steps=math.ceil(settings.warmup * settings.steps),
        seed=seed,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        log_level="error",
        include_num_input_tokens_seen="non_padding",
        dataloader_pin_memory=False,
    )
    weighted = ReweightCallback(
        settings.reweighter,
        weight="weight" if settings.use_weights else None,
        loss=settings.loss,
        reference=settings.reference,
        ledger=Path(folder) / RUN_FILE,  # by block; the one by row takes its place
    )
    watch = Watch(settings.evaluate_every, lambda: bits_per_byte(lm, held, settings.max_length), on_step)
    trainer = Trainer(
        model=lm.model,
        args=args,
        train_dataset=data.dataset,
        data_collator=Collate(lm.pad),
        callbacks=[weighted, watch],
    )
    trainer.remove_callback(PrinterCallback)
    if settings.order == "rank" and data.stages is not None:
        from karat.trainers.curriculum import CurriculumSampler
        from karat.trainers.follow import follow_curriculum

        order = CurriculumSampler(data.stages, ids=data.ids, pacing=settings.pacing, seed=seed)
        follow_curriculum(trainer, order)
    return trainer, weighted, watch


def _keep_ledger(
    table: pl.DataFrame, data: Blocks, rows: pl.DataFrame, settings: TrainSettings, seed: int, folder: Path
) -> None:
    """table: a line for each block. Rows without an id cannot be told apart, and have no ledger."""
    if data.of_row is None:
        (folder / RUN_FILE).unlink(missing_ok=True)
        return
    said = settings.model_dump(mode="json", include={"model", "steps", "reweighter", "use_weights", "order"})
    write_ledger(by_row(table, data.of_row, rows["id"]), folder / RUN_FILE, said | {"seed": seed})


def _result(
    state: Any, bits: dict[int, float], lm: LanguageModel, data: Blocks, held: HeldOut, texts: int, seed: int
) -> ArmResult:
    logs: dict[int, dict[str, Any]] = {}
    for entry in state.log_history:
        logs.setdefault(entry["step"], {}).update(entry)
    curve: list[dict[str, float | int | None]] = [
        {
            "step": step,
            # The logged loss is the weighted one, which arms with other weights cannot be compared by.
            "train_loss": logs.get(step, {}).get("karat/loss_unweighted", logs.get(step, {}).get("loss")),
            "bits_per_byte": bits.get(step),
            "effective_sample_size": logs.get(step, {}).get("karat/effective_sample_size"),
            "largest_weight": logs.get(step, {}).get("karat/largest_weight"),
        }
        for step in sorted({*bits, *logs})
    ]
    return ArmResult(
        seed=seed,
        final=bits[max(bits)],
        curve=curve,
        tokens=int(state.num_input_tokens_seen),
        rows=data.rows,
        blocks=len(data.dataset),
        rows_split=data.split,
        left_out=data.left_out,
        epochs=float(state.epoch),
        heldout_rows=texts,
        heldout_bytes=held.n_bytes,
        heldout_lossy=held.lossy,
        parameters=sum(parameter.numel() for parameter in lm.model.parameters()),
    )


def _write(lm: LanguageModel, result: ArmResult, partial: Path, out: Path) -> None:
    """Files first under the temporary folder, then each moved into place, the metrics last."""
    model: Any = lm.model
    model.save_pretrained(partial)
    lm.tokenizer.save_pretrained(partial)
    text = json.dumps(asdict(result), indent=1, allow_nan=False) + "\n"
    (partial / METRICS).write_text(text, encoding="utf-8")
    for path in sorted(partial.iterdir(), key=lambda path: (path.name == METRICS, path.name)):
        path.replace(out / path.name)


@contextmanager
def _surroundings_kept() -> Iterator[None]:
    """Seeding and silencing are ours; the caller's random state and logging come back afterwards."""
    import numpy as np
    import torch
    from transformers.utils import logging as transformers_logging

    logging: Any = transformers_logging  # its functions have no annotations
    python, numpy, level = random.getstate(), np.random.get_state(), logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    try:
        with torch.random.fork_rng():
            logging.set_verbosity_error()
            logging.disable_progress_bar()
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()

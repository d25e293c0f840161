"""The training stage: exact bits per byte, blocks that lose nothing, and an arm that repeats to the bit."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from karat.errors import ConfigError, DataError
from karat.ledger_file import read_ledger
from karat.reweight.online.loss_shape import LinUpper
from karat.trainers.blocks import Collate, blocks, split
from karat.trainers.byte_tokenizer import BOS, EOS, PAD, VOCABULARY, byte_tokenizer
from karat.trainers.evaluate import HeldOut, bits_per_byte, nats, windows
from karat.trainers.language_model import LONGEST, LanguageModel, language_model
from karat.trainers.settings import TrainSettings
from karat.trainers.train import ArmResult, heldout_texts, train_arm

TEXTS = ["def f():\n    return 1\n", "Grüße ∑ 🙂", "a", "", "x" * 100, "</s><s><pad>"]


class Fixed(torch.nn.Module):
    """A model that predicts the same logits everywhere."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = logits
        self.config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(vocab_size=len(logits)))

    def forward(self, input_ids: torch.Tensor, **kwargs: Any) -> SimpleNamespace:
        return SimpleNamespace(logits=self.logits.expand(*input_ids.shape, -1))


def fixed(logits: torch.Tensor) -> LanguageModel:
    return LanguageModel(Fixed(logits), byte_tokenizer(), BOS, EOS, PAD)


@pytest.fixture(scope="module")
def tiny() -> LanguageModel:
    torch.manual_seed(3)
    lm = language_model("tiny", 16)
    with torch.no_grad():  # an untrained model hardly looks at its context
        for parameter in lm.model.parameters():
            parameter.mul_(3)
    return lm


# --- tokens


@settings(deadline=None)
@given(st.text())
def test_bytes_are_tokens_and_nothing_is_lost(text: str) -> None:
    lm = fixed(torch.zeros(VOCABULARY))
    assert lm.encode([text]) == [list(text.encode())]
    assert lm.lossy([text], lm.encode([text])) == 0


def test_the_tokenizer_is_saved_and_loaded_like_any_other(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    byte_tokenizer().save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded("aé", add_special_tokens=False)["input_ids"] == [97, 0xC3, 0xA9]
    assert (loaded.bos_token_id, loaded.eos_token_id, loaded.pad_token_id) == (BOS, EOS, PAD)


# --- bits per byte


@settings(deadline=None)
@given(st.lists(st.text(max_size=60), min_size=1).filter(any), st.integers(1, 20), st.data())
def test_a_uniform_model_needs_log2_of_its_vocabulary(
    texts: list[str], max_length: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, max_length))
    lm = fixed(torch.zeros(256))
    found = bits_per_byte(lm, HeldOut.encode(lm, texts), max_length, stride)
    assert found == pytest.approx(8.0, rel=1e-6)


def test_a_unigram_model_equals_the_closed_form() -> None:
    logits = torch.linspace(-3, 2, VOCABULARY)
    logprob = (logits.double() - torch.logsumexp(logits.double(), 0)).tolist()
    raw = "".join(TEXTS).encode()
    wanted = -sum(count * logprob[byte] for byte, count in Counter(raw).items()) / math.log(2) / len(raw)
    lm = fixed(logits)
    for max_length in (1, 7, 64):
        assert bits_per_byte(lm, HeldOut.encode(lm, TEXTS), max_length) == pytest.approx(wanted, rel=1e-6)


@settings(deadline=None)
@given(st.lists(st.integers(0, 90), max_size=5), st.integers(1, 30), st.data())
def test_every_token_is_scored_once_with_the_promised_context(
    lengths: list[int], max_length: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, max_length))
    scored: Counter[tuple[int, int]] = Counter()
    for window in windows(lengths, max_length, stride):
        assert 0 < window.end - window.start <= max_length
        assert window.scored == 0 or window.scored - window.start >= max_length - stride
        scored.update((window.text, position) for position in range(window.scored, window.end))
    assert scored == Counter((text, at) for text, length in enumerate(lengths) for at in range(length))


def test_a_plain_loop_over_tokens_gives_the_same_nats(tiny: LanguageModel) -> None:
    ids = list(b"a text that is a little longer than sixteen tokens, \xe2\x88\x91")
    total, stride, length = 0.0, 5, 16
    tiny.model.requires_grad_(False)
    for window in windows([len(ids)], length, stride):
        for target in range(window.scored, window.end):
            seen = [BOS, *ids][window.start : target + 1]
            logits = tiny.model(input_ids=torch.tensor([seen])).logits[0, -1].double()
            total -= float(torch.log_softmax(logits, -1)[ids[target]])
    assert nats(tiny, [ids], length, stride) == pytest.approx(total, rel=1e-5)


def test_neighbours_padding_and_order_do_not_change_a_text(tiny: LanguageModel) -> None:
    tokens = tiny.encode(TEXTS)
    alone = math.fsum(nats(tiny, [ids], 16) for ids in tokens)
    assert nats(tiny, tokens, 16) == pytest.approx(alone, rel=1e-6)
    assert nats(tiny, tokens[::-1], 16) == pytest.approx(alone, rel=1e-6)


def test_evaluation_leaves_the_mode_alone(tiny: LanguageModel) -> None:
    tiny.model.train()
    nats(tiny, [[1, 2]], 16)
    assert tiny.model.training


def test_held_out_texts_without_a_byte_are_refused() -> None:
    with pytest.raises(DataError, match="no text"):
        HeldOut.encode(fixed(torch.zeros(VOCABULARY)), ["", ""])


# --- blocks


@settings(deadline=None)
@given(st.lists(st.integers(0, 255), max_size=80), st.integers(2, 20))
def test_every_token_of_a_row_is_a_target_once(ids: list[int], max_length: int) -> None:
    parts = list(split(ids, fixed(torch.zeros(VOCABULARY)), max_length))
    assert all(2 <= len(part) <= max_length for part in parts)
    assert [token for part in parts for token in part[1:]] == [*ids, EOS]
    assert parts[0][0] == BOS
    assert all(two[0] == one[-1] for one, two in pairwise(parts))


def frame(*rows: tuple[str, str | None, float | None, str | None]) -> pl.DataFrame:
    schema = {"id": pl.String, "text": pl.String, "weight": pl.Float64, "group": pl.String}
    return pl.DataFrame(list(rows), schema=schema, orient="row")


def test_blocks_carry_their_rows_weight_and_group() -> None:
    rows = frame(("a", "x" * 20, 2.0, "g"), ("b", "y", 0.5, "h"), ("c", "z", 0.0, "h"), ("d", None, 1.0, "g"))
    made = blocks(fixed(torch.zeros(VOCABULARY)), rows, 8)
    assert made.dataset["weight"][:] == [2.0, 2.0, 2.0, 0.5]
    assert made.dataset["group"][:] == ["g", "g", "g", "h"]
    assert made.dataset["input_ids"][3] == [BOS, ord("y"), EOS]
    assert (made.rows, made.split, made.left_out) == (2, 1, {"weight 0": 1, "no text": 1})


def test_blocks_without_weights_or_groups() -> None:
    made = blocks(fixed(torch.zeros(VOCABULARY)), frame(("a", "x", 1, None)).select("id", "text", "group"), 8)
    assert made.dataset.column_names == ["input_ids", "weight"]
    assert made.dataset["weight"][:] == [1.0]


@pytest.mark.parametrize(
    ("rows", "word"),
    [
        (frame(("a", "x", None, None)), "'a'.*null"),
        (frame(("a", "x", 0.0, None)), "no row to train on"),
        (frame(("a", "", 1.0, None)), "no row to train on"),
        (frame(), "no row to train on"),
        (frame(("a", "x", 1.0, "g"), ("b", "x", 1.0, None)), "'b'.*group"),
    ],
)
def test_rows_that_cannot_train_are_refused(rows: pl.DataFrame, word: str) -> None:
    with pytest.raises(DataError, match=word):
        blocks(fixed(torch.zeros(VOCABULARY)), rows, 8)


def test_collate_pads_and_masks() -> None:
    batch = Collate(PAD)([{"input_ids": [1, 2, 3]}, {"input_ids": [4, PAD]}])
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, PAD, PAD]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch["labels"].tolist() == [[1, 2, 3], [4, PAD, -100]]


def test_held_out_rows_are_drawn_by_id() -> None:
    rows = frame(*[(f"r{i}", f"text {i}", 1.0, None) for i in range(20)], ("n", None, 1.0, None))
    drawn = heldout_texts(rows, 5)
    assert len(drawn) == 5
    assert drawn == heldout_texts(rows.reverse(), 5) == heldout_texts(rows, None)[:5]
    assert len(heldout_texts(rows, None)) == 20


# --- an arm

POOL = frame(*[(f"p{i}", f"value {i} of the pool\n" * 3, 1.0 + i % 3, "ab"[i % 2]) for i in range(12)])
HELD = frame(*[(f"h{i}", f"value {i} held out", 1.0, None) for i in range(4)])
QUICK = TrainSettings(steps=5, batch_size=2, max_length=16, evaluate_every=2, seeds=(1,))


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def arm(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ArmResult, list[tuple[int, int]]]:
    out = tmp_path_factory.mktemp("arm")
    steps: list[tuple[int, int]] = []
    result = train_arm(POOL, HELD, QUICK, 1, out, lambda step, total: steps.append((step, total)))
    return out, result, steps


Arm = tuple[Path, ArmResult, list[tuple[int, int]]]


def test_an_arm_reports_what_it_did(arm: Arm) -> None:
    _, result, steps = arm
    assert [point["step"] for point in result.curve] == [1, 2, 3, 4, 5]
    assert [point["step"] for point in result.curve if point["bits_per_byte"] is not None] == [2, 4, 5]
    keys = {"step", "train_loss", "bits_per_byte", "effective_sample_size", "largest_weight"}
    for point in result.curve:
        assert set(point) == keys
        evaluated = point["step"] in (2, 4, 5)
        measured = [value for key, value in point.items() if key != "bits_per_byte" or evaluated]
        assert all(isinstance(value, int | float) and math.isfinite(value) for value in measured)
    assert result.final == result.curve[-1]["bits_per_byte"]
    assert 0 < result.tokens <= 5 * 2 * 16
    assert (result.rows, result.rows_split, result.heldout_rows, result.heldout_lossy) == (12, 12, 4, 0)
    assert result.heldout_bytes == sum(len(text) for text in HELD["text"])
    assert steps == [(step, 5) for step in range(1, 6)]


def test_an_arm_writes_a_model_that_loads(arm: Arm) -> None:
    out, result, _ = arm
    assert not list(out.glob(".partial-*"))
    assert ArmResult.read(out) == result
    assert json.loads((out / "metrics.json").read_text())["final"] == result.final
    lm = language_model(str(out), 16)
    held = HeldOut.encode(lm, heldout_texts(HELD, None))
    assert bits_per_byte(lm, held, 16) == pytest.approx(result.final, rel=1e-6)


def test_an_arm_keeps_the_ledger_of_its_rows(arm: Arm) -> None:
    """5 steps of 2 blocks; every row has 5 blocks of at most 16 tokens, of 66 or 69 bytes and two marks."""
    table = read_ledger(arm[0] / "ledger.parquet")
    assert table["id"].to_list() == POOL["id"].to_list()
    assert table["visits"].sum() == 5 * 2
    assert table["entries"].to_list() == [math.ceil((len(t.encode()) + 1) / 15) for t in POOL["text"]]
    seen = table.filter(pl.col("visits") > 0)
    # No reweighter: the weight of a row is its own, scaled to a mean of one over the blocks.
    blocks = pl.Series(table["entries"]).cast(pl.Float64)
    mean = (POOL["weight"] * blocks).sum() / blocks.sum()
    weights = seen.join(POOL, on="id", maintain_order="left")["weight"] / mean
    assert seen["mean_weight"].to_list() == pytest.approx(weights.to_list(), rel=1e-6)
    assert seen["last_step"].max() == 5
    # A model of 259 tokens that knows nothing yet is near their entropy.
    assert 3 < float(seen["first_loss"].max()) < 2 * math.log(259)  # type: ignore[arg-type]


def test_rows_that_cannot_train_are_in_the_ledger_with_no_entry(tmp_path: Path) -> None:
    rows = frame(("a", "some text " * 4, 1.0, None), ("b", "", 1.0, None), ("c", "more text", 0.0, None))
    train_arm(rows, HELD, QUICK.model_copy(update={"steps": 1}), 1, tmp_path)
    table = read_ledger(tmp_path / "ledger.parquet")
    assert table.select("id", "visits", "entries").rows() == [("a", 2, 3), ("b", 0, 0), ("c", 0, 0)]


def test_the_same_seed_gives_the_same_bits(arm: Arm, tmp_path: Path) -> None:
    state = torch.get_rng_state()
    again = train_arm(POOL, HELD, QUICK, 1, tmp_path / "again")
    assert again == arm[1]
    assert digest(tmp_path / "again") == digest(arm[0])
    ledgers = [(folder / "ledger.parquet").read_bytes() for folder in (tmp_path / "again", arm[0])]
    assert ledgers[0] == ledgers[1]
    assert torch.equal(state, torch.get_rng_state())
    assert train_arm(POOL, HELD, QUICK, 2, tmp_path / "other").final != arm[1].final


def test_weights_reach_the_model_unless_switched_off(arm: Arm, tmp_path: Path) -> None:
    off = QUICK.model_copy(update={"use_weights": False})
    train_arm(POOL, HELD, off, 1, tmp_path / "off")
    train_arm(POOL.with_columns(weight=1.0), HELD, QUICK, 1, tmp_path / "ones")
    assert digest(tmp_path / "off") == digest(tmp_path / "ones") != digest(arm[0])
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".bin", ".pt", ".pkl")]


def test_nothing_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    train_arm(POOL, HELD, QUICK.model_copy(update={"steps": 2}), 1, tmp_path)
    found = capfd.readouterr()
    assert (found.out, found.err) == ("", "")


def test_a_run_that_diverges_is_an_error_and_leaves_no_metrics(tmp_path: Path) -> None:
    wild = QUICK.model_copy(update={"learning_rate": 1e30, "warmup": 0.0})
    with pytest.raises(ConfigError, match="diverged"):
        train_arm(POOL, HELD, wild, 1, tmp_path)
    assert not (tmp_path / "metrics.json").exists()
    assert not list(tmp_path.iterdir())


def test_a_model_that_cannot_be_loaded_is_named(tmp_path: Path, arm: Arm) -> None:
    with pytest.raises(ConfigError, match="cannot load"):
        train_arm(POOL, HELD, QUICK.model_copy(update={"model": str(tmp_path)}), 1, tmp_path / "out")
    with pytest.raises(ConfigError, match=f"{LONGEST} positions"):
        language_model(str(arm[0]), LONGEST + 1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"seeds": []},
        {"seeds": [1, 1]},
        {"seeds": [-1]},
        {"controls": ["tokens", "tokens"]},
        {"controls": ["rows"]},
        {"steps": 0},
        {"max_length": 1},
        {"warmup": 1.5},
        {"learning_rate": 0},
        {"epochs": 3},
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        TrainSettings.model_validate(wrong)


def test_the_learning_rate_follows_the_model() -> None:
    assert TrainSettings().rate > TrainSettings(model="some/model").rate
    assert TrainSettings(learning_rate=0.1).rate == 0.1


def test_the_key_of_a_training_knows_the_models_files_and_the_reweighters_code(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    settings = TrainSettings(model=str(tmp_path), reweighter=LinUpper())
    before = settings.digest()
    assert settings.digest() == before
    assert settings.digest(seeds=[1]) != settings.digest(seeds=[2])
    (tmp_path / "model.safetensors").write_bytes(b"other weights")
    after = settings.digest()
    assert after != before
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LinUpper, "digest", lambda self: "another formula")
        assert settings.digest() != after


def test_a_missing_folder_is_known_from_a_hub_id(tmp_path: Path) -> None:
    missing = {name: TrainSettings(model=name).missing_folder() for name in ("tiny", "gpt2", "a/b")}
    assert missing == {"tiny": False, "gpt2": False, "a/b": False}
    assert TrainSettings(model="./a").missing_folder()
    assert TrainSettings(model=str(tmp_path / "none")).missing_folder()
    assert not TrainSettings(model=str(tmp_path)).missing_folder()


def test_a_loss_and_a_reference_reach_the_trainer(tmp_path: Path) -> None:
    from pydantic import ValidationError

    for wrong in ({"reweighter": "doremi"}, {"reference": "somewhere"}):
        with pytest.raises(ValidationError, match="reference"):
            TrainSettings.model_validate(wrong)
    plain = TrainSettings.model_validate({"loss": "ldr_kl"})
    other = TrainSettings.model_validate({"loss": {"kind": "ldr_kl", "temperature": 2.0}})
    assert plain.digest() != other.digest() != TrainSettings().digest()

"""Training in the order of a curriculum: the sampler, an unmodified Trainer, arms and their controls."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from karat.errors import ConfigError, DataError
from karat.flows.train import arms
from karat.reweight.online.group_dro import GroupDro
from karat.reweight.online.loss_shape import LinUpper
from karat.reweight.select.curriculum import Curriculum
from karat.selecting import ranked
from karat.trainers import CurriculumSampler, curriculum_sampler, follow_curriculum
from karat.trainers.blocks import blocks
from karat.trainers.callback import ReweightCallback
from karat.trainers.language_model import language_model
from karat.trainers.settings import TrainSettings
from karat.trainers.train import train_arm

STAGES = [2, 1, 1, 3, 2, 1, 3, 3, 3]


def epoch(sampler: CurriculumSampler, number: int) -> list[int]:
    sampler.set_epoch(number)
    return list(sampler)


def staged(order: list[int]) -> list[int]:
    return [STAGES[row] for row in order]


# --- the sampler


def test_every_epoch_begins_with_the_first_stage() -> None:
    sampler = CurriculumSampler(STAGES, pacing="every_epoch", seed=1)
    first, second = epoch(sampler, 0), epoch(sampler, 1)
    assert staged(first) == staged(second) == sorted(STAGES)
    assert first != second
    assert epoch(sampler, 0) == first
    assert epoch(CurriculumSampler(STAGES, pacing="every_epoch", seed=2), 0) != first
    assert len(sampler) == len(STAGES)


def test_once_goes_through_the_stages_over_the_whole_training() -> None:
    sampler = CurriculumSampler(STAGES, epochs=3)
    whole = [row for number in range(3) for row in epoch(sampler, number)]
    assert staged(whole) == [1] * 9 + [2] * 6 + [3] * 12
    assert set(Counter(whole).values()) == {3}
    assert sorted(whole[:3]) == sorted(whole[3:6]) == [1, 2, 5]  # a pass ends before a row comes again
    assert whole[:3] != whole[3:6] or whole[15:19] != whole[19:23]


def test_less_than_an_epoch_sees_every_stage() -> None:
    half = list(CurriculumSampler(STAGES * 4, epochs=0.5))[:18]
    assert Counter((STAGES * 4)[row] for row in half) == {1: 6, 2: 4, 3: 8}
    assert max(Counter(half).values()) == 1


def test_cumulative_by_hand() -> None:
    sampler = CurriculumSampler(STAGES, pacing="cumulative", epochs=2)
    whole = staged(epoch(sampler, 0) + epoch(sampler, 1))
    assert whole[:6] == [1] * 6  # the first third of 18 draws
    assert Counter(whole[6:11]) == {1: 3, 2: 2}  # one pass over stages 1 and 2, and a draw more
    assert set(whole[6:12]) == {1, 2}
    assert set(whole[12:]) <= {1, 2, 3}
    assert 3 in whole[12:]


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.integers(-3, 5), min_size=1, max_size=20),
    st.sampled_from(["once", "cumulative", "every_epoch"]),
    st.floats(0.1, 4.0),
    st.integers(0, 2**64 - 1),
    st.randoms(use_true_random=False),
)
def test_laws_of_the_sampler(stages: list[int], pacing: Any, epochs: float, seed: int, order: Any) -> None:
    ids = [f"r{n}" for n in range(len(stages))]
    sampler = CurriculumSampler(stages, ids=ids, pacing=pacing, epochs=epochs, seed=seed)
    drawn = [epoch(sampler, number) for number in range(3)]
    assert all(len(one) == len(sampler) == len(stages) for one in drawn)
    # another order of the rows: the same rows at the same places
    shuffle = list(range(len(stages)))
    order.shuffle(shuffle)
    other = CurriculumSampler(
        [stages[at] for at in shuffle],
        ids=[ids[at] for at in shuffle],
        pacing=pacing,
        epochs=epochs,
        seed=seed,
    )
    assert [[ids[shuffle[row]] for row in epoch(other, 2)]] == [[ids[row] for row in drawn[2]]]
    flat = [stages[row] for one in drawn for row in one]
    if pacing == "once":
        assert flat == sorted(flat)
    if pacing == "every_epoch":
        assert all([stages[row] for row in one] == sorted(stages) for one in drawn)
    if len(set(stages)) == 1:
        assert all(sorted(one) == list(range(len(stages))) for one in drawn)


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"stages": []}, "stage"),
        ({"stages": [1, None]}, "stage"),
        ({"stages": ["a"]}, "stage"),
        ({"stages": [1, 2], "ids": ["a"]}, "2 rows have 1"),
        ({"stages": [1], "pacing": "slow"}, "no pacing 'slow'"),
        ({"stages": [1], "epochs": 0}, "epochs 0"),
        ({"stages": [1], "seed": -1}, "seed -1"),
    ],
)
def test_what_cannot_be_ordered_is_refused(wrong: dict[str, Any], word: str) -> None:
    with pytest.raises(DataError, match=word):
        CurriculumSampler(**wrong)


def test_a_sampler_from_an_exported_data_set() -> None:
    table = {"id": list("abcd"), "rank": [3, 1, 9, 2], "curriculum.stage": [1.0, 1.0, 1.0, 2.0]}
    data = datasets.Dataset.from_dict(table)
    assert list(curriculum_sampler(data))[-1] == 3
    assert set(list(curriculum_sampler(data, stages=2))[:2]) == {1, 3}
    assert list(curriculum_sampler(data.remove_columns("curriculum.stage"), stages=4)) == [1, 3, 0, 2]
    mappings = [{"rank": rank} for rank in table["rank"]]
    assert list(curriculum_sampler(mappings, stages=4)) == [1, 3, 0, 2]
    with pytest.raises(DataError, match=r"no column 'curriculum\.stage'.*id"):
        curriculum_sampler(data.select_columns(["id"]))
    loader = torch.utils.data.DataLoader(
        list(range(4)), sampler=curriculum_sampler(data, stages=4), batch_size=2
    )
    assert [batch.tolist() for batch in loader] == [[1, 3], [0, 2]]


# --- an unmodified Trainer


class Seen:
    """A collator that notes the rows it is given."""

    def __init__(self) -> None:
        self.rows: list[int] = []

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        self.rows += [feature["input_ids"][0] for feature in features]
        ids = torch.tensor([feature["input_ids"] for feature in features])
        return {"input_ids": ids, "labels": ids}


def trainer(folder: Path, n: int = 10, weighted: bool = False, **changes: Any) -> tuple[Any, Seen]:
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
        )
    )
    rows = {
        "input_ids": [[row, row, row] for row in range(n)],
        "rank": list(range(n, 0, -1)),
        "weight": [1.0] * n,
    }
    options = {
        "per_device_train_batch_size": 2,
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "save_strategy": "no",
        "logging_strategy": "no",
        "remove_unused_columns": not weighted,
    }
    seen = Seen()
    made = Trainer(
        model=model,
        args=TrainingArguments(output_dir=str(folder), **options | changes),
        train_dataset=datasets.Dataset.from_dict(rows),
        data_collator=seen,
        callbacks=[ReweightCallback(LinUpper())] if weighted else [],
    )
    return made, seen


def test_the_trainer_follows_rank(tmp_path: Path) -> None:
    made, seen = trainer(tmp_path, num_train_epochs=2)
    assert follow_curriculum(made, stages=10) is made
    made.train()
    assert seen.rows == [row for row in range(9, -1, -1) for _ in range(2)]
    made, seen = trainer(tmp_path, weighted=True, num_train_epochs=2)
    follow_curriculum(made, stages=10, pacing="every_epoch").train()
    assert seen.rows == [*range(9, -1, -1)] * 2


def test_max_steps_and_accumulation_fill_the_training(tmp_path: Path) -> None:
    # 4 steps of 2 x 2 rows, 3 steps in an epoch of 10 rows: 1.33 epochs in 2 stages; the first stage gets 7
    made, seen = trainer(tmp_path, max_steps=4, gradient_accumulation_steps=2)
    follow_curriculum(made, stages=2).train()
    stages = [1 if row >= 5 else 2 for row in seen.rows]
    assert stages[:14] == [1] * 7 + [2] * 7


@pytest.mark.parametrize("pacing", ["once", "cumulative", "every_epoch"])
def test_resuming_in_the_middle_of_an_epoch(tmp_path: Path, pacing: Any) -> None:
    options = {
        "num_train_epochs": 3,
        "save_strategy": "steps",
        "save_steps": 1,
        "gradient_accumulation_steps": 2,
    }
    made, through = trainer(tmp_path, weighted=True, **options)
    follow_curriculum(made, stages=3, pacing=pacing, seed=4).train()
    state = copy.deepcopy(made.model.state_dict())
    for step, rest in ((2, 22), (4, 16), (6, 10)):  # in the first and second epoch, and between two
        made, resumed = trainer(tmp_path, weighted=True, **options)
        follow_curriculum(made, stages=3, pacing=pacing, seed=4)
        made.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
        assert resumed.rows == through.rows[-rest:]
        assert all(torch.equal(state[name], value) for name, value in made.model.state_dict().items())


def test_what_cannot_be_followed_is_refused(tmp_path: Path) -> None:
    made, _ = trainer(tmp_path, train_sampling_strategy="group_by_length")
    with pytest.raises(DataError, match="group_by_length"):
        follow_curriculum(made)
    made, _ = trainer(tmp_path)
    with pytest.raises(DataError, match="for 2 rows, the training set has 10"):
        follow_curriculum(made, CurriculumSampler([1, 2]))
    follow_curriculum(made)
    made.get_train_dataloader = lambda: torch.utils.data.DataLoader(made.train_dataset, collate_fn=Seen())
    with pytest.raises(DataError, match="does not draw its rows by the curriculum"):
        made.train()
    made, seen = trainer(tmp_path)
    follow_curriculum(follow_curriculum(made, stages=1), stages=10).train()
    assert seen.rows[:6] == [9, 9, 9, 8, 8, 8]


RANK_SCRIPT = """
import importlib.util, json, os, pathlib, sys
spec = importlib.util.spec_from_file_location("curriculum_training", sys.argv[1])
base = importlib.util.module_from_spec(spec)
sys.modules["curriculum_training"] = base
spec.loader.exec_module(base)
from karat.trainers import follow_curriculum
world, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
folder = pathlib.Path(sys.argv[2], str(world))
options = {"num_train_epochs": 3, "save_strategy": "steps", "save_steps": 1,
           "per_device_train_batch_size": 4 // world, "ddp_backend": "gloo" if world > 1 else None}
out = []
for resume in (None, folder / "checkpoint-5"):
    made, seen = base.trainer(folder, 12, **options)
    follow_curriculum(made, stages=3, pacing=sys.argv[3], seed=4)
    made.train(resume_from_checkpoint=resume and str(resume))
    out.append(seen.rows)
pathlib.Path(sys.argv[2], f"seen-{world}-{rank}.json").write_text(json.dumps(out))
"""


@pytest.mark.slow
@pytest.mark.parametrize("pacing", ["once", "every_epoch"])
def test_two_ranks_share_the_order_of_one(tmp_path: Path, pacing: str) -> None:
    script = tmp_path / "rank.py"
    script.write_text(RANK_SCRIPT)
    arguments = [str(script), __file__, str(tmp_path), pacing]
    subprocess.run([sys.executable, *arguments], check=True, timeout=300)
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=29733"]
    subprocess.run([*launch, *arguments], check=True, timeout=300)
    one, *two = (json.loads((tmp_path / f"seen-{name}.json").read_text()) for name in ("1-0", "2-0", "2-1"))
    for alone, first, second in zip(one, *two, strict=True):
        assert len(first) == len(second) == len(alone) // 2
        for step in range(len(alone) // 4):
            shared = [*first[2 * step : 2 * step + 2], *second[2 * step : 2 * step + 2]]
            assert shared == alone[4 * step : 4 * step + 4]
    assert one[0][20:] == one[1]


# --- arms

POOL = pl.DataFrame(
    {
        "id": [f"p{i}" for i in range(12)],
        "text": [f"value {i} of the pool\n" * (1 + i % 3) for i in range(12)],
        "group": pl.Series([None] * 12, dtype=pl.String),
        "d": [float(i * 7 % 12) for i in range(12)],
        "length.tokens": [10 + i % 3 for i in range(12)],
    }
)
HELD = pl.DataFrame({"id": ["h"], "text": ["value 99 held out\n"]})
QUICK = TrainSettings(
    steps=4, batch_size=2, max_length=16, evaluate_every=4, seeds=(1,), gradient_accumulation=2
)


def selection(part: Curriculum) -> pl.DataFrame:
    return ranked(part, POOL).join(POOL.drop("text", "group"), on="id", how="left", maintain_order="left")


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def test_arms_and_their_controls() -> None:
    settings = QUICK.model_copy(update={"order": "rank", "controls": ("tokens", "shuffled")})
    chosen = selection(Curriculum(by="d", budget="6 rows", stages=3))
    arm, control, same = arms(settings, chosen, POOL, 0)
    assert (arm.ordered, control.ordered, same.ordered) == (True, False, False)
    assert arm.rows.drop("stage").equals(same.rows)
    assert "stage" not in control.rows.columns
    stage = dict(zip(POOL["d"], chosen["curriculum.stage"], strict=True))
    assert {d: s for d, s in stage.items() if s} == {0: 1, 1: 1, 2: 2, 3: 2, 4: 3, 5: 3}
    assert arm.rows["stage"].to_list() == [stage[d] for d in chosen.filter(pl.col("weight") > 0)["d"]]
    two = arms(settings.model_copy(update={"stages": 2}), chosen, POOL, 0)[0]
    cut = dict(zip(chosen.filter(pl.col("weight") > 0)["d"], two.rows["stage"], strict=True))
    assert cut == {0: 1, 1: 1, 2: 1, 3: 2, 4: 2, 5: 2}
    plain = arms(QUICK, chosen, POOL, 0)[0]
    assert plain.rows.columns == ["id", "text", "group", "weight"]


def test_blocks_of_a_long_row_share_its_stage() -> None:
    lm = language_model("tiny", 8)
    rows = pl.DataFrame({"id": ["a", "b", "c"], "text": ["x" * 20, "", "z"], "stage": [2, 1, 3]})
    made = blocks(lm, rows, 8)
    assert made.stages is not None
    assert made.ids is not None
    assert made.stages.to_list() == [2, 2, 2, 3]
    assert made.ids.to_list() == ["0 a", "1 a", "2 a", "0 c"]
    assert made.dataset.column_names == ["input_ids", "weight"]
    with pytest.raises(DataError, match=r"row 'c'.*stage"):
        blocks(lm, rows.with_columns(stage=pl.Series([1, 1, None])), 8)


def test_an_arm_in_order_repeats_and_differs_from_a_shuffled_one(tmp_path: Path) -> None:
    ordered = QUICK.model_copy(update={"order": "rank", "reweighter": LinUpper()})
    chosen = selection(Curriculum(by="d", stages=3))
    arm = arms(ordered, chosen, POOL, 0)[0]
    train_arm(arm.rows, HELD, ordered, 1, tmp_path / "a")
    train_arm(arm.rows, HELD, ordered, 1, tmp_path / "b")
    train_arm(arm.rows, HELD, ordered.shuffled(), 1, tmp_path / "c")
    train_arm(arm.rows.drop("stage"), HELD, ordered.shuffled(), 1, tmp_path / "d")
    assert (
        digest(tmp_path / "a") == digest(tmp_path / "b") != digest(tmp_path / "c") == digest(tmp_path / "d")
    )
    with pytest.raises(DataError, match="no stage"):
        train_arm(arm.rows.drop("stage"), HELD, ordered, 1, tmp_path / "e")


def test_a_group_reweighter_gets_strata_of_difficulty(tmp_path: Path) -> None:
    data = {"reweighter": {"kind": "group_dro", "step_size": 1.0}, "groups": {"by": "d", "bins": 3}}
    settings = TrainSettings.model_validate(QUICK.model_dump() | {"reweighter": None} | data)
    chosen = selection(Curriculum(by="d"))
    arm = arms(settings, chosen, POOL, 0)[0]
    assert Counter(arm.rows["group"]) == {f"d {n} of 3": 4 for n in (1, 2, 3)}
    by = dict(zip(POOL["d"], arm.rows["group"], strict=True))
    assert (by[0.0], by[3.0], by[4.0], by[11.0]) == ("d 1 of 3", "d 1 of 3", "d 2 of 3", "d 3 of 3")
    result = train_arm(arm.rows, HELD, settings, 1, tmp_path / "strata")
    even = train_arm(arm.rows, HELD, QUICK, 1, tmp_path / "even")
    assert result.final != even.final


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"pacing": "cumulative"}, "pacing: is for `order: rank`"),
        ({"stages": 3}, "stages: is for `order: rank`"),
        ({"controls": ["shuffled"]}, "without its order"),
        ({"groups": {"by": "d"}}, "there is none"),
        ({"groups": {"by": "d"}, "reweighter": {"kind": "lin_upper"}}, "lin_upper does not"),
        ({"groups": {"by": "d", "bins": 1}, "reweighter": {"kind": "group_dro"}}, "greater"),
        ({"order": "rank", "pacing": "slow"}, "pacing"),
        ({"order": "up"}, "order"),
    ],
)
def test_settings_that_nobody_would_read_are_refused(wrong: dict[str, Any], word: str) -> None:
    with pytest.raises(ValidationError, match=word):
        TrainSettings.model_validate(wrong)


def test_the_default_has_not_changed() -> None:
    assert TrainSettings(order="shuffled").model_dump() == TrainSettings().model_dump()
    assert TrainSettings(order="rank", pacing="cumulative", stages=3).shuffled() == TrainSettings()
    assert TrainSettings(reweighter=GroupDro(), groups={"by": "x"}).groups.bins == 4  # type: ignore[arg-type,union-attr]


# --- a run

RUN = """
data: {path: pool.jsonl}
evaluate: {path: heldout.jsonl}
scorers: [{kind: length, tokenizer: bytes}]
select: {kind: curriculum, by: length.tokens, direction: hard_to_easy, stages: 2, budget: 8 rows}
train: {steps: 2, batch_size: 2, max_length: 32, seeds: [1], order: rank, controls: [shuffled],
        reweighter: group_dro, groups: {by: length.tokens, bins: 2}}
"""


@pytest.fixture
def run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rows = [{"text": f"row {i} " * (1 + i % 5), "rank": "mine", "source": "ab"[i % 2]} for i in range(12)]
    pl.DataFrame(rows).write_ndjson("pool.jsonl")
    pl.DataFrame({"text": ["held out row"]}).write_ndjson("heldout.jsonl")
    return tmp_path


def test_a_run_in_order(run_folder: Path) -> None:
    (run_folder / "ordered.yaml").write_text(RUN)
    environment = {**os.environ, "PREFECT_HOME": str(run_folder / "prefect")}
    command = [sys.executable, "-m", "karat", "run", "ordered.yaml"]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert ended.returncode == 0, ended.stderr
    done = json.loads((run_folder / "runs" / "ordered" / "run.json").read_text())
    frame = pl.read_parquet(run_folder / "runs" / "ordered" / "dataset" / "*.parquet")
    assert sorted(frame["rank"]) == list(range(1, 9))
    assert Counter(frame["curriculum.stage"]) == {1: 4, 2: 4}
    assert frame["original_rank"].to_list() == ["mine"] * 8
    tokens = frame.sort("rank")["length.tokens"].to_list()
    assert tokens == sorted(tokens, reverse=True)
    assert [arm["label"] for arm in done["training"]["arms"]] == ["selection", "same rows, shuffled"]


@pytest.mark.parametrize(
    ("overrides", "word"),
    [
        (["train.groups.by=lenght.tokens"], "no scorer writes.*length.tokens"),
        (["data={path: pool.jsonl, columns: {group: source}}"], "groups of its own"),
    ],
)
def test_groups_that_cannot_be_are_refused_early(run_folder: Path, overrides: list[str], word: str) -> None:
    from karat.config import from_yaml
    from karat.flows.run import pipeline

    with pytest.raises(ConfigError, match=f"(?s)train.groups.*{word}"):
        pipeline(from_yaml(RUN, "ordered", overrides))

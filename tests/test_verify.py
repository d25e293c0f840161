"""`verify_weights`: right set-ups pass, and every planted way to lose a weight is named."""

from __future__ import annotations

import copy
import gc
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import verify_setups as setups
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForSequenceClassification,
    LlamaForTokenClassification,
    default_data_collator,
)

from karat.errors import WeightError
from karat.reweight.online.group_dro import GroupDro
from karat.reweight.online.importance_sampling import ImportanceSampling
from karat.reweight.online.kl_dro import KlDro
from karat.reweight.online.ldr_kl import LdrKl
from karat.reweight.online.loss_shape import LinUpper
from karat.trainers.callback import ReweightCallback
from karat.trainers.verification.verify import UnverifiedError, Verification, verify_weights


@pytest.fixture(scope="module", autouse=True)
def _light_garbage() -> Iterator[None]:
    """accelerate collects garbage in every train(); what the imports brought need not be looked at."""
    gc.freeze()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    gc.unfreeze()


def verify(trainer: Any, **options: Any) -> Verification:
    return verify_weights(trainer, show=False, **options)


def value(found: Verification, name: str) -> str:
    return next(check.value for check in found.checks if check.name == name)


def gpt2() -> Any:
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=setups.VOCABULARY, n_embd=16, n_layer=1, n_head=2, n_positions=16)
    )


def lora() -> Any:
    from peft import LoraConfig, get_peft_model

    made = get_peft_model(
        setups.llama(), LoraConfig(r=2, target_modules=["q_proj", "v_proj"], lora_dropout=0.3)
    )
    for name, parameter in made.named_parameters():
        if "lora_B" in name:  # which starts at zero, and with it the gradient of every lora_A
            torch.nn.init.normal_(parameter, std=0.1)
    return made


class Listed(torch.utils.data.Dataset[Any]):
    def __init__(self, data: list[Any]) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        return self.data[index]


GOOD: dict[str, Any] = {
    "causal": lambda f: setups.make(f, callbacks=[ReweightCallback()]),
    "one row at a time": lambda f: setups.make(
        f, callbacks=[ReweightCallback()], per_device_train_batch_size=1, gradient_accumulation_steps=5
    ),
    "sample": lambda f: setups.make(f, callbacks=[ReweightCallback(reduction="sample")]),
    "online": lambda f: setups.make(f, callbacks=[ReweightCallback(LinUpper(temperature=0.4))]),
    "groups": lambda f: setups.make(
        f,
        [{**r, "group": "ab"[i % 2]} for i, r in enumerate(setups.rows(weights=setups.WEIGHTS))],
        [ReweightCallback(GroupDro(step_size=0.5))],
    ),
    "window": lambda f: setups.make(f, callbacks=[ReweightCallback(KlDro(temperature=0.5, scope="window"))]),
    "running": lambda f: setups.make(
        f, callbacks=[ReweightCallback(KlDro(temperature=0.5, scope="running"))]
    ),
    "drawn by norms": lambda f: setups.make(
        f,
        setups.rows(48, setups.WEIGHTS),
        [ReweightCallback(ImportanceSampling())],
        per_device_train_batch_size=12,
    ),
    "equal weights": lambda f: setups.make(f, setups.rows(), [ReweightCallback()]),
    "gpt2 with dropout": lambda f: setups.make(f, callbacks=[ReweightCallback()], model=gpt2()),
    "lora": lambda f: setups.make(f, callbacks=[ReweightCallback()], model=lora()),
    "checkpointing, clipping, workers": lambda f: setups.make(
        f,
        callbacks=[ReweightCallback()],
        gradient_checkpointing=True,
        max_grad_norm=0.01,
        dataloader_num_workers=1,
    ),
    "no loss hook": lambda f: setups.make(
        f, callbacks=[ReweightCallback()], model=setups.llama(setups.Hookless)
    ),
    "torch data set": lambda f: setups.make(
        f, Listed(setups.rows(weights=setups.WEIGHTS)), [ReweightCallback()]
    ),
    "by hand": lambda f: setups.by_hand(f),
}


@pytest.mark.parametrize("name", GOOD)
def test_right_set_ups_pass(tmp_path: Path, name: str) -> None:
    found = verify(GOOD[name](tmp_path))
    assert found.passed
    assert found.precision == "float32"
    assert float(value(found, "gradient, your weights").split()[0]) < 2e-5
    assert ("gradient, probe weights" in {check.name for check in found.checks}) == (name == "equal weights")
    assert all(abs(wanted - acted) < 1e-3 for _, _, wanted, acted in found.rows)
    assert len(found.rows) >= found.samples - 2


def test_sequence_classification(tmp_path: Path) -> None:
    data = [
        {"input_ids": row["input_ids"], "label": at % 3, "weight": setups.WEIGHTS[at % 12]}
        for at, row in enumerate(setups.rows(low=6, high=7))
    ]
    model = setups.llama(LlamaForSequenceClassification, num_labels=3)
    options = {"collator": default_data_collator}
    for callback in (ReweightCallback(), ReweightCallback(loss=LdrKl(temperature=0.5))):
        assert verify(setups.make(tmp_path, data, [callback], model=copy.deepcopy(model), **options)).passed
    # transformers issue 47688: the stock step is G times too long, and so is that of "stock"
    as_stock = ReweightCallback(accumulation="stock")
    with pytest.raises(UnverifiedError, match="scale off by 2: accumulation is not divided"):
        verify(setups.make(tmp_path, data, [as_stock], model=copy.deepcopy(model), **options))
    stock = setups.make(tmp_path, data, [], model=copy.deepcopy(model), **options)
    with pytest.raises(UnverifiedError, match="do not reach the loss"):
        verify(stock)


def test_heads_that_average_every_micro_batch_without_weights_are_named(tmp_path: Path) -> None:
    model = LlamaForTokenClassification(setups.llama().config)
    data = [
        {**row, "labels": [token % 2 for token in row["input_ids"]]}
        for row in setups.rows(weights=setups.WEIGHTS)
    ]
    with pytest.raises(UnverifiedError, match="the unweighted one, a mean of every micro-batch"):
        verify(setups.make(tmp_path, data, [], model=model))


def test_without_memory_for_float64_the_copy_is_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = setups.make(tmp_path, callbacks=[ReweightCallback()])
    size = sum(parameter.numel() for parameter in trainer.model.parameters())
    monkeypatch.setattr("karat.trainers.verification.oracle.free_bytes", lambda device: 9 * size)
    found = verify(trainer)
    assert found.passed
    assert found.copied_bytes == 4 * size
    assert any("float32" in note for note in found.notes)


def test_bfloat16_has_a_tolerance_of_its_own(tmp_path: Path) -> None:
    found = verify(setups.make(tmp_path, callbacks=[ReweightCallback()], bf16=True))
    assert found.passed
    assert (found.precision, found.tolerance) == ("bfloat16", 0.05)
    lost = verify(setups.by_hand(tmp_path, "lost", bf16=True), raises=False)
    assert "do not reach the loss" in str(lost.reason)


def test_coarse_arithmetic_names_no_other_row(tmp_path: Path) -> None:
    class Root(setups.Weighing):
        def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
            batch = super().__call__(features)
            return {**batch, "weights": batch["weights"].sqrt()}

    found = verify(setups.by_hand(tmp_path, collator=Root(setups.WEIGHTS), bf16=True), raises=False)
    assert "no simple explanation" in str(found.reason)


LOST: dict[str, tuple[Any, str]] = {
    "the stock trainer": (lambda f: setups.make(f), "do not reach the loss: the gradient is the unweighted"),
    "nothing in the data": (lambda f: setups.make(f, setups.rows()), "do not reach the loss"),
    "collator reorders": (
        lambda f: setups.make(f, callbacks=[ReweightCallback()], collator=setups.reverse),
        "weights sit on other rows of their batch",
    ),
    "label smoothing": (
        lambda f: setups.make(f, callbacks=[ReweightCallback()], label_smoothing_factor=0.1),
        "label_smoothing_factor",
    ),
    "smoothing without karat": (
        lambda f: setups.make(f, label_smoothing_factor=0.1),
        "no weighted sum .*label_smoothing_factor=0.1",
    ),
    "smoothing by hand": (lambda f: setups.by_hand(f, "smoothing"), "no weighted sum of the rows' own"),
    "entry dropped": (
        lambda f: setups.make(f, callbacks=[ReweightCallback()], cls=setups.Drops),
        "row numbers",
    ),
    "stock loss put back": (
        lambda f: setups.make(f, callbacks=[ReweightCallback(), setups.StockLoss()]),
        "row numbers",
    ),
    "loss tripled": (
        lambda f: setups.make(f, callbacks=[ReweightCallback()], cls=setups.Triples),
        "scale off by 3",
    ),
    "gradient halved": (
        lambda f: setups.make(
            f, callbacks=[ReweightCallback()], cls=setups.Halves, gradient_accumulation_steps=3
        ),
        "scale off by 0.5",
    ),
    "gradient doubled by a callback": (
        lambda f: setups.make(
            f, callbacks=[ReweightCallback(), setups.Doubles()], gradient_accumulation_steps=3
        ),
        "scale off by 2",
    ),
    "lost": (
        lambda f: setups.by_hand(f, "lost"),
        "do not reach the loss: the gradient is the unweighted one",
    ),
    "late": (lambda f: setups.by_hand(f, "late"), "from step 2 on the gradient is the unweighted one"),
    "twice": (lambda f: setups.by_hand(f, "twice"), "applied twice"),
    "per batch": (lambda f: setups.by_hand(f, "per batch"), "normalised within each micro-batch"),
    "sequence": (lambda f: setups.by_hand(f, "sequence"), "each sequence is averaged"),
    "accumulation": (
        lambda f: setups.by_hand(f, "accumulation"),
        "scale off by 2: accumulation is not divided",
    ),
    "zeros counted": (lambda f: setups.by_hand(f, "zeros counted"), "weight 0 are still counted"),
    "missing": (lambda f: setups.by_hand(f, "missing"), "rows that have a weight do not reach the loss"),
    "not scaled": (
        lambda f: setups.by_hand(f, collator=setups.Weighing([1.0])),
        "not scaled to mean one",
    ),
    "fused": (
        lambda f: setups.make(f, callbacks=[ReweightCallback()], model=setups.llama(setups.Fused)),
        "without calling self.loss_function",
    ),
}


@pytest.mark.parametrize("name", LOST)
def test_lost_weights_are_caught_and_named(tmp_path: Path, name: str) -> None:
    build, reason = LOST[name]
    with pytest.raises(UnverifiedError, match=reason) as caught:
        verify(build(tmp_path))
    assert caught.value.hint
    assert caught.value.verification is not None
    assert not caught.value.verification.passed


def test_weights_read_before_a_shuffle_are_caught(tmp_path: Path) -> None:
    trainer = setups.make(tmp_path, callbacks=[ReweightCallback()])
    before = trainer.train_dataset["weight"][:]
    trainer.train_dataset = trainer.train_dataset.shuffle(seed=1)
    with pytest.raises(UnverifiedError, match="have the weight of another row of the training set"):
        verify(trainer, weights=before)
    assert verify(trainer).passed


def test_weights_one_row_off_are_caught(tmp_path: Path) -> None:
    trainer = setups.make(tmp_path, callbacks=[ReweightCallback()])
    moved = np.roll(trainer.train_dataset["weight"][:], 1)
    with pytest.raises(UnverifiedError, match="the weight of the row 1 after it"):
        verify(trainer, weights=moved)


def test_a_column_of_whole_numbers_is_caught(tmp_path: Path) -> None:
    data = setups.rows(weights=[float(round(w)) for w in setups.WEIGHTS])
    meant = [setups.WEIGHTS[at % 12] for at in range(len(data))]
    with pytest.raises(UnverifiedError, match="weights are rounded to whole numbers"):
        verify(setups.make(tmp_path, data, [ReweightCallback()]), weights=meant)


def test_a_loader_of_other_rows_is_caught(tmp_path: Path) -> None:
    class Elsewhere(type(setups.by_hand(tmp_path))):  # type: ignore[misc]
        def get_train_dataloader(self) -> Any:
            self.train_dataset, held = self.train_dataset.shuffle(seed=2), self.train_dataset
            try:
                return super().get_train_dataloader()
            finally:
                self.train_dataset = held

    trainer = setups.make(
        tmp_path, cls=Elsewhere, collator=setups.Weighing(setups.WEIGHTS), remove_unused_columns=False
    )
    found = verify(trainer, raises=False)
    served = next(check for check in found.checks if check.name.startswith("rows served"))
    assert served.passed is False
    assert "shuffled after" in served.detail
    assert not found.passed


def state_of(trainer: Any) -> dict[str, Any]:
    model = trainer.model
    return {
        "hooks": [
            (name, len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks), sorted(vars(m)))
            for name, m in model.named_modules()
        ],
        "parameters": {n: p.detach().clone() for n, p in model.state_dict().items()},
        "gradients": [p.grad for p in model.parameters()],
        "modes": [m.training for m in model.modules()],
        "config": copy.deepcopy(model.config.to_dict()),
        "args": copy.deepcopy(trainer.args.to_dict()),
        "names": sorted(vars(trainer)),
        "state": copy.deepcopy(vars(trainer.state)),
        "control": copy.deepcopy(vars(trainer.control)),
        "callbacks": list(trainer.callback_handler.callbacks),
        "draws": torch.get_rng_state(),
        "optimizer": trainer.optimizer,
    }


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[name], b[name]) for name in a)
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    return bool(a == b)


class Counts(setups.TrainerCallback):  # type: ignore[name-defined, misc]
    """A user's callback with a memory."""

    def __init__(self) -> None:
        self.steps, self.seen = 0, []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steps += 1
        self.seen.append(state.global_step)
        (Path(args.output_dir) / "note.txt").write_text("here")


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_left_behind(tmp_path: Path, fails: bool) -> None:
    counts = Counts()
    seen = counts.seen
    kind = setups.Triples if fails else setups.Trainer
    trainer = setups.make(
        tmp_path,
        callbacks=[ReweightCallback(LinUpper()), counts],
        model=gpt2(),
        cls=kind,
        save_strategy="steps",
    )
    before, files = state_of(trainer), sorted(tmp_path.rglob("*"))
    assert verify(trainer, raises=False).passed is not fails
    after = state_of(trainer)
    for name, wanted in before.items():
        assert same(wanted, after[name]), name
    assert sorted(tmp_path.rglob("*")) == files
    assert (counts.steps, seen, counts.seen is seen) == (0, [], True)


@pytest.mark.parametrize("optimizer", ["made", "given"])
def test_training_afterwards_gives_the_same_bits(tmp_path: Path, optimizer: str) -> None:
    def train(checked: bool) -> Any:
        model = gpt2()  # with dropout: random numbers would tell
        options: dict[str, Any] = {
            "model": model,
            "max_grad_norm": 0.5,
            "optim": "adamw_torch",
            "logging_strategy": "steps",
        }
        if optimizer == "given":
            adam = torch.optim.AdamW(model.parameters(), lr=0.05)
            schedule = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: 0.5**step)
            options["optimizers"] = (adam, schedule)
        trainer = setups.make(tmp_path, callbacks=[ReweightCallback(LinUpper())], logging_steps=1, **options)
        if checked:
            assert verify(trainer).passed
        trainer.train()
        logs = [
            {k: v for k, v in entry.items() if "per_second" not in k and "runtime" not in k}
            for entry in trainer.state.log_history
        ]
        return model.state_dict(), logs

    (plain, logs), (checked, again) = train(False), train(True)
    assert same(plain, checked)
    assert logs == again


def test_the_users_own_error_comes_through_and_leaves_nothing(tmp_path: Path) -> None:
    class Broken(setups.Trainer):  # type: ignore[name-defined, misc]
        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            raise ZeroDivisionError("mine")

    trainer = setups.make(tmp_path, callbacks=[ReweightCallback()], cls=Broken)
    before = state_of(trainer)
    with pytest.raises(ZeroDivisionError, match="mine"):
        verify(trainer)
    after = state_of(trainer)
    assert all(same(before[name], after[name]) for name in before)


def test_what_cannot_be_checked_is_refused(tmp_path: Path) -> None:
    callback = [ReweightCallback()]
    with pytest.raises(WeightError, match="at least 1"):
        verify(setups.make(tmp_path, callbacks=callback), steps=0)
    with pytest.raises(WeightError, match="23 weights for 24 rows"):
        verify(setups.make(tmp_path, callbacks=callback), weights=[1.0] * 23)
    with pytest.raises(WeightError, match="row 1 is -2"):
        verify(setups.make(tmp_path, callbacks=callback), weights=[1.0, -2.0] * 12)
    normed = setups.llama()
    normed.norm = torch.nn.BatchNorm1d(2)
    with pytest.raises(WeightError, match="mixes the rows"):
        verify(setups.make(tmp_path, callbacks=callback, model=normed))


def test_last_parameters_alone(tmp_path: Path) -> None:
    whole = verify(setups.make(tmp_path, callbacks=[ReweightCallback()]))
    last = verify(setups.make(tmp_path, callbacks=[ReweightCallback()]), parameters="last")
    assert last.passed
    assert last.parameters <= whole.parameters
    with pytest.raises(UnverifiedError, match="do not reach the loss"):
        verify(setups.make(tmp_path), parameters="last")


RANKS = """
import os, sys, torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import verify_setups as setups
from karat.reweight.online.loss_shape import LinUpper
from karat.trainers.callback import ReweightCallback
from karat.trainers.verification.verify import verify_weights
folder = Path(sys.argv[2])
options = {"ddp_backend": "gloo", "per_device_train_batch_size": 2}
cases = {
    "static": lambda: setups.make(folder, callbacks=[ReweightCallback()], **options),
    "planted": lambda: setups.make(folder, setups.rows(), [ReweightCallback()], **options),
    "online": lambda: setups.make(folder, callbacks=[ReweightCallback(LinUpper(temperature=0.4))], **options),
    "sample": lambda: setups.make(folder, callbacks=[ReweightCallback(reduction="sample")], **options),
    "own counts": lambda: setups.make(
        folder, callbacks=[ReweightCallback()], average_tokens_across_devices=False, **options),
    "rank": lambda: setups.by_hand(folder, "rank", **options),
    "lost": lambda: setups.by_hand(folder, "lost", **options),
}
for name, make in cases.items():
    trainer = make()
    found = verify_weights(trainer, raises=False, show=False)
    agree = next(check for check in found.checks if check.name == "ranks agree")
    with (folder / f"rank{os.environ['RANK']}.txt").open("a") as out:
        print(name, found.passed, agree.passed, found.samples, found.reason, file=out, sep="|")
    if name in ("static", "online"):
        trainer.train()
        plain = make()
        plain.train()
        same = all(map(torch.equal, trainer.model.state_dict().values(), plain.model.state_dict().values()))
        with (folder / f"rank{os.environ['RANK']}.txt").open("a") as out:
            print(name, "then trained", same, file=out, sep="|")
"""


@pytest.mark.slow
def test_two_ranks(tmp_path: Path) -> None:
    script = tmp_path / "ranks.py"
    script.write_text(RANKS)
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=29757"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    here = str(Path(__file__).parent)
    subprocess.run([*launch, str(script), here, str(tmp_path)], check=True, timeout=540, env=environment)
    first, second = ((tmp_path / f"rank{rank}.txt").read_text() for rank in (0, 1))
    assert first == second
    told = [line.split("|") for line in first.splitlines()]
    verdicts = {line[0]: line for line in told if len(line) == 5}
    for name in ("static", "planted", "online", "sample", "own counts"):
        assert verdicts[name][1:4] == ["True", "True", "16"], verdicts[name]
    assert "factor of its own for each rank: 1, 2" in verdicts["rank"][4]
    assert "do not reach the loss" in verdicts["lost"][4]
    assert [line for line in told if len(line) == 3] == [
        ["static", "then trained", "True"],
        ["online", "then trained", "True"],
    ]


MAKER = """
import sys
from pathlib import Path
sys.path.insert(0, {here!r})
import torch
import verify_setups as setups

def good():
    from karat.trainers import ReweightCallback
    torch.set_num_threads(1)
    return setups.make(Path({folder!r}), callbacks=[ReweightCallback()])

def twice():
    torch.set_num_threads(1)
    return setups.by_hand(Path({folder!r}), "twice")

def nothing():
    return None

def crash():
    return 1 / 0

number = 3
"""


def karat(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "NO_COLOR": "1", "COLUMNS": "200"}
    command = [sys.executable, "-m", "karat", "verify", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment, timeout=300)


def test_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    from karat.cli import main

    (tmp_path / "train.py").write_text(
        MAKER.format(here=str(Path(__file__).parent), folder=str(tmp_path / "out"))
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["karat", "verify", *arguments])
        with pytest.raises(SystemExit) as stopped:
            main()
        said = capsys.readouterr()
        return int(stopped.value.code or 0), said.out, said.err

    code, out, _ = run("train.py:good", "--steps", "1")
    assert code == 0
    assert "weights reach the gradient" in out
    assert "1 steps, 6 rows" in out
    code, out, _ = run("train.py:twice")
    assert code == 1
    assert "weights are applied twice" in out
    for target, said in (
        ("train.py:crash", "ZeroDivisionError"),
        ("train.py:nothing", "returned NoneType, not a Trainer"),
        ("train.py:number", "not a function"),
        ("train.py:god", "did you mean 'good'?"),
        ("nowhere.py:good", "there is no such file"),
        ("no_such_module_here:good", "no_such_module_here: importing it raised ModuleNotFoundError"),
        ("train.py", "FILE.py:FUNCTION"),
        ("none.yaml", "none.yaml"),
    ):
        code, _, err = run(target)
        assert code == 2, target
        assert said in err, (target, err)
        assert "Traceback" not in err


@pytest.mark.slow
def test_a_config_on_the_command_line(tmp_path: Path) -> None:
    lines = [f'{{"id": "{i}", "text": "row number {i} tells {"a lot " * (i % 7)}"}}' for i in range(80)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    (tmp_path / "c.yaml").write_text(
        "name: t\ndata: {path: rows.jsonl}\nreference: {path: rows.jsonl}\nevaluate: 50%\n"
        "scorers: [{kind: length}]\nselect: {kind: top_k, by: length.characters, budget: 50%}\n"
        "train: {model: tiny, steps: 4, batch_size: 4, max_length: 32, reweighter: {kind: lin_upper}}\n"
    )
    done = karat("c.yaml", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "gradient, probe weights" in done.stdout
    (tmp_path / "d.yaml").write_text((tmp_path / "c.yaml").read_text().rsplit("train", 1)[0])
    missing = karat("d.yaml", folder=tmp_path)
    assert missing.returncode == 2
    assert "no training stage" in missing.stderr


class Nudges(setups.TrainerCallback):  # type: ignore[name-defined, misc]
    """Moves the parameters by itself after every step, as averaging of weights does."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        with torch.no_grad():
            for parameter in kwargs["model"].parameters():
                parameter += 1.0


def test_parameters_that_a_callback_moves_are_put_back(tmp_path: Path) -> None:
    trainer = setups.make(tmp_path, callbacks=[ReweightCallback(), Nudges()])
    before = state_of(trainer)
    assert verify(trainer, steps=1).passed
    after = state_of(trainer)
    assert all(same(before[name], after[name]) for name in before)

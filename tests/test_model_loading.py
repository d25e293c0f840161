"""Models from folders, adapters, the Hub and Python: what loads, what is refused, what stays in memory."""

from __future__ import annotations

import gc
import importlib.util
import json
import shutil
import threading
import weakref
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
import transformers as tf
from hub_stub import HubStub
from pydantic import ValidationError
from tiny_models import tiny_model, tiny_pair

import karat
from karat.errors import ScoreError
from karat.parts import Scorer
from karat.registry import load
from karat.score_engine import score_view
from karat.scorers.loss import Loss
from karat.scorers.model import holding, loading
from karat.scorers.model.runner import Runner
from karat.scorers.perplexity import Perplexity

TEXTS = [f"text {number} of some length {'x' * (number % 7)}" for number in range(24)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model("llama"), tmp_path / "model"))


@pytest.fixture(autouse=True)
def nothing_held() -> None:
    holding.release()


def nats(scorer: Scorer, **how: Any) -> list[float | None]:
    return karat.score(scorer, TEXTS, **how)["perplexity.nats"].to_list()


def test_a_folder_with_a_pickle_only_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ScoreError, match=r"holds no \*.safetensors; pytorch_model.bin is a pickle"):
        nats(Perplexity(model=str(folder)))


def test_a_folder_without_a_tokenizer_is_refused(folder: Path) -> None:
    for file in folder.glob("*token*"):
        file.unlink()
    with pytest.raises(ScoreError, match=r"tokenizer"):
        nats(Perplexity(model=str(folder)))


def test_encoders_and_encoder_decoders_are_refused(tmp_path: Path) -> None:
    tokenizer = tiny_pair("llama")[1]
    t5 = tf.T5ForConditionalGeneration(
        tf.T5Config(vocab_size=300, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    )
    bert = tf.BertLMHeadModel(
        tf.BertConfig(
            vocab_size=300, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
        )
    )
    # Weights as drawn at the start hardly look at other tokens at all.
    draw = torch.Generator().manual_seed(0)
    for parameter in bert.parameters():
        if parameter.dim() == 2:
            parameter.data.copy_(0.3 * torch.randn(parameter.shape, generator=draw))
    for made, told in ((t5, "is an encoder-decoder"), (bert, "sees the tokens that follow|encoder")):
        kind = type(made).__name__
        made.save_pretrained(tmp_path / kind)
        tokenizer.save_pretrained(tmp_path / kind)
        for model in (str(tmp_path / kind), (made, tokenizer)):
            with pytest.raises(ScoreError, match=told):
                nats(Perplexity(model=model))


def test_a_pair_without_its_halves_is_refused() -> None:
    made, tokenizer = tiny_pair("llama")
    for wrong in ((made, None), (None, tokenizer), made):
        with pytest.raises(ValidationError, match="tokenizer"):
            Perplexity(model=wrong)


class Divided(tf.LlamaForCausalLM):
    """Divides the hidden states before the output layer, as some architectures do."""

    def forward(self, input_ids: Any = None, **given: Any) -> Any:
        out = super().forward(input_ids=input_ids, **given)
        out.logits = out.logits / 3
        return out


def test_a_model_that_shapes_its_logits_in_its_own_way_is_refused() -> None:
    made, tokenizer = tiny_pair("llama", "float32")
    own = Divided(made.config)
    own.load_state_dict(made.state_dict())
    with pytest.raises(ScoreError, match="logits of Divided are not its output layer times"):
        nats(Perplexity(model=(own, tokenizer)))


def test_code_that_comes_with_a_model_is_not_run(folder: Path) -> None:
    (folder / "own.py").write_text("raise SystemExit('ran')\n")
    config = tf.AutoConfig.from_pretrained(folder).to_dict()
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ScoreError, match=r"trust_remote_code|custom code|own"):
        nats(Perplexity(model=str(folder)))


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    peft: Any = pytest.importorskip("peft")
    model = tf.AutoModelForCausalLM.from_pretrained(tiny_model("llama"), dtype=torch.float32)
    torch.manual_seed(3)
    adapted = peft.get_peft_model(
        model, peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    )
    adapted.save_pretrained(tmp_path / "adapter")
    merged = adapted.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    tiny_pair("llama")[1].save_pretrained(tmp_path / "merged")
    return tmp_path / "adapter"


def test_an_adapter_equals_the_merged_model(adapter: Path) -> None:
    plain = Perplexity(model=tiny_model("llama"))
    adapted = Perplexity(model=tiny_model("llama"), adapter=str(adapter))
    merged = Perplexity(model=str(adapter.with_name("merged")))
    assert nats(adapted) == pytest.approx(nats(merged), rel=1e-6)
    assert nats(adapted) != pytest.approx(nats(plain), rel=1e-3)
    assert adapted.digest() != plain.digest()


def test_an_adapter_that_is_a_pickle_is_refused(adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(ScoreError, match=r"adapter_model\.safetensors"):
        nats(Perplexity(model=tiny_model("llama"), adapter=str(adapter)))


def test_an_adapter_and_a_dtype_are_for_models_that_karat_loads() -> None:
    pair = tiny_pair("llama", "float32")
    with pytest.raises(ScoreError, match="`adapter` and `quantization`"):
        nats(Perplexity(model=pair, adapter="some/where"))
    with pytest.raises(ScoreError, match="the loaded model is in float32, not bfloat16"):
        nats(Perplexity(model=pair, dtype="bfloat16"))


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is not None, reason="bitsandbytes is there")
@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_quantised_loading_says_what_it_needs(bits: str) -> None:
    with pytest.raises(ScoreError, match="needs bitsandbytes, which is not installed"):
        nats(load({"kind": "perplexity", "model": tiny_model("llama"), "quantization": bits}, Scorer))


@pytest.mark.parametrize(("dtype", "near"), [("float64", 1e-5), ("bfloat16", 0.1), ("float16", 0.02)])
def test_a_folder_in_another_dtype(dtype: Any, near: float) -> None:
    exact = nats(Perplexity(model=tiny_model("llama"), dtype="float32"))
    assert nats(Perplexity(model=tiny_model("llama"), dtype=dtype)) == pytest.approx(exact, abs=near)


def test_automatic_dtype_is_part_of_the_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = Perplexity(model=tiny_model("llama"))
    on_cpu = scorer.digest()
    assert Perplexity(model=tiny_model("llama"), device="cpu").digest() == on_cpu
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert scorer.digest() != on_cpu
    assert Perplexity(model=tiny_model("llama"), device="cpu").digest() == on_cpu


def test_a_hub_id_loads_from_the_hub_at_its_commit(folder: Path, tmp_path: Path) -> None:
    hub = HubStub()
    try:
        with hub.patched(tmp_path / "cache"):
            files = {file.name: file.read_bytes() for file in folder.iterdir()}
            files["pytorch_model.bin"] = b"pickled"
            commit = hub.create("someone/tiny", files, kind="models").head
            scorer = Perplexity(model="someone/tiny")
            assert scorer.environment()["model"] == f"someone/tiny@{commit.sha}"
            found = nats(scorer)
            with pytest.raises(ScoreError, match="not to be had from the Hub"):
                Perplexity(model="someone/else").digest()
            with pytest.raises(ScoreError, match="cannot load the model 'someone/else'"):
                nats(Perplexity(model="someone/else"))
            assert not [call for call in hub.calls if "pytorch_model" in call.path]
    finally:
        hub.close()
    assert found == nats(Perplexity(model=str(folder)))


def test_replicas_share_the_chunks_and_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    one = nats(Perplexity(model=tiny_model("llama"), device="cpu"), workers=1, chunk_rows=3)
    used: set[int] = set()
    both = threading.Barrier(2, timeout=30)
    run = Runner.run

    def meeting(self: Runner, *given: Any) -> None:
        if id(self) not in used:
            used.add(id(self))
            both.wait()  # each replica has a chunk at the same time
        run(self, *given)

    monkeypatch.setattr(Runner, "run", meeting)
    two = nats(Perplexity(model=tiny_model("llama"), device="cpu,cpu"), workers=2, chunk_rows=3)
    assert two == one
    assert len(used) == 2


def test_a_device_that_is_not_there_is_named() -> None:
    for device, told in (("cuda:99", "there is no cuda:99"), ("tea", "names no device")):
        with pytest.raises(ScoreError, match=told):
            nats(Perplexity(model=tiny_model("llama"), device=device))


def test_a_model_from_python_is_left_as_it_was() -> None:
    made, tokenizer = tiny_pair("llama", "float32")
    made.config.attention_dropout = 0.5
    made.train()
    made.model.layers[0].eval()
    scorer = Perplexity(model=(made, tokenizer))
    first = nats(scorer, workers=2, chunk_rows=3)
    assert first == nats(scorer, workers=1, chunk_rows=3), "no dropout"
    assert made.training
    assert made.lm_head.training
    assert not made.model.layers[0].training
    assert all(parameter.requires_grad for parameter in made.parameters())
    assert made.dtype == torch.float32
    there = weakref.ref(made)
    del made, scorer
    holding.release()
    gc.collect()
    assert there() is None


def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    seen: list[str] = []
    real = loading.load

    def counting(scorer: Any, kind: str = "causal") -> Any:
        seen.append(Path(scorer.model).name)
        return real(scorer, kind)

    monkeypatch.setattr(loading, "load", counting)
    return seen


def test_two_models_take_turns_and_one_is_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = loads(monkeypatch)
    one, two = tiny_model("llama"), tiny_model("gpt2")
    table = karat.score([Perplexity(model=one), Loss(model=two)], TEXTS)
    assert seen == ["llama", "gpt2"]
    assert table.equals(karat.score([Perplexity(model=one), Loss(model=two)], TEXTS))
    assert seen == ["llama", "gpt2"] * 2
    karat.score([Perplexity(model=two), Loss(model=two, max_tokens=99)], TEXTS)
    assert seen == ["llama", "gpt2"] * 2, "it is still here, and another length needs no other model"
    holding.release()
    karat.score(Loss(model=two), TEXTS)
    assert seen == ["llama", "gpt2"] * 2 + ["gpt2"]


def test_threads_that_want_two_models_get_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = loads(monkeypatch)
    view = pl.DataFrame({"id": [str(n) for n in range(24)], "text": TEXTS})
    scorers = [Perplexity(model=tiny_model(kind)) for kind in ("llama", "gpt2") * 2]
    expected = [score_view(scorer, view, None, workers=1) for scorer in scorers]
    seen.clear()
    found: dict[int, pl.DataFrame] = {}

    def work(index: int) -> None:
        found[index] = score_view(scorers[index], view, None, workers=2)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert set(found) == {0, 1, 2, 3}
    for index, table in enumerate(expected):
        assert found[index]["perplexity.nats"].to_list() == pytest.approx(
            table["perplexity.nats"].to_list(), rel=1e-5
        )


def test_one_thread_may_borrow_two_models_at_once() -> None:
    one, two = (holding.Held(Perplexity(model=tiny_model(kind))) for kind in ("llama", "gpt2"))
    with one.borrowed() as first, two.borrowed() as second:
        assert first.model.config.model_type == "llama"
        assert second.model.config.model_type == "gpt2"


def test_every_form_of_a_loaded_model_and_of_a_path() -> None:
    made, tokenizer = tiny_pair("llama", "float32")
    pair = Perplexity(model=(made, tokenizer))
    pipeline = tf.pipeline("text-generation", model=made, tokenizer=tokenizer)
    forms: list[Any] = [[made, tokenizer], {"model": made, "tokenizer": tokenizer}, pipeline, pair.model]
    for form in forms:
        assert Perplexity(model=form) == pair
    beside: Any = {"model": made, "tokenizer": tokenizer}
    assert Perplexity(**beside) == pair
    with pytest.raises(ValidationError, match="tokenizer"):
        Perplexity(model=made, tokenizer="folder")
    path: Any = Path(tiny_model("llama"))
    assert Perplexity(model=path).model == tiny_model("llama")
    assert nats(Perplexity(model=path)) == nats(Perplexity(model=tiny_model("llama")))


def test_a_loaded_model_prints_as_two_names() -> None:
    assert "Loaded(LlamaForCausalLM, TokenizersBackend)" in repr(Perplexity(model=tiny_pair("llama")))


def test_how_text_becomes_tokens_is_part_of_the_digest_and_how_it_is_padded_is_not() -> None:
    from tokenizers import normalizers

    made, tokenizer = tiny_pair("llama", "float32")
    digest = Perplexity(model=(made, tokenizer)).digest()
    tokenizer(["a", "bc"], padding=True, truncation=True, max_length=1)
    assert Perplexity(model=(made, tokenizer)).digest() == digest
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    lower = Perplexity(model=(made, tokenizer)).digest()
    tokenizer.bos_token = None
    assert len({digest, lower, Perplexity(model=(made, tokenizer)).digest()}) == 3


def _config(folder: Path, **changed: Any) -> None:
    found = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(found | changed))


def _half(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])


def _unknown_tokenizer(folder: Path) -> None:
    told = {"version": "1.0", "added_tokens": [], "model": {"type": "Nope"}}
    (folder / "tokenizer.json").write_text(json.dumps(told))


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (_half, "cannot load the model .*not fully covered"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b""), "cannot load the model .*header"),
        (_unknown_tokenizer, "cannot load the tokenizer"),
        (lambda folder: _config(folder, num_attention_heads=5), "cannot load the model .*multiple"),
        (lambda folder: _config(folder, hidden_size=64), r"do not fit config.json: .* is \[.*should be \["),
        (lambda folder: _config(folder, num_hidden_layers=3), "weights of LlamaForCausalLM are missing"),
        (lambda folder: (folder / "config.json").rename(folder / "adapter_config.json"), "holds an adapter"),
    ],
)
def test_damaged_folders_are_a_sentence_that_names_them(
    damage: Any, told: str, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    damage(folder)
    capfd.readouterr()
    with pytest.raises(ScoreError, match=told) as found:
        nats(Perplexity(model=str(folder)))
    assert str(folder) in str(found.value)
    assert capfd.readouterr().err == ""


def test_what_keeps_a_head_from_being_read_is_named(adapter: Path) -> None:
    from peft import LoraConfig, PrefixTuningConfig, get_peft_model

    made, tokenizer = tiny_pair("llama", "float32")
    with pytest.raises(ScoreError, match="LlamaModel has no output layer"):
        nats(Perplexity(model=(made.model, tokenizer)))
    prefix = get_peft_model(made, PrefixTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"))
    prefix.save_pretrained(str(adapter))
    with pytest.raises(ScoreError, match="PREFIX_TUNING cannot be merged"):
        nats(Perplexity(model=tiny_model("llama"), adapter=str(adapter)))
    made, tokenizer = tiny_pair("llama", "float32")
    on_head = get_peft_model(made, LoraConfig(r=2, target_modules=["lm_head"]))
    with pytest.raises(ScoreError, match=r"is peft\.\S+\.Linear, not a linear layer"):
        nats(Perplexity(model=(on_head, tokenizer)))


def test_a_decoder_under_another_name_is_found() -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    experts = {"num_local_experts": 2, "intermediate_size_mlp": 48, "num_key_value_heads": 2, "head_dim": 8}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = tf.Llama4ForCausalLM(tf.Llama4TextConfig(vocab_size=259, **sizes, **experts)).eval()
        for parameter in made.parameters():  # some are left as memory was
            torch.nn.init.normal_(parameter, std=0.3)
    tokenizer = tiny_pair("llama")[1]
    ids = torch.tensor([[256, *b"hello"]])
    with torch.no_grad():
        wanted = torch.nn.functional.cross_entropy(made(input_ids=ids).logits[0, :-1], ids[0, 1:])
    found = karat.score(Perplexity(model=(made, tokenizer)), ["hello"])["perplexity.nats"][0]
    assert found == pytest.approx(float(wanted), abs=1e-5)


@pytest.mark.parametrize("answers", [True, False])
def test_a_hub_that_does_not_answer_is_asked_once(answers: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    import httpx
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError

    from karat.scorers.model.files import model_files_digest

    asked = []

    def fetch(name: str, file: str, revision: str | None, local_files_only: bool) -> str:
        asked.append((file, local_files_only))
        if answers:
            there = httpx.Response(404, request=httpx.Request("HEAD", "http://127.0.0.1/x"))
            raise RemoteEntryNotFoundError("there is no such file", response=there)
        raise LocalEntryNotFoundError("check your connection")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    with pytest.raises(ScoreError, match="no such file" if answers else "check your connection"):
        model_files_digest("nobody/nothing", None)
    assert asked == [("config.json", False), ("adapter_config.json", not answers)]

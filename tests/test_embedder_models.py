"""Embedders that run a model: tiny ones with random weights, made here and loaded from their folders."""

from __future__ import annotations

import importlib.util
import json
import shutil
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hub_stub import HubStub
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
    T5Config,
    T5ForConditionalGeneration,
)

import karat
from karat.errors import ScoreError
from karat.parts import Scorer
from karat.registry import load
from karat.score_engine import score_view
from karat.scorers.embedder_models import model_facts
from karat.scorers.embedder_pretrained import Pretrained
from karat.scorers.embedder_sentence import SentenceTransformers
from karat.scorers.embedder_transformers import Transformers
from karat.scorers.embedders import Encoded
from karat.scorers.nearest_target import NearestTarget

TEXTS = ["a b c", "b", "", "c c c a b d e f", "f", "a b c d e f a b c d", "unknown words 🙂", "a b c d"]
WORDS = ["<pad>", "<s>", "</s>", "<unk>", *"abcdefgh"]
UNKNOWN, PAD = {"unk_token": "<unk>"}, {"pad_token": "<pad>"}
needs_package = pytest.mark.skipif(
    importlib.util.find_spec("sentence_transformers") is None, reason="sentence-transformers is optional"
)


def save_tokenizer(folder: Path, template: str | None, **more: Any) -> None:
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, **UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if template:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=[("<s>", 1), ("</s>", 2)]
        )
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **UNKNOWN, **more).save_pretrained(folder)


def make_llama(folder: Path) -> None:
    config = LlamaConfig(
        vocab_size=12, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    save_tokenizer(folder, "<s> $A")


def make_gpt2(folder: Path) -> None:
    config = GPT2Config(vocab_size=12, n_embd=16, n_layer=2, n_head=2, n_positions=8)
    GPT2LMHeadModel(config).save_pretrained(folder)
    save_tokenizer(folder, None)


def make_bert(folder: Path) -> None:
    config = BertConfig(
        vocab_size=12, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=32,
    )  # fmt: skip
    BertForMaskedLM(config).save_pretrained(folder)
    save_tokenizer(folder, "<s> $A </s>", **PAD)


def make_t5(folder: Path) -> None:
    config = T5Config(vocab_size=12, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2)
    T5ForConditionalGeneration(config).save_pretrained(folder)
    save_tokenizer(folder, "$A </s>")


MAKERS: dict[str, Callable[[Path], None]] = {
    "llama": make_llama, "gpt2": make_gpt2, "bert": make_bert, "t5": make_t5,
}  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {}
    for name, make in MAKERS.items():
        torch.manual_seed(7)
        made[name] = tmp_path_factory.mktemp(name)
        make(made[name])
    return made


def encode(embedder: Any, texts: list[str] = TEXTS) -> Encoded:
    found: Encoded = embedder.load(None)(texts)
    return found


def slow_vector(folder: Path, text: str, pooling: str) -> np.ndarray[Any, Any]:
    """The definition: one text, hidden states with the head's model, a plain loop over positions."""
    ids = AutoTokenizer.from_pretrained(folder)(text)["input_ids"]
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        states = model(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0].double().numpy()
    if pooling == "last":
        return np.asarray(states[-1])
    total, weights = np.zeros(states.shape[1]), 0
    for position, state in enumerate(states, start=1):
        weight = position if pooling == "weighted_mean" else 1
        total, weights = total + weight * state, weights + weight
    return total / weights


@pytest.mark.parametrize("pooling", ["weighted_mean", "mean", "last"])
def test_pooling_is_the_definition(folders: dict[str, Path], pooling: Any) -> None:
    found = encode(Transformers(model=str(folders["llama"]), pooling=pooling)).vectors
    for vector, text in zip(found, TEXTS, strict=True):
        np.testing.assert_allclose(vector, slow_vector(folders["llama"], text, pooling), atol=2e-6)


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("pooling", ["weighted_mean", "last"])
def test_batches_and_padding_change_rounding_only(folders: dict[str, Path], name: str, pooling: Any) -> None:
    alone = encode(Transformers(model=str(folders[name]), pooling=pooling))
    together = encode(Transformers(model=str(folders[name]), pooling=pooling, batch=5))
    np.testing.assert_allclose(together.vectors, alone.vectors, atol=1e-5)
    assert np.array_equal(together.truncated, alone.truncated)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", MAKERS)
def test_with_batches_of_one_nothing_else_matters_to_the_last_bit(
    folders: dict[str, Path], name: str
) -> None:
    scorer = NearestTarget(embedder=str(folders[name]), aggregate="max")
    rows = pl.DataFrame({"id": [f"{i}" for i in range(10)], "text": [*TEXTS, None, "a b c"]})
    reference = pl.DataFrame({"id": ["x", "y"], "text": ["a b", "d e f g"]})
    whole = score_view(scorer, rows, reference, workers=1)
    for workers, chunk_rows in [(2, 1), (2, 3), (1, 7)]:
        assert score_view(scorer, rows, reference, workers=workers, chunk_rows=chunk_rows).equals(whole)
    assert score_view(scorer, rows[::-1], reference).equals(whole[::-1])
    assert whole["nearest_target.status"].to_list() == [None] * 8 + ["no text", None]
    assert whole["nearest_target.truncated"].null_count() == 1
    # GPT-2 has no special tokens: an empty text has no tokens and the zero vector.
    assert (whole["nearest_target.cosine"][2] == 0) == (name == "gpt2")


def test_long_texts_are_cut_and_counted(folders: dict[str, Path]) -> None:
    model = str(folders["bert"])
    cut = encode(Transformers(model=model, max_tokens=5, pooling="mean"))
    assert cut.truncated is not None
    # <s> and </s> count: "a b c" just fits, and the closing token stays when a text is cut.
    assert cut.truncated.tolist() == [False, False, False, True, False, True, False, True]
    whole = encode(Transformers(model=model, pooling="mean"), ["a b c", "c c c"])
    np.testing.assert_array_equal(cut.vectors[[0, 3]], whole.vectors)
    rows = pl.DataFrame({"id": ["0", "1", "2"], "text": ["a b c d", None, "a"]})
    scorer = NearestTarget(embedder={"kind": "transformers", "model": model, "max_tokens": 5})
    table = score_view(scorer, rows, rows[2:])
    assert table["nearest_target.truncated"].to_list() == [True, None, False]
    # GPT-2 has positions for 8 tokens.
    gpt2 = encode(Transformers(model=str(folders["gpt2"])))
    assert gpt2.truncated is not None
    assert np.flatnonzero(gpt2.truncated).tolist() == [5]
    with pytest.raises(ScoreError, match="max_tokens is 9, and it reads at most 8"):
        Transformers(model=str(folders["gpt2"]), max_tokens=9).load(None)


def test_targets_that_were_cut_are_counted_and_said(folders: dict[str, Path]) -> None:
    model = str(folders["bert"])
    scorer = NearestTarget(embedder={"kind": "transformers", "model": model, "max_tokens": 5})
    rows = pl.DataFrame({"id": ["0", "1", "2"], "text": ["a b c d", "a b c d e", "a"]})
    said = "nearest_target: 2 of 3 reference rows are longer than the model reads"
    with pytest.warns(UserWarning, match=said):
        score_view(scorer, rows, rows)
    with pytest.warns(UserWarning, match=said):
        karat.score_stream(scorer, [rows], rows)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        score_view(scorer, rows, rows[2:])


def test_a_run_says_it_each_time_though_nothing_is_scored_again(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    from karat.chunked import cut, notes_on, pending, score_file
    from karat.rows import from_frame
    from karat.store import DIGEST, Store, keep

    scorer = NearestTarget(embedder={"kind": "transformers", "model": str(folders["bert"]), "max_tokens": 5})
    rows = from_frame(pl.DataFrame({"text": ["a b c d", "a", *(f"b {i}" for i in range(98))]}))
    view = rows.view.with_columns(rows.view["text"].alias(DIGEST))
    store = Store(tmp_path)
    for missing in (100, 0):
        work = pending(scorer, view, view, store)
        assert work.missing.height == missing
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(score_file, cut([work], keep(view, store.reference(view)), store)))
        assert notes_on(work, store) == [
            "nearest_target: 1 of 100 reference rows are longer than the model reads, and only their "
            "beginning counts (`max_tokens`)"
        ]


def test_a_huge_text(folders: dict[str, Path]) -> None:
    found = encode(Transformers(model=str(folders["llama"])), ["a b c " * 100_000, "a"])
    assert found.truncated is not None
    assert found.truncated.tolist() == [True, False]


def test_roberta_counts_its_positions_from_the_padding(tmp_path: Path) -> None:
    config = RobertaConfig(
        vocab_size=12, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=10, pad_token_id=1,
    )  # fmt: skip
    RobertaModel(config).save_pretrained(tmp_path)
    save_tokenizer(tmp_path, "<s> $A </s>")
    found = encode(Transformers(model=str(tmp_path)), ["a b c d e f", "a b c d e f g"])
    assert found.truncated is not None
    assert found.truncated.tolist() == [False, True]


def test_the_digest_follows_the_files(folders: dict[str, Path], tmp_path: Path) -> None:
    def digest(folder: Path) -> str:
        return NearestTarget(embedder=str(folder)).environment()["model"]

    copy = tmp_path / "copy"
    shutil.copytree(folders["llama"], copy)
    assert digest(copy) == digest(folders["llama"])
    assert set(model_facts(str(copy), None)) == {"model"}
    weights = copy / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert digest(copy) != digest(folders["llama"])
    assert {"torch", "transformers", "scipy", "embedder code"} <= set(
        NearestTarget(embedder=str(copy)).environment()
    )


def test_settings_survive_a_round_trip(folders: dict[str, Path]) -> None:
    full = {"kind": "transformers", "model": str(folders["llama"]), "pooling": "mean", "max_tokens": 9}
    for embedder in (str(folders["llama"]), full):
        scorer = load({"kind": "nearest_target", "embedder": embedder}, Scorer)
        assert load(scorer.model_dump(mode="json"), Scorer) == scorer
        assert not scorer.needs_pool()
    short = NearestTarget(embedder=str(folders["llama"]))
    assert isinstance(short.embedder, Pretrained)
    assert short.embedder.meant() == Transformers(model=str(folders["llama"]))


def broken(folder: Path, how: str) -> Path:
    if how == "no weights":
        (folder / "model.safetensors").unlink()
    elif how == "no config":
        (folder / "config.json").unlink()
    elif how == "damaged":
        (folder / "model.safetensors").write_bytes(b"not safetensors")
    elif how == "no tokenizer":
        for file in folder.glob("tokenizer*"):
            file.unlink()
    elif how == "another shape":
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    elif how == "code":
        (folder / "modules.json").write_text(json.dumps([{"type": "somebody.Else", "path": "", "name": "0"}]))
    elif how == "adapter":
        (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "elsewhere"}))
    elif how == "bad list":
        (folder / "modules.json").write_text("[1]")
    return folder


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("no weights", "no weights in safetensors"),
        ("no config", "no config.json"),
        ("damaged", "cannot use the model"),
        ("no tokenizer", "tokenizer cannot be loaded"),
        ("another shape", "weights of LlamaModel are missing, such as layers.2"),
        pytest.param("code", "runs code of its own", marks=needs_package),
        ("bad list", "modules.json cannot be read"),
        ("adapter", "it is an adapter"),
    ],
)
def test_models_that_cannot_be_used(folders: dict[str, Path], tmp_path: Path, how: str, said: str) -> None:
    shutil.copytree(folders["llama"], tmp_path / "m")
    folder = broken(tmp_path / "m", how)
    with pytest.raises(ScoreError, match=said) as raised:
        Pretrained(model=str(folder)).load(None)
    assert raised.value.hint


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_beside_the_weights_is_not_run(folders: dict[str, Path], tmp_path: Path, file: str) -> None:
    folder = tmp_path / "m"
    shutil.copytree(folders["llama"], folder)
    settings = json.loads((folder / file).read_text())
    settings |= {"model_type": "strange", "tokenizer_class": "Strange"}
    names = {"AutoConfig": "code.C", "AutoModel": "code.C", "AutoTokenizer": ["code.C", "code.C"]}
    (folder / file).write_text(json.dumps({**settings, "auto_map": names}))
    (folder / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass C: pass\n")
    for kind in ("pretrained", "transformers"):
        with pytest.raises(ScoreError, match="custom code"):
            NearestTarget(embedder={"kind": kind, "model": str(folder)}).embedder.load(None)
    assert not (tmp_path / "ran").exists()


def test_weights_in_other_formats_are_not_read(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "m"
    shutil.copytree(folders["llama"], folder)
    (folder / "elsewhere").mkdir()
    (folder / "model.safetensors").rename(folder / "elsewhere" / "model.safetensors")
    torch.save(LlamaForCausalLM.from_pretrained(folders["llama"]).state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(ScoreError, match=r"no file named model\.safetensors"):
        Pretrained(model=str(folder)).load(None)


def test_a_pickle_in_a_module_is_refused(folders: dict[str, Path], tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("karat.scorers.embedder_sentence.find_spec", lambda name: True)
    shutil.copytree(folders["llama"], tmp_path / "m")
    kinds = {"": "Transformer", "1_Dense": "Dense"}
    listed = [{"type": f"sentence_transformers.models.{kind}", "path": path} for path, kind in kinds.items()]
    (tmp_path / "m" / "modules.json").write_text(json.dumps(listed))
    (tmp_path / "m" / "1_Dense").mkdir()
    (tmp_path / "m" / "1_Dense" / "pytorch_model.bin").write_bytes(b"pickled")
    with pytest.raises(ScoreError, match=r"1_Dense/pytorch_model.bin is not safetensors"):
        SentenceTransformers(model=str(tmp_path / "m")).load(None)


def test_models_that_are_not_there(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ScoreError, match="no such folder"):
        NearestTarget(embedder=str(tmp_path / "nothing")).digest()
    with pytest.raises(ScoreError, match="name the folder"):
        NearestTarget(embedder=str(folders["llama"] / "model.safetensors")).digest()
    with pytest.raises(ScoreError, match="no device 'cuda:77' here"):
        Transformers(model=str(folders["llama"]), device="cuda:77").load(None)


def test_a_model_from_the_hub_is_named_by_its_commit(folders: dict[str, Path], tmp_path: Path) -> None:
    hub = HubStub()
    try:
        with hub.patched(tmp_path / "cache"):
            files = {file.name: file.read_bytes() for file in folders["llama"].iterdir()}
            files["pytorch_model.bin"] = b"pickled"
            commit = hub.create("someone/tiny", files, kind="models").head
            scorer = NearestTarget(embedder="someone/tiny")
            assert scorer.environment()["model"] == f"someone/tiny@{commit.sha}"
            found = encode(scorer.embedder)
            with pytest.raises(ScoreError, match="not to be had from the Hub"):
                NearestTarget(embedder="someone/else").digest()
            assert not [call for call in hub.calls if "pytorch_model" in call.path]
    finally:
        hub.close()
    np.testing.assert_array_equal(found.vectors, encode(Pretrained(model=str(folders["llama"]))).vectors)


def test_the_missing_package_is_named(folders: dict[str, Path], tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("karat.scorers.embedder_sentence.find_spec", lambda name: None)
    shutil.copytree(folders["bert"], tmp_path / "m")
    (tmp_path / "m" / "modules.json").write_text(
        json.dumps([{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}])
    )
    for use in (
        NearestTarget(embedder=str(tmp_path / "m")).digest,
        lambda: encode(Pretrained(model=str(tmp_path / "m"))),
    ):
        with pytest.raises(ScoreError, match="needs the package sentence-transformers") as raised:
            use()
        assert raised.value.hint == "pip install sentence-transformers"


@pytest.fixture(scope="module")
def sentence_model(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    library = pytest.importorskip("sentence_transformers")
    folder = tmp_path_factory.mktemp("sentence")
    try:
        parts = importlib.import_module("sentence_transformers.sentence_transformer.modules")
    except ImportError:  # before version 6
        parts = importlib.import_module("sentence_transformers.models")
    transformer = parts.Transformer(str(folders["bert"]), max_seq_length=6)
    pooling = parts.Pooling(16, pooling_mode="cls")
    library.SentenceTransformer(modules=[transformer, pooling], device="cpu").save(str(folder))
    return folder


def test_a_sentence_transformers_model_gives_what_its_library_gives(sentence_model: Path) -> None:
    from sentence_transformers import SentenceTransformer

    expected = SentenceTransformer(str(sentence_model), device="cpu").encode(TEXTS)
    found = encode(Pretrained(model=str(sentence_model), device="cpu"))
    np.testing.assert_allclose(found.vectors, expected, atol=1e-5)
    assert found.truncated is not None
    assert found.truncated.tolist() == [False, False, False, True, False, True, False, False]
    batched = encode(SentenceTransformers(model=str(sentence_model), batch=4))
    np.testing.assert_allclose(batched.vectors, found.vectors, atol=1e-5)
    assert encode(Pretrained(model=str(sentence_model)), []).vectors.shape == (0, 16)
    # First token (CLS) pooling, not the mean: the model's own settings are used.
    plain = encode(Transformers(model=str(sentence_model), pooling="mean", max_tokens=6))
    assert not np.allclose(plain.vectors, found.vectors, atol=1e-3)


def test_a_prompt_is_put_before_the_text(sentence_model: Path) -> None:
    with_prompt = encode(SentenceTransformers(model=str(sentence_model), prompt="a b "), ["c", "c d e"])
    plain = encode(SentenceTransformers(model=str(sentence_model)), ["a b c"])
    np.testing.assert_array_equal(with_prompt.vectors[0], plain.vectors[0])
    assert with_prompt.truncated is not None
    assert with_prompt.truncated.tolist() == [False, True]


def test_sentence_transformers_through_the_engine(sentence_model: Path) -> None:
    rows = pl.DataFrame({"id": [f"{i}" for i in range(9)], "text": [*TEXTS, None]})
    scorer = NearestTarget(embedder=str(sentence_model))
    whole = score_view(scorer, rows, rows[:2], workers=1)
    assert score_view(scorer, rows, rows[:2], workers=2, chunk_rows=2).equals(whole)
    assert "sentence-transformers" in scorer.environment()

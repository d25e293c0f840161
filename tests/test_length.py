"""Lengths in bytes, characters and tokens, with tokenizers trained here."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from karat.errors import ScoreError
from karat.score_engine import score_view
from karat.scorers.length import Length

CORPUS = ["the cat sat on the mat", "a cat and a hat", "the hat of the cat", "日本語 text 🙂"] * 5


def frame(texts: list[str | None]) -> pl.DataFrame:
    ids = [str(i) for i in range(len(texts))]
    return pl.DataFrame({"id": ids, "text": texts}, {"id": pl.String, "text": pl.String})


def lengths(tokenizer: str, texts: list[str | None], workers: int = 1) -> pl.DataFrame:
    return score_view(Length(tokenizer=tokenizer), frame(texts), None, workers=workers)


def trained() -> Tokenizer:
    """A byte-level BPE that would add special tokens, cut at 4 tokens and pad, if it were let."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=16)
    return tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    from transformers import PreTrainedTokenizerFast

    home = tmp_path / "tok"
    marks = dict(zip(("bos_token", "eos_token"), ("<s>", "</s>"), strict=True))
    fast = PreTrainedTokenizerFast(tokenizer_object=trained(), **marks)
    fast.save_pretrained(str(home))
    return home


def expected(texts: list[str]) -> list[int]:
    tokenizer = trained()
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return [len(tokenizer.encode(text, add_special_tokens=False).ids) for text in texts]


def test_by_hand() -> None:
    table = lengths("words", ["naïve café, 2+2!", "", " \n\t", "a_b c-d", "日本 🙂🙂", None])
    assert table["length.bytes"].to_list() == [18, 0, 3, 7, 15, None]
    assert table["length.characters"].to_list() == [16, 0, 3, 7, 5, None]
    assert table["length.tokens"].to_list() == [7, 0, 0, 4, 3, None]
    assert table["length.status"].to_list() == [None] * 5 + ["no text"]


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]))))
def test_bytes_and_characters_are_pythons(texts: list[str]) -> None:
    table = lengths("bytes", list(texts))
    assert table["length.bytes"].to_list() == [len(text.encode()) for text in texts]
    assert table["length.characters"].to_list() == [len(text) for text in texts]
    assert table["length.tokens"].to_list() == table["length.bytes"].to_list()


@given(st.text(st.characters(max_codepoint=0x7F)))
def test_words_of_ascii_text_are_pythons(text: str) -> None:
    # \x1c-\x1f are white space to Python alone.
    text = re.sub(r"[\x1c-\x1f]", " ", text)
    assert lengths("words", [text])["length.tokens"].to_list() == [len(re.findall(r"\w+|[^\w\s]", text))]


def test_a_combining_mark_belongs_to_its_word() -> None:
    assert lengths("words", ["e\u0301te\u0301", "हिन्दी"])["length.tokens"].to_list() == [1, 1]


def test_a_tokenizer_folder_adds_no_special_tokens_and_cuts_nothing(folder: Path) -> None:
    texts = ["the cat", "", "the hat of the cat and the mat " * 50, "🙂 unseen"]
    for name in (str(folder), str(folder / "tokenizer.json")):
        for workers in (1, 2):
            table = lengths(name, [*texts, None], workers)
            assert table["length.tokens"].to_list() == [*expected(texts), None]


def test_a_folder_with_nothing_but_tokenizer_json_will_do(folder: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(folder / "tokenizer.json", bare)
    assert lengths(str(bare), ["the cat sat"])["length.tokens"].to_list() == expected(["the cat sat"])


def test_another_tokenizer_in_the_same_place_is_another_digest(folder: Path) -> None:
    scorer = Length(tokenizer=str(folder))
    before = scorer.digest()
    assert scorer.digest() == before
    (folder / "model.safetensors").write_bytes(b"weights are no part of a tokenizer")
    assert scorer.digest() == before
    file = folder / "tokenizer.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    settings["truncation"] = None
    file.write_text(json.dumps(settings), encoding="utf-8")
    assert scorer.digest() != before


def test_no_code_of_the_tokenizer_is_run(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    config["tokenizer_class"] = "Evil"
    config["auto_map"] = {"AutoTokenizer": ["evil.Evil", None]}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n", encoding="utf-8")
    lengths(str(folder), ["the cat"])
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", ["", "{", "{}", '{"model": {"type": "BPE"}}'])
def test_a_broken_tokenizer_is_one_plain_error(tmp_path: Path, content: str) -> None:
    file = tmp_path / "tokenizer.json"
    file.write_text(content, encoding="utf-8")
    for name in (str(file), str(tmp_path)):
        with pytest.raises(ScoreError, match="cannot load the tokenizer"):
            lengths(name, ["a"])


def test_an_unknown_tokenizer_is_one_plain_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in (str(tmp_path / "nothing"), str(tmp_path), "nobody/has-this", "a/b/c"):
        with pytest.raises(ScoreError, match="cannot load the tokenizer"):
            lengths(name, ["a"])
        with pytest.raises(ScoreError, match="cannot load the tokenizer"):
            Length(tokenizer=name).digest()

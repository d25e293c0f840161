"""Tokenizers that spell a digit after a space in the ways that published ones do; made for tests."""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from karat.trainers.byte_tokenizer import byte_alphabet

CHARACTERS = [chr(code) for code in range(33, 127)]


def wrapped(core: Tokenizer, **special: Any) -> PreTrainedTokenizerFast:
    made: Any = PreTrainedTokenizerFast
    found: PreTrainedTokenizerFast = made(
        tokenizer_object=core, clean_up_tokenization_spaces=False, **special
    )
    return found


def begins_with_bos(core: Tokenizer, after: str = "") -> None:
    ids = [(token, core.token_to_id(token)) for token in ("<s>", "</s>")]
    core.post_processor = processors.TemplateProcessing(single=f"<s> $A {after}".strip(), special_tokens=ids)


def bpe(vocabulary: list[str], merges: list[tuple[str, str]], **more: Any) -> Tokenizer:
    return Tokenizer(models.BPE({token: k for k, token in enumerate(vocabulary)}, merges, **more))


def like_sentencepiece() -> PreTrainedTokenizerFast:
    """A space before everything, spaces as ▁, digits alone, BOS in front: "1" alone is ▁ and 1."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁▁", "▁", *CHARACTERS]
    core = bpe(pieces, [("▁", "▁")], unk_token="<unk>", byte_fallback=True, fuse_unk=True)  # noqa: S106
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    begins_with_bos(core)
    return wrapped(core, bos_token="<s>", eos_token="</s>", unk_token="<unk>")  # noqa: S106


def like_gpt2(*, lone: bool = True, after: str = "") -> PreTrainedTokenizerFast:
    """Bytes, and a token for a digit with the space before it: " 1" is one token, "1" another.

    lone: whether there is a token for the digit by itself besides; after: "</s>" puts it behind all text.
    """
    digits = list("123456")
    alphabet = [char for char in byte_alphabet() if lone or char not in digits]
    joined = [f"Ġ{digit}" for digit in digits]
    merges = [("Ġ", digit) for digit in digits] if lone else []
    core = bpe([*alphabet, *joined, "<s>", "</s>"], merges)
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(["<s>", "</s>"])
    begins_with_bos(core, after)
    return wrapped(core, bos_token="<s>", eos_token="</s>")  # noqa: S106


def of_characters(replaced: str = "", by: str = "") -> PreTrainedTokenizerFast:
    """Characters, `replaced` (a pattern) turned into `by` beforehand; what is not known is <unk>."""
    from tokenizers import Regex

    pieces = ["<unk>", "<s>", "</s>", " ", "\n", *CHARACTERS]
    core = bpe(pieces, [], unk_token="<unk>")  # noqa: S106
    if replaced:
        core.normalizer = normalizers.Replace(Regex(replaced), by)
    core.decoder = decoders.Fuse()
    begins_with_bos(core)
    return wrapped(core, bos_token="<s>", eos_token="</s>", unk_token="<unk>")  # noqa: S106


def like_llama3() -> PreTrainedTokenizerFast:
    """Bytes with merges across words: punctuation joins a line break after it, and they each other."""
    alphabet = byte_alphabet()
    merges = [(".", "Ċ"), (":", "Ċ"), ("Ċ", "Ċ"), ("a", "Ċ"), ("Ċ", "#"), ("Ġ", "Ċ"), ("Ġ", "Ġ")]
    core = bpe([*alphabet, *(a + b for a, b in merges), "<s>", "</s>"], merges)
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(["<s>", "</s>"])
    begins_with_bos(core)
    return wrapped(core, bos_token="<s>", eos_token="</s>")  # noqa: S106


def joining() -> PreTrainedTokenizerFast:
    """The digit 4 joins the space, and 4 alone is unknown: there is no token for it after the prompt."""
    pieces = ["<unk>", "<s>", "</s>", " ", "\n", *(c for c in CHARACTERS if c != "4"), " 4"]
    vocabulary = {piece: k for k, piece in enumerate(pieces)}
    core = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", ignore_merges=True))  # noqa: S106
    core.pre_tokenizer = pre_tokenizers.Split(" 4", "isolated")
    begins_with_bos(core)
    return wrapped(core, bos_token="<s>", eos_token="</s>", unk_token="<unk>")  # noqa: S106

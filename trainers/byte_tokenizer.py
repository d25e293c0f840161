"""A tokenizer whose tokens are the 256 bytes, saved and loaded like any other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

BOS, EOS, PAD = 256, 257, 258
VOCABULARY = 259


def byte_alphabet() -> list[str]:
    """The printable character that byte-level tokenizers write for each byte, by byte value.

    Printable Latin-1 characters stand for themselves, the other 68 bytes for U+0100 and on, in order.
    """
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in plain else chr(next(others)) for byte in range(256)]


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Token i < 256 is byte i of the UTF-8 text; then `<s>` 256, `</s>` 257, `<pad>` 258.

    Lossless for every text, and without an unknown token. `AutoTokenizer.from_pretrained` loads what
    its `save_pretrained` wrote.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {character: byte for byte, character in enumerate(byte_alphabet())}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(["<s>", "</s>", "<pad>"])
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    made: Any = PreTrainedTokenizerFast  # its constructor has no annotations
    tokenizer: PreTrainedTokenizerFast = made(
        tokenizer_object=core, clean_up_tokenization_spaces=False, **special
    )
    return tokenizer

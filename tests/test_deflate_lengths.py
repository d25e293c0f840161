"""The length kernel against the zlib at work: every level, hostile bytes, limits, fallbacks, threads."""

from __future__ import annotations

import gzip
import inspect
import random
import subprocess
import sys
import threading
import types
import warnings
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba.core.errors import NumbaError

from karat.scorers import compressors, deflate_lengths
from karat.scorers.compressors import Kernel, PairSizes
from karat.scorers.deflate_lengths import LONGEST_INPUT, DeflateLengths, compiled_before, distrust

pytestmark = pytest.mark.skipif(
    "ng" in zlib.ZLIB_RUNTIME_VERSION, reason="zlib-ng finds other matches; the kernel refuses to follow it"
)
LEVELS = range(1, 10)
WORDS = [
    "the",
    "of",
    "match",
    "distance",
    "block",
    "a",
    "tree",
    "is",
    "in",
    "code",
    "code_length",
    "for",
    "ü",
    "☃",
]


def gzip_sizes(text: bytes, targets: list[bytes], level: int) -> list[int]:
    return [len(gzip.compress(text + target, compresslevel=level)) for target in targets]


def compared(level: int, text: bytes, targets: list[bytes]) -> tuple[int, int]:
    """Pairs that the kernel answered, all of them checked, and pairs that it left to zlib."""
    lengths = DeflateLengths(level, targets)
    raw = lengths.covered(text, np.arange(len(targets)))
    for size, target in zip(raw.tolist(), targets, strict=True):
        if size >= 0:
            assert size == len(zlib.compress(text + target, level, -15)), (level, text[:60], target[:60])
    assert lengths.joint(text).tolist() == gzip_sizes(text, targets, level)
    assert lengths.own(text) == len(gzip.compress(text, compresslevel=level))
    return int((raw >= 0).sum()), int((raw < 0).sum())


def prose(draw: random.Random, size: int) -> bytes:
    return " ".join(draw.choices(WORDS, k=size // 4 + 1)).encode()[:size]


def indented(draw: random.Random, size: int) -> bytes:
    lines = (
        f"{' ' * 4 * draw.randint(0, 9)}{draw.choice(WORDS)} = {draw.choice(WORDS)}" for _ in range(size)
    )
    return "\n".join(lines).encode()[:size]


def runs(draw: random.Random, size: int) -> bytes:
    """Runs around the longest match, 258, with something between."""
    out = bytearray()
    while len(out) < size:
        out += bytes([draw.randrange(3)]) * draw.choice([1, 2, 3, 257, 258, 259, 260, 516, 517])
        out += draw.randbytes(draw.randrange(4))
    return bytes(out[:size])


def far_threes(draw: random.Random, size: int) -> bytes:
    """Matches of three bytes, some of them about 4,096 back, where the lazy levels let them go."""
    piece = draw.randbytes(3)
    out = bytearray()
    while len(out) < size:
        out += piece + draw.randbytes(draw.choice([1, 40, 4090, 4092, 4093, 4094, 4096]))
    return bytes(out[:size])


def sliding(draw: random.Random, size: int) -> bytes:
    """Each block is a bit of the last one: matches of all lengths and distances, many of them overlapping."""
    out = bytearray(draw.randbytes(8))
    while len(out) < size:
        start = draw.randrange(len(out))
        out += out[start : start + draw.randint(1, 300)]
        out += draw.randbytes(draw.randrange(3))
    return bytes(out[:size])


KINDS: list[Callable[[random.Random, int], bytes]] = [
    lambda draw, size: draw.randbytes(size),
    lambda draw, size: bytes(draw.choices(b"ab", k=size)),
    lambda draw, size: bytes(draw.choices(b"abcdefgh  \n", weights=range(1, 12), k=size)),
    lambda draw, size: bytes(min(255, int(draw.expovariate(0.1))) for _ in range(size)),
    lambda draw, size: bytes(int(128 + 127 * draw.betavariate(0.05, 3)) for _ in range(size)),
    lambda draw, size: bytes(size),
    lambda draw, size: (draw.randbytes(draw.randint(1, 400)) * size)[:size],
    prose,
    indented,
    runs,
    far_threes,
    sliding,
]
SIZES = [0, 1, 2, 3, 4, 5, 8, 20, 100, 261, 262, 263, 700, 2000, 4200, 8000]


def made(draw: random.Random) -> bytes:
    size = draw.choice(SIZES)
    return draw.choice(KINDS)(draw, size if draw.random() < 0.3 else draw.randint(0, size))


def related(draw: random.Random, text: bytes) -> bytes:
    """A target that shares something with the text, most of all with its end."""
    other = made(draw)
    cut = draw.randint(0, len(text))
    return draw.choice([other, text[cut:] + other, other + text[:cut], text[cut:] * 3, text])[:8000]


def fuzz(seed: int, texts: int, targets: int) -> tuple[int, int]:
    draw = random.Random(seed)
    answered = left = 0
    for _ in range(texts):
        for level in LEVELS:
            text = made(draw)
            some, others = compared(level, text, [related(draw, text) for _ in range(targets)])
            answered, left = answered + some, left + others
    return answered, left


def documents() -> Iterator[bytes]:
    """Docstrings and functions of the standard library, 0.2 to 4 kB."""
    for name in ("argparse", "ast", "asyncio.events", "collections", "decimal", "difflib", "email.message"):
        module = __import__(name, fromlist=["_"])
        source = inspect.getsource(module)
        for part in source.split("\n\n"):
            if 200 <= len(part.encode()) <= 4000:
                yield part.encode()
        for _, member in inspect.getmembers(module, inspect.isroutine):
            text = inspect.getdoc(member) or ""
            if 200 <= len(text.encode()) <= 4000:
                yield text.encode()


def test_hostile_bytes_at_every_level() -> None:
    answered, _ = fuzz(seed=1, texts=60, targets=6)
    assert answered > 2500


@pytest.mark.slow
def test_fifty_thousand_pairs_are_really_compared() -> None:
    answered, left = 0, 0
    for seed in range(2, 22):
        some, others = fuzz(seed, texts=48, targets=8)
        answered, left = answered + some, left + others
    assert answered >= 50_000, (answered, left)


def test_ordinary_texts_stay_in_the_kernel() -> None:
    texts = random.Random(3).sample(sorted(set(documents())), 70)
    for level in LEVELS:
        pairs = [compared(level, text, texts[30:]) for text in texts[:30]]
        answered, left = map(sum, zip(*pairs, strict=True))
        assert left <= (answered + left) / 100


@pytest.mark.parametrize("level", LEVELS)
def test_at_the_limits_of_window_block_and_match(level: int) -> None:
    draw = random.Random(level)
    text = prose(draw, 30_000)
    for size in (LONGEST_INPUT - 1, LONGEST_INPUT):
        targets = [draw.choice(KINDS)(draw, size - len(text)), text[-(size - len(text)) :]]
        assert compared(level, text, targets) == (2, 0)
    past = [prose(draw, LONGEST_INPUT + 1 - len(text)), prose(draw, 40_000), b""]
    assert compared(level, text, past) == (1, 2)


@pytest.mark.parametrize("level", LEVELS)
def test_a_block_is_full_at_16383_symbols(level: int) -> None:
    """No three bytes occur twice, so every byte is a symbol."""
    draw, seen, noise = random.Random(level), set(), bytearray(b"..")
    while len(noise) < 16_384:
        byte = draw.randrange(256)
        if (piece := (noise[-2], noise[-1], byte)) not in seen:
            seen.add(piece)
            noise.append(byte)
    text = bytes(noise[:16_000])
    assert compared(level, text, [bytes(noise[16_000:end]) for end in (16_381, 16_382)]) == (2, 0)
    assert compared(level, text, [bytes(noise[16_000:end]) for end in (16_383, 16_384)]) == (0, 2)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("distance", [4095, 4096, 4097])
def test_three_bytes_from_afar(level: int, distance: int) -> None:
    """The lazy levels take a match of three bytes up to 4,096 back and no further."""
    draw = random.Random(level)
    text = bytes(draw.choices(range(64), k=distance))
    target = bytearray(draw.choices(range(64), k=distance))
    for place in range(0, distance - 20, 20):
        target[place : place + 3] = text[place : place + 3]
    assert compared(level, text, [bytes(target)]) == (1, 0)


@pytest.mark.parametrize("level", LEVELS)
def test_codes_that_would_grow_too_long_are_shortened(level: int) -> None:
    """Fibonacci counts make the deepest trees: over 15 bits for literals, over 7 for the code lengths."""
    draw = random.Random(level)
    counts = [1, 1]
    while sum(counts) < 9000:
        counts.append(counts[-1] + counts[-2])
    letters = [bytes([65 + i]) for i, count in enumerate(counts) for _ in range(count)]
    draw.shuffle(letters)
    text = b"".join(letters)
    answered, left = compared(level, text, [b"", b"Z", text[:500], prose(draw, 900), draw.randbytes(256)])
    assert (answered, left) == (5, 0)


@pytest.mark.parametrize("level", [1, 3, 4, 6, 9])
def test_a_mebibyte(level: int) -> None:
    draw = random.Random(level)
    text = (prose(draw, 60_000) * 18)[: 1 << 20]
    for case in (text, draw.randbytes(1 << 20), bytes(1 << 20)):
        targets = [b"", b"short", case[:30_000]]
        assert DeflateLengths(level, targets).joint(case).tolist() == gzip_sizes(case, targets, level)
    targets = [text, b"x", draw.randbytes(40_000)]
    assert DeflateLengths(level, targets).joint(b"abc").tolist() == gzip_sizes(b"abc", targets, level)


@settings(deadline=None, max_examples=150)
@given(
    level=st.sampled_from(LEVELS),
    pieces=st.lists(st.binary(max_size=40) | st.text(max_size=20).map(str.encode), min_size=1, max_size=5),
    text=st.lists(st.integers(0, 4), max_size=60),
    targets=st.lists(st.lists(st.integers(0, 4), max_size=60), min_size=1, max_size=4),
)
def test_any_mixture_of_pieces(
    level: int, pieces: list[bytes], text: list[int], targets: list[list[int]]
) -> None:
    def joined(places: list[int]) -> bytes:
        return b"".join(pieces[place % len(pieces)] for place in places)

    compared(level, joined(text), [joined(target) for target in targets])


def test_chosen_targets_in_the_order_asked_for() -> None:
    draw = random.Random(5)
    targets = [prose(draw, 300 + 40 * i) for i in range(9)]
    for level in (1, 6):
        lengths = DeflateLengths(level, targets)
        every = lengths.joint(b"a window of the tree" * 9)
        for which in ([4, 4, 0, 8], [], [-1, 3]):
            assert lengths.joint(b"a window of the tree" * 9, np.array(which, np.intp)).tolist() == [
                int(every[place]) for place in which
            ]
        with pytest.raises(IndexError):
            lengths.joint(b"text", np.array([9]))
        assert DeflateLengths(level, []).joint(b"text").size == 0


def test_targets_past_the_table_are_answered_by_zlib(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(6)
    targets = [prose(draw, 400) for _ in range(5)]
    monkeypatch.setattr(deflate_lengths, "TABLE_BYTES", 1000)
    assert compared(6, b"of the match" * 20, targets) == (2, 3)
    assert compared(1, b"of the match" * 20, targets) == (5, 0)


def test_threads_share_one_object() -> None:
    draw = random.Random(7)
    targets, texts = [prose(draw, 600) for _ in range(20)], [prose(draw, 500) for _ in range(40)]
    for level in (1, 9):
        lengths = DeflateLengths(level, targets)
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lengths.joint, texts))
        for text, sizes in zip(texts, found, strict=True):
            assert sizes.tolist() == gzip_sizes(text, targets, level)


@pytest.mark.parametrize("level", LEVELS)
def test_it_trusts_this_zlib(level: int) -> None:
    assert distrust(level) is None


def pairs_with(monkeypatch: pytest.MonkeyPatch, kernel: Kernel, level: int = 1) -> PairSizes:
    monkeypatch.setattr(compressors, "KERNEL", kernel)
    return PairSizes("gzip", level, [b"some target", b"another target of the match" * 9])


def ready(pairs: PairSizes) -> bool:
    return pairs._lengths is not None


def check(pairs: PairSizes) -> None:
    for text in (b"", b"a text of the match" * 7, bytes(40_000)):
        level = pairs._level
        assert level is not None
        assert pairs.joint(text).tolist() == gzip_sizes(text, list(pairs.targets), level)
        assert pairs.joint(text, np.array([-1])).tolist() == gzip_sizes(text, [pairs.targets[-1]], level)
        assert pairs.own(text) == len(gzip.compress(text, compresslevel=level))


def test_small_jobs_stay_with_zlib_and_long_ones_change_over(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(load_after=1e9)
    pairs = pairs_with(monkeypatch, kernel)
    check(pairs)
    assert not ready(pairs)
    assert kernel.seconds > 0
    kernel.seconds = 2e9
    check(pairs)
    assert ready(pairs)
    check(pairs)
    kernel.seconds = 0.0
    later = PairSizes("gzip", 1, [b"once it is there, everyone uses it"])
    check(later)
    assert ready(later)


def test_sizes_of_texts_alone_count_and_bring_the_kernel_in_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """A race measures every row alone before it compresses the first pair."""
    kernel = Kernel(load_after=1e9)
    pairs = pairs_with(monkeypatch, kernel)
    text = b"a text of the match" * 900
    assert pairs.own(text) == len(gzip.compress(text, compresslevel=1))
    assert kernel.seconds > 0
    kernel.seconds = 2e9
    assert pairs.own(text) == len(gzip.compress(text, compresslevel=1))
    assert ready(pairs)


def test_what_is_not_compiled_yet_waits_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deflate_lengths, "compiled_before", lambda: False)
    kernel = Kernel(load_after=1.0, compile_after=100.0)
    pairs = pairs_with(monkeypatch, kernel)
    kernel.seconds = 2.0
    check(pairs)
    assert not ready(pairs)
    kernel.seconds = 101.0
    check(pairs)
    assert ready(pairs)


def test_another_zlib_is_noticed_and_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that finds other matches, here zlib one level up, gives its own sizes and one warning."""

    def other(data: bytes, level: int, bits: int) -> bytes:
        return zlib.compress(data, level + 1, bits)

    monkeypatch.setattr(
        deflate_lengths, "zlib", types.SimpleNamespace(compress=other, ZLIB_RUNTIME_VERSION="1.3.1.zlib-ng")
    )
    for level in range(1, 9):
        assert "1.3.1.zlib-ng" in (distrust(level) or "")
    pairs = pairs_with(monkeypatch, Kernel(0.0, 0.0), 6)
    with pytest.warns(RuntimeWarning, match=r"1\.3\.1\.zlib-ng.*level 1.*sizes differ.*numbers are the same"):
        check(pairs)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check(pairs)
        check(PairSizes("gzip", 2, [b"a"]))
    assert not ready(pairs)


@pytest.mark.parametrize("same", [True, False])
def test_another_zlib_is_noticed_at_level_1_and_at_its_own(
    same: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(data: bytes, level: int, bits: int) -> bytes:
        return zlib.compress(data, level if (level == 1) == same else level + 1, bits)

    monkeypatch.setattr(
        deflate_lengths, "zlib", types.SimpleNamespace(compress=other, ZLIB_RUNTIME_VERSION="1.3.1.other")
    )
    for level in range(2, 9):
        assert f"at level {level if same else 1}," in (distrust(level) or "")


def test_a_kernel_that_cannot_run_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise NumbaError("no machine code for this processor")

    monkeypatch.setattr(deflate_lengths, "_joint_rows", broken)
    monkeypatch.setattr(deflate_lengths, "compiled_before", lambda: True)
    pairs = pairs_with(monkeypatch, Kernel(0.0, 0.0))
    with pytest.warns(RuntimeWarning, match="no machine code for this processor"):
        check(pairs)
    assert not ready(pairs)


def test_without_numba_there_is_a_warning_and_the_same_numbers() -> None:
    code = (
        "import gzip, sys, warnings\n"
        "sys.modules['numba'] = None\n"
        "from karat.scorers import compressors\n"
        "compressors.KERNEL = compressors.Kernel(0.0, 0.0)\n"
        "pairs = compressors.PairSizes('gzip', 1, [b'target'])\n"
        "for text in (b'one text', b'two texts'):\n"
        "    assert pairs.joint(text).tolist() == [len(gzip.compress(text + b'target', 1))]\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.count("RuntimeWarning: gzip sizes") == 1


def test_others_go_on_while_one_thread_prepares(monkeypatch: pytest.MonkeyPatch) -> None:
    began, go_on = threading.Event(), threading.Event()
    calls = []

    def slow(level: int) -> None:
        calls.append(level)
        began.set()
        assert go_on.wait(30)

    monkeypatch.setattr(deflate_lengths, "distrust", slow)
    pairs = pairs_with(monkeypatch, Kernel(0.0, 0.0))
    first = threading.Thread(target=check, args=(pairs,))
    first.start()
    assert began.wait(30)
    check(pairs)  # zlib answers meanwhile
    assert not ready(pairs)
    go_on.set()
    first.join(30)
    check(pairs)
    assert ready(pairs)
    assert calls == [1]


def test_it_runs_where_no_folder_can_keep_machine_code(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(*_: object, **options: bool) -> object:
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return lambda function: function

    monkeypatch.setattr(deflate_lengths, "njit", nowhere)
    compiled = deflate_lengths._kept(print)
    assert compiled is print


def test_it_knows_when_it_was_compiled_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    DeflateLengths(1, [b"x"]).joint(b"compiled now, if never before")
    assert compiled_before()
    joint = types.SimpleNamespace(
        py_func=deflate_lengths._joint_rows.py_func, stats=types.SimpleNamespace(cache_path=str(tmp_path))
    )
    monkeypatch.setattr(deflate_lengths, "_joint_rows", joint)
    assert not compiled_before()

"""ZIP-FIT against a plain loop over the compressor, numbers by hand, and refused settings."""

from __future__ import annotations

import gzip
import random
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import lz4.frame
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from karat.errors import ScoreError
from karat.score_engine import score_view
from karat.scorers import compressors
from karat.scorers.zip_fit import ZipFit
from karat.scorers.zip_fit_targets import scores

Size = Callable[[bytes], int]


def frame(texts: Sequence[str | None], prefix: str = "r") -> pl.DataFrame:
    ids = [f"{prefix}{i}" for i in range(len(texts))]
    return pl.DataFrame({"id": ids, "text": texts}, {"id": pl.String, "text": pl.String})


def gzip_size(level: int) -> Size:
    return lambda data: len(gzip.compress(data, compresslevel=level))


def plain_loop(texts: Sequence[str], targets: Sequence[str], size: Size) -> list[float]:
    """The definition, one pair at a time."""
    scores = []
    for text in texts:
        x = text.encode()
        pairs = []
        for target in targets:
            y = target.encode()
            cx, cy, cxy = size(x), size(y), size(x + y)
            pairs.append(1 - (cxy - min(cx, cy)) / max(cx, cy))
        scores.append(float(np.mean(pairs)))
    return scores


def scored(
    scorer: ZipFit, texts: Sequence[str | None], targets: Sequence[str], workers: int = 1
) -> list[float | None]:
    table = score_view(scorer, frame(texts), frame(targets, "t"), workers=workers)
    return table["zip_fit.alignment"].to_list()


plain = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
repeats = st.builds(lambda part, times: part * times, plain, st.integers(0, 40))
bytes_like = st.binary(max_size=300).map(lambda raw: raw.decode("latin-1"))
pieces = st.lists(st.sampled_from(["def ", "return ", "the ", "\n    ", "日本", "🙂", "x = 1\n"])).map(
    "".join
)
texts_of = st.one_of(st.just(""), plain, repeats, bytes_like, pieces)


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 9),
    st.lists(texts_of, min_size=1, max_size=4),
    st.lists(texts_of, min_size=1, max_size=20),
)
def test_equals_a_plain_gzip_loop_to_the_last_bit(level: int, texts: list[str], targets: list[str]) -> None:
    assert scored(ZipFit(level=level), texts, targets) == plain_loop(texts, targets, gzip_size(level))


@pytest.mark.parametrize("level", [0, 1, 3, 9, 12])
def test_equals_a_plain_lz4_loop_to_the_last_bit(level: int) -> None:
    texts, targets = ["", "one text", "ab" * 900, "é🙂" * 30], ["", "one text more", "ba" * 500]
    expected = plain_loop(texts, targets, lambda data: len(lz4.frame.compress(data, compression_level=level)))
    assert scored(ZipFit(compressor="lz4", level=level), texts, targets) == expected


@pytest.mark.parametrize("level", [1, 4, 6, 9])
def test_equals_the_plain_loop_for_texts_longer_than_the_window(level: int) -> None:
    rng = random.Random(5)
    words = ["".join(rng.choices("etaoin shrdlu", k=rng.randint(1, 9))) for _ in range(400)]
    texts = [" ".join(rng.choices(words, k=k)) for k in (3_000, 9_000, 30_000)]
    targets = [texts[0][:40_000], texts[1][-100:], "".join(map(chr, range(32, 2_000))) * 20]
    assert min(map(len, texts)) < 32_768 < max(map(len, texts))
    assert scored(ZipFit(level=level), texts, targets) == plain_loop(texts, targets, gzip_size(level))


@pytest.mark.parametrize("count", [7, 8, 9, 127, 128, 129, 300])
def test_the_mean_is_numpys_own_at_every_number_of_targets(count: int) -> None:
    """Pairwise summation changes its tree at 8 and at 128 terms; a running sum differs in the last bits."""
    rng = random.Random(count)
    targets = ["".join(rng.choices("abcdef ", k=rng.randint(0, 50))) for _ in range(count)]
    targets[-1] = targets[0]
    texts = ["abc def fed cab", "xyz", targets[3]]
    assert scored(ZipFit(level=6), texts, targets) == plain_loop(texts, targets, gzip_size(6))


def test_by_hand_from_printed_gzip_sizes() -> None:
    """C(a)=39, C(b)=39, C(c)=30, C(ab)=46, C(ac)=49: mean of 1-7/39 and 1-19/39 is 2/3."""
    a, b, c = "the cat sat on the mat", "the cat sat on the hat", "0123456789"
    size = gzip_size(1)
    if [size(t.encode()) for t in (a, b, c, a + b, a + c)] != [39, 39, 30, 46, 49]:
        pytest.skip("another zlib prints other sizes")
    assert scored(ZipFit(), [a], [b, c]) == [(32 / 39 + 20 / 39) / 2]
    assert scored(ZipFit(), [a], [b, c])[0] == pytest.approx(2 / 3, abs=1e-15)


def test_by_hand_from_invented_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Order is text then target, and the smaller own size is subtracted: (1-(9-6)/8 + 1-(16-8)/10)/2."""
    sizes = {b"x": 8, b"y": 6, b"z": 10, b"xy": 9, b"xz": 16, b"yx": 99, b"zx": 99}
    monkeypatch.setattr(compressors, "sizer", lambda compressor, level: sizes.__getitem__)
    assert scores([b"x"], ZipFit(compressor="lz4").prepare(frame(["y", "z"], "t"))) == [(5 / 8 + 2 / 10) / 2]


def test_like_texts_score_above_unlike_ones() -> None:
    target = ["def add(a, b):\n    return a + b\n" * 4]
    alike, unlike = scored(ZipFit(level=6), [target[0], "Once upon a time there was a queen. " * 4], target)
    assert alike is not None
    assert unlike is not None
    assert alike > 0.8 > 0.5 > unlike


def test_two_threads_compress_at_the_same_time_and_agree() -> None:
    rng = random.Random(1)
    texts = ["".join(rng.choices("abcdefgh \n", k=200)) for _ in range(200)]
    targets = texts[:20]
    assert scored(ZipFit(), texts, targets, workers=1) == scored(ZipFit(), texts, targets, workers=2)
    prepared = ZipFit().prepare(frame(targets))
    gate = threading.Barrier(2)

    def go(_: int) -> pl.DataFrame:
        gate.wait(timeout=30)
        return ZipFit().score(frame(texts), prepared)

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(go, range(2))
    assert first.equals(second)


def test_a_row_without_text_has_no_score_and_says_so() -> None:
    table = score_view(ZipFit(), frame([None, "", "a"]), frame(["a"], "t"))
    assert table["zip_fit.alignment"].is_null().to_list() == [True, False, False]
    assert table["zip_fit.status"].to_list() == ["no text", None, None]


def test_a_reference_without_rows_or_without_text_is_refused() -> None:
    with pytest.raises(ScoreError, match="the reference has no rows"):
        score_view(ZipFit(), frame(["a"]), frame([]))
    with pytest.raises(ScoreError, match=r"'t1'.*1 of 3 reference rows have no text"):
        score_view(ZipFit(), frame(["a"]), frame(["a", None, "b"], "t"))
    with pytest.raises(ScoreError, match="needs a reference"):
        score_view(ZipFit(), frame(["a"]), None)


@pytest.mark.parametrize(
    ("given_settings", "message"),
    [
        ({"level": 0}, "stores without compressing, so the score would rank by length alone"),
        ({"level": 10}, "gzip has levels 1 to 9, not 10"),
        ({"level": -1}, "gzip has levels 1 to 9, not -1"),
        ({"compressor": "lz4", "level": 13}, "lz4 has levels 0 to 12, not 13"),
        ({"compressor": "zip"}, "'gzip' or 'lz4'"),
        ({"levels": 3}, "Extra inputs"),
    ],
)
def test_impossible_settings_are_refused_with_the_reason(
    given_settings: dict[str, object], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        ZipFit.model_validate(given_settings)


def test_the_default_level_follows_the_compressor() -> None:
    assert ZipFit() == ZipFit(compressor="gzip", level=1)
    assert ZipFit(compressor="lz4") == ZipFit(compressor="lz4", level=0)


def test_the_environment_names_the_library_behind_the_sizes() -> None:
    assert set(ZipFit().environment()) == {"zlib"}
    assert "lz4" in ZipFit(compressor="lz4").environment()
    assert set(ZipFit(race=5).environment()) == {"zlib", "numpy", "scipy"}

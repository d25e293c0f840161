"""Responses that are kept: complete or absent after any kill, the same frame in any order."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from itertools import pairwise
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from karat.errors import StoreError
from karat.scorers.generation.ledger import Ledger
from karat.scorers.generation.records import SCHEMA, line_of, records_in
from karat.scorers.generation.samples import Ask, Sample, failure

TEXTS = ["", "plain", "two\nlines\r\n", "🙂 \x00 \u2028 \x85", '"quoted" \\n', "x" * 50_000]


def asks(count: int = 20) -> list[Ask]:
    return [Ask(f"q{i % 5}", f"prompt {i % 5}", i // 5) for i in range(count)]


def sample(ask: Ask) -> Sample:
    text = f"{TEXTS[(ask.number + int(ask.query[1:])) % len(TEXTS)]}{ask.query}#{ask.number}"
    return Sample(text, "stop" if ask.number % 2 else "length", None if ask.number == 2 else len(text))


def filled(folder: Path, order: list[Ask], key: str = "k") -> Ledger:
    ledger = Ledger(folder, key)
    for ask in order:
        assert ledger.add(ask, sample(ask))
    return ledger


def expected(order: list[Ask]) -> pl.DataFrame:
    rows = [(a.query, a.number, sample(a).text, sample(a).finish, sample(a).tokens) for a in sorted(order)]
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")


def test_what_is_added_is_known_at_once_and_after_all_that_follows(tmp_path: Path) -> None:
    ledger = filled(tmp_path, asks())
    for there in (ledger, Ledger(tmp_path, "k")):
        assert there.known().equals(expected(asks()))
    ledger.sync()
    ledger.close()
    assert sorted(p.suffix for p in (tmp_path / "k").iterdir()) == [".lock", ".parquet"]
    assert Ledger(tmp_path, "k").known().equals(expected(asks()))
    more = Ask("q9", "p", 0)
    ledger.add(more, sample(more))  # opens again
    ledger.close()
    assert ledger.known().equals(expected([*asks(), more]))
    assert ledger.known(["q9", "nobody"]).equals(expected([more]))
    assert Ledger(tmp_path, "other").known().equals(pl.DataFrame(schema=SCHEMA))


def test_missing_keeps_the_order_and_names_each_once(tmp_path: Path) -> None:
    ledger = filled(tmp_path, asks()[:7])
    wanted = [*reversed(asks()), *asks()]
    assert ledger.missing(wanted) == list(reversed(asks()[7:]))
    assert ledger.missing([]) == []
    ledger.close()
    assert Ledger(tmp_path, "k").missing(wanted) == list(reversed(asks()[7:]))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), cuts=st.lists(st.integers(0, 20), max_size=4))
def test_order_and_interruptions_do_not_show(
    tmp_path_factory: pytest.TempPathFactory, seed: int, cuts: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("ledger")
    order = random.Random(seed).sample(asks(), 20)
    bounds = sorted({0, *cuts, 20})
    for start, end in pairwise(bounds):
        filled(folder, order[start:end]).close()
    found = Ledger(folder, "k").known()
    assert found.equals(expected(asks()))
    found.write_parquet(folder / "a.parquet")
    expected(asks()).write_parquet(folder / "b.parquet")
    assert (folder / "a.parquet").read_bytes() == (folder / "b.parquet").read_bytes()


def test_a_record_is_complete_or_absent_wherever_it_is_cut(tmp_path: Path) -> None:
    order = asks(6)
    whole = b"".join(line_of(ask, sample(ask)) for ask in order)
    ends = [len(b"".join(line_of(a, sample(a)) for a in order[: k + 1])) for k in range(6)]
    path = tmp_path / "x.part"
    near = {e + d for e in (0, *ends) for d in range(-12, 13)}
    for size in sorted({*range(0, len(whole), 997), *near} & set(range(len(whole) + 1))):
        path.write_bytes(whole[:size])
        complete = sum(end <= size for end in ends)
        assert len(records_in(path)) == complete


def test_a_damaged_byte_costs_its_record_alone(tmp_path: Path) -> None:
    lines = [line_of(ask, sample(ask)) for ask in asks(4)]
    whole = b"".join(lines)
    path = tmp_path / "x.part"
    for place in range(0, len(whole), max(1, len(whole) // 300)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x15]) + whole[place + 1 :])
        assert 2 <= len(records_in(path)) <= 3


def test_a_torn_end_is_asked_again(tmp_path: Path) -> None:
    ledger = filled(tmp_path, asks(5))
    part = next((tmp_path / "k").glob("*.part"))
    os.truncate(part, part.stat().st_size - 3)
    assert ledger.missing(asks(5)) == [asks(5)[4]]
    ledger.close()
    assert Ledger(tmp_path, "k").missing(asks(5)) == [asks(5)[4]]
    filled(tmp_path, [asks(5)[4]]).close()
    assert Ledger(tmp_path, "k").known().equals(expected(asks(5)))


def test_failures_are_counted_and_not_kept(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, "k")
    assert not ledger.add(asks()[0], failure("busy"))
    assert not ledger.add(asks()[1], failure("busy"))
    assert ledger.failures == {"failed: busy": 2}
    assert ledger.missing(asks()) == asks()
    ledger.close()
    assert not (tmp_path / "k").exists()


def test_half_a_surrogate_pair_can_be_kept(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, "k")
    ledger.add(Ask("q", "p", 0), Sample("a\ud83db", "stop", 1))
    ledger.close()
    assert ledger.known()["text"].to_list() == ["a?b"]


def test_of_two_responses_to_one_ask_the_same_stays(tmp_path: Path) -> None:
    ask = Ask("q", "p", 0)
    texts = ["b", "a", "c"]
    found = []
    for order in (texts, texts[::-1]):
        folder = tmp_path / "".join(order)
        ledgers = [Ledger(folder, "k") for _ in order]
        for ledger, text in zip(ledgers, order, strict=True):
            ledger.add(ask, Sample(text, "stop", 1))
        found.append(ledgers[0].known()["text"].to_list())
        for ledger in ledgers:
            ledger.close()
        assert len(ledgers[0].known()) == 1
    assert found == [["a"], ["a"]]
    late = Ledger(folder, "k")
    kept = late.known()
    late.add(ask, Sample("0", "stop", 1))
    assert late.known().equals(kept)
    late.close()
    assert late.known().equals(kept)


def test_a_living_writers_records_stay_his(tmp_path: Path) -> None:
    writer = filled(tmp_path, asks()[:10])
    Ledger(tmp_path, "k").compact()
    assert len(list((tmp_path / "k").glob("*.part"))) == 1
    for ask in asks()[10:]:
        writer.add(ask, sample(ask))
    assert Ledger(tmp_path, "k").known().equals(expected(asks()))
    writer.close()
    assert Ledger(tmp_path, "k").known().equals(expected(asks()))


def test_a_compaction_that_was_killed_halfway_repeats_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = filled(tmp_path, asks())
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            ledger.close()
    assert list((tmp_path / "k").glob("*.part"))
    assert list((tmp_path / "k").glob("*.parquet"))
    assert Ledger(tmp_path, "k").known().equals(expected(asks()))
    Ledger(tmp_path, "k").compact()
    assert not list((tmp_path / "k").glob("*.part"))
    assert len(list((tmp_path / "k").glob("*.parquet"))) == 1
    assert Ledger(tmp_path, "k").known().equals(expected(asks()))


def test_a_full_disk_is_a_sentence_and_leaves_no_torn_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = filled(tmp_path, asks()[:3])
    write = os.write

    def full(file: int, data: bytes) -> int:
        if len(data) > 9:
            return write(file, data[:9])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(StoreError, match="No space left"):
        ledger.add(Ask("q7", "p", 0), Sample("x" * 9, "stop", 1))
    monkeypatch.undo()
    ledger.add(asks()[3], sample(asks()[3]))
    assert ledger.known().equals(expected(asks()[:4]))


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    filled(tmp_path, asks()).close()
    path = next((tmp_path / "k").glob("*.parquet"))
    path.write_bytes(b"PAR1 nothing")
    with pytest.raises(StoreError, match="is damaged") as told:
        Ledger(tmp_path, "k").known()
    assert str(path) in str(told.value)


def test_threads_share_a_ledger(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, "k")
    wanted = asks(200)
    threads = [
        threading.Thread(target=lambda k=k: [ledger.add(a, sample(a)) for a in wanted[k::8]])
        for k in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ledger.close()
    assert ledger.known().equals(expected(wanted))


WRITER = """
    import sys, time
    from karat.scorers.generation.ledger import Ledger
    from karat.scorers.generation.samples import Ask, Sample

    ledger = Ledger(sys.argv[1], "k")
    print("ready", flush=True)
    number = 0
    while True:
        ask = Ask(sys.argv[2], "p", number)
        ledger.add(ask, Sample(f"{ask.query}-{number}-" + "y" * (number * 7919 % 3000), "stop", number))
        print(number, flush=True)
        number += 1
        if number % 50 == 0:
            ledger.close()
"""


def test_killed_writers_lose_nothing_that_was_added(tmp_path: Path) -> None:
    draw = random.Random(5)
    for turn in range(3):
        code = [sys.executable, "-c", textwrap.dedent(WRITER), str(tmp_path)]
        running = [
            subprocess.Popen([*code, f"q{turn}{k}"], stdout=subprocess.PIPE, text=True) for k in range(2)
        ]
        for process in running:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        time.sleep(draw.uniform(0.05, 0.5))
        for process in running:
            process.send_signal(signal.SIGKILL)
        for k, process in enumerate(running):
            assert process.stdout is not None
            lines = process.stdout.read().split("\n")
            process.wait()
            added = int(lines[-2]) + 1 if len(lines) > 1 else 0
            known = Ledger(tmp_path, "k").known([f"q{turn}{k}"])
            assert known["number"].to_list() == list(range(len(known)))
            assert added <= len(known) <= added + 1
            for number, text in known.select("number", "text").iter_rows():
                assert text == f"q{turn}{k}-{number}-" + "y" * (number * 7919 % 3000)
    before = Ledger(tmp_path, "k").known()
    Ledger(tmp_path, "k").compact()
    assert not list((tmp_path / "k").glob("*.part*"))
    assert Ledger(tmp_path, "k").known().equals(before)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_writes_a_file_of_its_own(tmp_path: Path) -> None:
    ledger = filled(tmp_path, asks()[:5])
    child = os.fork()
    if not child:
        for ask in asks()[5:10]:
            ledger.add(ask, sample(ask))
        os._exit(0)
    os.waitpid(child, 0)
    Ledger(tmp_path, "k").compact()
    for ask in asks()[10:]:
        ledger.add(ask, sample(ask))
    ledger.close()
    assert Ledger(tmp_path, "k").known().equals(expected(asks()))


def test_a_large_part_is_compacted_on_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("karat.scorers.generation.ledger.LARGEST", 40_000)
    ledger = Ledger(tmp_path, "k")
    for ask in asks():
        ledger.add(ask, sample(ask))
        ledger.sync()
        assert sum(path.stat().st_size for path in (tmp_path / "k").glob("*.part")) < 100_000
    assert len(list((tmp_path / "k").glob("*.parquet"))) > 1
    assert ledger.known().equals(expected(asks()))
    assert ledger.missing(asks(25)) == asks(25)[20:]

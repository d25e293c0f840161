"""Getting what is missing: each response once, whatever the order and however often it is killed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from served_stub import Call, Given, ServedStub
from tiny_models import tiny_model

from karat.errors import ScoreError, StoreError
from karat.scorers.generation import generating
from karat.scorers.generation.generating import generate
from karat.scorers.generation.ledger import Ledger
from karat.scorers.generation.local import LocalSampler
from karat.scorers.generation.records import SCHEMA
from karat.scorers.generation.requests import seed_of
from karat.scorers.generation.responders import ResponseModel, responses_key
from karat.scorers.generation.samples import Ask, OnSample, Sample, failure
from karat.scorers.generation.settings import Generation


class Quiet:
    """A reporter that remembers."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def start(self, stage: str, total: int, unit: str) -> None:
        self.told.append(("start", stage, total, unit))

    def advance(self, stage: str, done: int, also: str = "") -> None:
        self.told.append(("advance", done))

    def finish(self, stage: str, note: str) -> None:
        self.told.append(("finish", note))


class Stub:
    """A sampler that counts; early: whether it hands responses over as they come."""

    def __init__(self, early: bool = True, bad: frozenset[str] = frozenset(), dies_at: int = 10**9) -> None:
        self.early, self.bad, self.dies_at = early, bad, dies_at
        self.asked: list[Ask] = []
        self.calls: list[int] = []

    def sample(
        self, asks: Sequence[Ask], on_sample: OnSample | None = None, among: Sequence[Ask] = ()
    ) -> list[Sample]:
        self.calls.append(len(asks))
        found = []
        for ask in asks:
            if len(self.asked) >= self.dies_at:
                raise KeyboardInterrupt
            self.asked.append(ask)
            sample = (
                failure("bad") if ask.query in self.bad else Sample(f"{ask.prompt}#{ask.number}", "stop", 2)
            )
            if self.early and on_sample is not None:
                on_sample(ask, sample)
            found.append(sample)
        return found


def asks(queries: int = 6, count: int = 5) -> list[Ask]:
    return [Ask(f"q{q}", f"prompt {q}", n) for n in range(count) for q in range(queries)]


def expected(wanted: Sequence[Ask]) -> pl.DataFrame:
    rows = [(a.query, a.number, f"{a.prompt}#{a.number}", "stop", 2) for a in sorted(set(wanted))]
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")


@pytest.mark.parametrize("early", [True, False])
def test_only_what_is_missing_is_asked(tmp_path: Path, early: bool) -> None:
    stub, report = Stub(early), Quiet()
    wanted = [*asks(), *asks(2)]
    assert generate(stub, wanted, Ledger(tmp_path, "k"), report).equals(expected(wanted))
    assert Counter(stub.asked) == Counter(asks())
    assert report.told[0] == ("start", "generate", 30, "responses")
    assert report.told[-1] == ("finish", "30 responses, 60 tokens")
    assert ("advance", 30) in report.told
    more = asks(8, 6)
    assert generate(stub, more, Ledger(tmp_path, "k"), report).equals(expected(more))
    assert Counter(stub.asked) == Counter(more)
    # Others than those asked for are not in the answer, and nothing is asked for nothing.
    calls, told = len(stub.calls), len(report.told)
    assert generate(stub, asks(2, 2), Ledger(tmp_path, "k"), report).equals(expected(asks(2, 2)))
    assert generate(stub, [], Ledger(tmp_path, "k"), report).equals(expected([]))
    assert (len(stub.calls), len(report.told)) == (calls, told)


def test_failed_responses_are_told_and_asked_again(tmp_path: Path) -> None:
    ledger, report = Ledger(tmp_path, "k"), Quiet()
    found = generate(Stub(bad=frozenset({"q1"})), asks(), ledger, report)
    assert found.drop_nulls("text").equals(expected([a for a in asks() if a.query != "q1"]))
    lost = found.filter(pl.col("text").is_null())
    assert lost["query"].to_list() == ["q1"] * 5
    assert lost["finish"].to_list() == ["failed: bad"] * 5
    assert ledger.failures == {"failed: bad": 5}
    assert report.told[-1] == ("finish", "30 responses, 50 tokens, 5 failed, such as: failed: bad")
    again = Stub()
    assert generate(again, asks(), Ledger(tmp_path, "k"), report).equals(expected(asks()))
    assert sorted(again.asked) == [Ask("q1", "prompt 1", n) for n in range(5)]


def test_chunks_are_cut_from_all_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generating, "CHUNK", 7)
    stub = Stub()
    shuffled = random.Random(1).sample(asks(), 30)
    generate(stub, shuffled, Ledger(tmp_path, "a"), Quiet())
    assert stub.asked == sorted(asks())
    assert stub.calls == [7, 7, 7, 7, 2]
    ledger = Ledger(tmp_path, "b")
    for ask in sorted(asks())[3:9]:
        ledger.add(ask, Sample(f"{ask.prompt}#{ask.number}", "stop", 2))
    rest = Stub()
    assert generate(rest, shuffled, ledger, Quiet()).equals(expected(asks()))
    assert rest.calls == [3, 5, 7, 7, 2]


def test_what_arrived_before_an_interrupt_is_kept(tmp_path: Path) -> None:
    first = Stub(dies_at=11)
    with pytest.raises(KeyboardInterrupt):
        generate(first, asks(), Ledger(tmp_path, "k"), Quiet())
    second = Stub()
    assert generate(second, asks(), Ledger(tmp_path, "k"), Quiet()).equals(expected(asks()))
    assert Counter(first.asked + second.asked) == Counter(asks())


def test_two_prompts_under_one_key_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ScoreError, match="two prompts"):
        generate(Stub(), [Ask("q", "a", 0), Ask("q", "b", 1)], Ledger(tmp_path, "k"), Quiet())


COUNT, QUERIES = 40, 12

SERVED = """
    import sys
    from karat.scorers.generation.generating import generate
    from karat.scorers.generation.ledger import Ledger
    from karat.scorers.generation.responders import ResponseModel, sampler_of
    from karat.scorers.generation.samples import Ask
    from karat.scorers.generation.settings import Generation

    source = ResponseModel(model="m", revision="1", server={"url": sys.argv[2], "concurrency": 4})
    asks = [Ask(f"q{q}", f"prompt {q}", n) for q in range(12) for n in range(40)]
    found = generate(sampler_of(source, Generation(seed=3)), asks, Ledger(sys.argv[1], "k"))
    found.write_parquet(sys.argv[3])
"""

LOCAL = """
    import sys
    from pathlib import Path
    from karat.scorers.generation.generating import generate
    from karat.scorers.generation.ledger import Ledger
    from karat.scorers.generation.responders import ResponseModel, responses_key, sampler_of
    from karat.scorers.generation.samples import Ask
    from karat.scorers.generation.settings import Generation

    source = ResponseModel(model=sys.argv[2], dtype="float64", device="cpu")
    generation = Generation(max_new_tokens=24, temperature=1.2, top_p=0.95, stop="a", batch_size=4)
    asks = [Ask(f"q{q}", "x" * q, n) for q in range(12) for n in range(6)]
    sampler = sampler_of(source, generation)
    write = sampler._write
    def logged(batch, deliver):
        def told(ask, sample):
            deliver(ask, sample)
            with Path(sys.argv[4]).open("a") as log:
                log.write(f"{ask.query} {ask.number}\\n")
        write(batch, told)
    sampler._write = logged
    print("ready", flush=True)
    found = generate(sampler, asks, Ledger(sys.argv[1], responses_key(source, generation)))
    found.write_parquet(sys.argv[3])
"""


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def finish(process: subprocess.Popen[str]) -> None:
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors


def test_killed_again_and_again_a_server_is_asked_once_for_all_that_was_kept(tmp_path: Path) -> None:
    draw = random.Random(11)
    answered: Counter[int] = Counter()
    lock = threading.Lock()

    def answer(call: Call) -> Given:
        assert call.body is not None
        time.sleep(0.004)
        with lock:
            answered[call.body["seed"]] += 1
        said = {"text": f"{call.body['prompt']}: {call.body['seed']}", "finish_reason": "stop"}
        return Given(200, {"choices": [said], "usage": {"completion_tokens": 3}})

    seeds = {(f"q{q}", n): seed_of(3, f"q{q}", n) for q in range(QUERIES) for n in range(COUNT)}
    with ServedStub(name="m") as stub:
        stub.before = answer
        snapshots = []
        for kills in range(1, 5):
            enough = len(stub.calls) + draw.randrange(20, 110)
            process = start(SERVED, tmp_path, stub.url, tmp_path / "killed.parquet")
            while len(stub.calls) < enough and process.poll() is None:
                time.sleep(0.002)
            process.send_signal(signal.SIGKILL)
            process.communicate()
            assert process.returncode == -signal.SIGKILL
            time.sleep(0.2)  # what was in flight
            kept = set(Ledger(tmp_path, "k").known().select("query", "number").iter_rows())
            snapshots.append((kept, Counter(answered)))
            # At most what was in flight at a kill was asked for and not kept, and what had just arrived.
            assert len(kept) >= sum(answered.values()) - 8 * kills
        finish(start(SERVED, tmp_path, stub.url, tmp_path / "killed.parquet"))
        for kept, earlier in snapshots:
            assert all(answered[seeds[of]] == earlier[seeds[of]] for of in kept)
        answered.clear()
        finish(start(SERVED, tmp_path / "calm", stub.url, tmp_path / "calm.parquet"))
        assert set(answered.values()) == {1}
        assert len(answered) == COUNT * QUERIES
    assert (tmp_path / "killed.parquet").read_bytes() == (tmp_path / "calm.parquet").read_bytes()


@pytest.mark.slow
def test_killed_again_and_again_a_model_writes_the_same(tmp_path: Path) -> None:
    model, log = tiny_model("llama"), tmp_path / "log"
    draw = random.Random(2)
    kills = 0
    for _ in range(3):
        lines = len(log.read_text().splitlines()) if log.exists() else 0
        until = lines + draw.randrange(1, 16)
        process = start(LOCAL, tmp_path, model, tmp_path / "killed.parquet", log)
        while process.poll() is None and (not log.exists() or len(log.read_text().splitlines()) < until):
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
    assert kills == 3
    finish(start(LOCAL, tmp_path, model, tmp_path / "killed.parquet", log))
    written = Counter(log.read_text().splitlines())
    # Handed over and then logged: none twice, and one at most for each kill was not logged.
    assert set(written.values()) == {1}
    assert 12 * 6 - kills <= len(written) <= 12 * 6
    finish(start(LOCAL, tmp_path / "calm", model, tmp_path / "calm.parquet", tmp_path / "log2"))
    assert (tmp_path / "killed.parquet").read_bytes() == (tmp_path / "calm.parquet").read_bytes()


@pytest.mark.slow
def test_two_processes_at_once_give_what_one_gives(tmp_path: Path) -> None:
    model = tiny_model("llama")
    both = [start(LOCAL, tmp_path, model, tmp_path / f"{k}.parquet", tmp_path / f"log{k}") for k in range(2)]
    for process in both:
        finish(process)
    assert (tmp_path / "0.parquet").read_bytes() == (tmp_path / "1.parquet").read_bytes()
    found = pl.read_parquet(tmp_path / "0.parquet")
    source = ResponseModel(model=model, dtype="float64", device="cpu")
    generation = Generation(max_new_tokens=24, temperature=1.2, top_p=0.95, stop=("a",), batch_size=4)
    wanted = [Ask(f"q{q}", "x" * q, n) for q in range(12) for n in range(6)]
    key = responses_key(source, generation)
    again = generate(LocalSampler(source, generation), wanted, Ledger(tmp_path / "c", key), Quiet())
    assert again.equals(found)
    assert Ledger(tmp_path, key).known().equals(found)


KILLED = """
    import os, signal, sys, zlib
    from pathlib import Path
    import transformers.models.llama.modeling_llama
    from karat.scorers.generation import batch, generating
    from karat.scorers.generation.generating import generate
    from karat.scorers.generation.ledger import Ledger
    from karat.scorers.generation.responders import ResponseModel, responses_key, sampler_of
    from karat.scorers.generation.samples import Ask
    from karat.scorers.generation.settings import Generation

    generating.CHUNK = 30
    source = ResponseModel(model=sys.argv[1], device="cpu")
    generation = Generation(max_new_tokens=12, batch_size=5)
    asks = [Ask(f"q{q}", "x" * q, n) for q in range(8) for n in range(7)]

    # Logits that feel what else is in their batch, as on a GPU, but more.
    draw = batch.Drawing.__call__
    def disturbed(self, input_ids, scores):
        return draw(self, input_ids, scores * (1 + 0.1 * (zlib.crc32(b"".join(self.keys)) % 7)))
    batch.Drawing.__call__ = disturbed

    def run(home, stop):
        ledger, added = Ledger(home, responses_key(source, generation)), []
        add = ledger.add
        def adding(ask, sample):
            added.append(add(ask, sample))
            if len(added) == stop:
                os.kill(os.getpid(), signal.SIGKILL)
            return added[-1]
        ledger.add = adding
        generate(sampler_of(source, generation), asks, ledger).write_parquet(home / "found.parquet")
        assert not list(ledger.folder.glob("begun-*"))

    for kills in sys.argv[3:]:
        home = Path(sys.argv[2], kills)
        home.mkdir()
        for stop in map(int, kills.split()):
            child = os.fork()
            if not child:
                run(home, stop)
                os._exit(0)
            assert os.waitpid(child, 0)[1] == (signal.SIGKILL if stop else 0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_killed_between_and_within_batches_the_bytes_stay_the_same(tmp_path: Path) -> None:
    # Batches of 5 in chunks of 30 and 26: kills after a batch, within one, at a chunk's end, in the second.
    killed = ("5 0", "7 0", "1 3 9 0", "30 0", "33 10 2 0")
    finish(start(KILLED, tiny_model("llama"), tmp_path, "0", *killed))
    calm = (tmp_path / "0" / "found.parquet").read_bytes()
    for kills in killed:
        assert (tmp_path / kills / "found.parquet").read_bytes() == calm, kills


def test_a_killed_call_goes_on_with_its_batches_and_hands_over_the_missing_alone(tmp_path: Path) -> None:
    generation = Generation(max_new_tokens=3, batch_size=4)
    source = ResponseModel(model=tiny_model("llama"), device="cpu")
    wanted = asks(4, 3)
    batches: list[list[tuple[Ask, bool]]] = []
    given: list[Ask] = []

    class Recording(LocalSampler):
        def _write(self, batch: Any, deliver: OnSample) -> None:
            batches.append([(row.ask, row.known) for row in batch])
            super()._write(batch, deliver)

        def sample(
            self, asks: Sequence[Ask], on_sample: OnSample | None = None, among: Sequence[Ask] = ()
        ) -> list[Sample]:
            def told(ask: Ask, sample: Sample) -> None:
                assert on_sample is not None
                on_sample(ask, sample)
                given.append(ask)
                if len(given) == 6:
                    raise KeyboardInterrupt

            return super().sample(asks, told, among)

    with pytest.raises(KeyboardInterrupt):
        generate(Recording(source, generation), wanted, Ledger(tmp_path, "k"), Quiet())
    second, batches[:] = batches[1], []
    generate(Recording(source, generation), wanted, Ledger(tmp_path, "k"), Quiet())
    left = [batch for batch in batches if not all(known for _, known in batch)]
    assert [ask for ask, _ in left[0]] == [ask for ask, _ in second]
    assert [known for _, known in left[0]] == [True, True, False, False]
    assert len(given) == len(set(given)) == len(wanted)


def test_a_damaged_note_of_a_chunk_is_named(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        generate(Stub(dies_at=3), asks(), Ledger(tmp_path, "k"), Quiet())
    note = next((tmp_path / "k").glob("begun-*"))
    note.write_bytes(b"PAR1 nothing")
    with pytest.raises(StoreError, match="is damaged") as told:
        generate(Stub(), asks(), Ledger(tmp_path, "k"), Quiet())
    assert str(note) in str(told.value)
    note.unlink()
    assert generate(Stub(), asks(), Ledger(tmp_path, "k"), Quiet()).equals(expected(asks()))
    assert not list((tmp_path / "k").glob("begun-*"))

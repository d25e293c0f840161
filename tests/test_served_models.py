"""Scorers that ask a served model: the numbers of the local path, and what happens when things fail."""

from __future__ import annotations

import itertools
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from pydantic import ValidationError
from served_stub import KEY, Call, Given, ServedStub
from tiny_models import tiny_model, tiny_pair

import karat
from karat.errors import KaratError
from karat.parts import Scorer
from karat.registry import load
from karat.scorers.deita_complexity import DeitaComplexity
from karat.scorers.deita_quality import DeitaQuality
from karat.scorers.donod import Donod
from karat.scorers.ifd import Ifd
from karat.scorers.judge import Judge
from karat.scorers.loss import Loss
from karat.scorers.model.runner import Request
from karat.scorers.perplexity import Perplexity
from karat.scorers.server import retrying
from karat.scorers.server.completions import TOP
from karat.scorers.server.served_runner import ServedRunner
from karat.scorers.server.served_states import ServedStates
from karat.scorers.server.settings import Server

KINDS: tuple[Any, ...] = (Loss, Perplexity, Ifd)
ROWS = pl.DataFrame(
    {
        "id": list("abcdefgh"),
        "prompt": ["Add 1 and 1.", "", "Say hi.", None, "Sum", "Sing", "Add 1 and 1.", "P" * 90],
        "response": ["2", "hello there", "🙂 hi", "free\x00 {text}", "", None, "2", "R"],
    }
)


@pytest.fixture(scope="module")
def pair() -> tuple[Any, Any]:
    return tiny_pair("llama", "float32")


@pytest.fixture
def stub(pair: tuple[Any, Any]) -> Iterator[ServedStub]:
    with ServedStub(pair) as started:
        yield started


@pytest.fixture(autouse=True)
def _no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrying, "FIRST_WAIT", 0.001)


def served(kind: type[Any], stub: ServedStub, **settings: Any) -> Any:
    server = {"url": stub.url, **settings.pop("server", {})}
    return kind(model="tiny", server=server, tokenizer=tiny_model("llama"), **settings)


def failing_first(times: int, given: Given) -> Any:
    """The first requests of completions after the try-out fail."""
    seen = itertools.count()

    def before(call: Call) -> Given | None:
        return given if call.path.endswith("completions") and 1 <= next(seen) <= times else None

    return before


@pytest.mark.parametrize("dialect", ["vllm", "openai"])
def test_a_server_gives_the_numbers_of_the_local_path(
    stub: ServedStub, pair: tuple[Any, Any], dialect: str
) -> None:
    how = {"server": {"dialect": dialect}, "max_tokens": 32}
    found = karat.score([served(kind, stub, **how) for kind in KINDS], ROWS)
    local = karat.score([kind(model=pair, max_tokens=32) for kind in KINDS], ROWS)
    assert found.columns == local.columns
    for column in found.columns:
        if found[column].dtype == pl.Float64:
            assert found[column].is_null().to_list() == local[column].is_null().to_list()
            expected = local[column].drop_nulls().to_list()
            assert found[column].drop_nulls().to_list() == pytest.approx(expected, rel=1e-5), column
        else:
            assert found[column].to_list() == local[column].to_list(), column
    assert found["loss.nats"].null_count() == 3
    assert found["perplexity.status"][7] == "truncated"


def test_the_scorers_of_one_server_ask_once_about_a_sequence(stub: ServedStub) -> None:
    rows = pl.DataFrame({"id": ["a", "b", "c"], "text": ["one", "two", "one"]})
    karat.score([served(Loss, stub), served(Perplexity, stub)], rows, workers=1)
    prompts = [body["prompt"] for body in stub.asked()]
    assert len(prompts) == 3, "two texts and the try-out"
    assert all(body["echo"] and body["temperature"] == 0 for body in stub.asked())


def test_the_prompts_of_a_chunk_are_in_flight_together(stub: ServedStub) -> None:
    rows = pl.DataFrame({"id": [f"r{i}" for i in range(80)], "text": [f"row {i}" for i in range(80)]})
    scorer = served(Perplexity, stub)
    prepared = scorer.prepare(None)
    scorer.score(rows[:1], prepared)  # the try-out goes alone
    stub.wait_for = 80
    table = scorer.score(rows, prepared)
    assert stub.most_at_once == 80
    assert set(table["perplexity.status"]) == {"ok"}


def test_all_prompts_of_a_pool_are_in_flight_together(stub: ServedStub) -> None:
    rows = pl.DataFrame({"id": [f"r{i}" for i in range(90)], "text": [f"row {i}" for i in range(90)]})
    stub.before = lambda call: setattr(stub, "wait_for", 90 if len(stub.calls) > 2 else 1)
    table = karat.score(served(Perplexity, stub), rows, workers=2)
    assert stub.most_at_once == 90
    assert set(table["perplexity.status"]) == {"ok"}


def test_concurrency_is_a_bound_for_all_threads(stub: ServedStub) -> None:
    rows = pl.DataFrame({"id": [f"r{i}" for i in range(60)], "text": [f"row {i}" for i in range(60)]})
    karat.score(served(Perplexity, stub, server={"concurrency": 7}), rows, workers=4, chunk_rows=20)
    assert 2 <= stub.most_at_once <= 7


def test_order_and_chunks_change_nothing(stub: ServedStub) -> None:
    scorer = served(Perplexity, stub)
    whole = karat.score(scorer, ROWS, chunk_rows=100)
    cut = karat.score(scorer, ROWS[::-1], chunk_rows=1, workers=3)
    assert cut[::-1].equals(whole)


@pytest.mark.parametrize(
    "given",
    [
        Given(429, {"error": {"message": "slow down"}}, {"Retry-After": "0.01"}),
        Given(500, b"<html>oops"),
        Given(503),
        Given(408),
        Given(409),
        Given(200, b"{garbage"),
        Given(200, b"[" * 100_000),
        Given(200, b"[]"),
    ],
    ids=lambda given: f"{given.status}-{given.content!r:.12}",
)
def test_what_passes_is_tried_again(stub: ServedStub, given: Given) -> None:
    expected = karat.score(served(Perplexity, stub), ROWS)
    stub.before = failing_first(5, given)
    assert karat.score(served(Perplexity, stub, server={"seed": 1}), ROWS).equals(expected)


def test_a_server_that_asks_to_wait_is_left_alone_by_every_request(stub: ServedStub) -> None:
    karat.score(served(Perplexity, stub), ROWS[:1])
    times: list[tuple[float, bool]] = []
    lock = threading.Lock()

    def before(call: Call) -> Given | None:
        with lock:
            first = not times
            times.append((time.monotonic(), first))
        return Given(429, {}, {"Retry-After": "1"}) if first else None

    stub.before = before
    scorer = served(Perplexity, stub, server={"concurrency": 2})
    prepared = scorer.prepare(None)
    scorer.score(ROWS.select("id", text="prompt")[:1], prepared)
    times.clear()
    table = scorer.score(ROWS.select("id", text=pl.col("id").repeat_by(3).list.join("")), prepared)
    assert set(table["perplexity.status"]) == {"ok"}
    assert sum(at - times[0][0] < 0.9 for at, _ in times) <= 4, "what was in flight; the rest waits"


def test_a_wait_of_an_hour_ends_the_run_with_a_sentence(stub: ServedStub) -> None:
    stub.before = lambda call: Given(429, {"error": {"message": "quota"}}, {"Retry-After": "3600"})
    with pytest.raises(KaratError, match=r"asks to wait 3,600 s: answers 429: quota"):
        karat.score(served(Perplexity, stub, revision="one"), ROWS)


def test_what_does_not_pass_ends_the_run_and_keeps_nothing(stub: ServedStub) -> None:
    stub.before = failing_first(10_000, Given(500, {"error": {"message": "on fire"}}))
    with pytest.raises(KaratError, match=r"answers 500: on fire, 3 times .*goes on from there") as caught:
        karat.score(served(Perplexity, stub, server={"tries": 3}), ROWS)
    assert "row that begins with" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_server_that_hangs_is_not_waited_for_without_end(stub: ServedStub) -> None:
    released = threading.Event()

    def before(call: Call) -> Given | None:
        released.wait(20)
        return None

    stub.before = before
    with pytest.raises(KaratError, match=r"gives no answer within 0\.3 s"):
        karat.score(served(Perplexity, stub, server={"timeout": 0.3, "tries": 2}), ROWS)
    released.set()


def test_a_server_that_is_down_is_one_sentence() -> None:
    with ServedStub() as gone:
        url = gone.url
    scorer = Perplexity(model="tiny", server=url, tokenizer=tiny_model("llama"))
    with pytest.raises(KaratError, match=r"cannot be reached.*is the server up"):
        scorer.digest()
    with pytest.raises(KaratError, match=r"cannot be reached.*is the server up"):
        karat.score(scorer, ROWS)


def test_what_the_server_says_of_a_row_is_kept_as_its_status(stub: ServedStub) -> None:
    def before(call: Call) -> Given | None:
        if call.body and len(call.body["prompt"]) > 50:
            said = "This model's maximum context length is 50 tokens.\n\nPlease reduce"
            return Given(400, {"object": "error", "message": said})
        return None

    stub.before = before
    table = karat.score(served(Perplexity, stub), ROWS)
    assert table["perplexity.status"][7] == (
        "failed: the server answers 400: This model's maximum context length is 50 tokens. Please reduce"
    )
    assert table["perplexity.nats"].is_null().to_list() == [False] * 7 + [True]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda c: c.pop("logprobs"), "gave no log-probabilities"),
        (lambda c: c.update(logprobs=None), "gave no log-probabilities"),
        (lambda c: c["logprobs"].update(token_logprobs=[None]), "answered for 1 tokens"),
        (lambda c: c["logprobs"]["token_logprobs"].__setitem__(2, None), "for the token at place 2"),
        (lambda c: c["logprobs"]["token_logprobs"].__setitem__(2, float("nan")), "for the token at place 2"),
        (lambda c: c["logprobs"]["token_logprobs"].__setitem__(2, -9999.0), "for the token at place 2"),
        (lambda c: c["logprobs"]["token_logprobs"].__setitem__(2, "-1"), "for the token at place 2"),
        (lambda c: c["logprobs"]["tokens"].__setitem__(1, "token_id:9999"), "another token at place 1"),
    ],
)
def test_an_answer_that_lacks_something_is_never_a_score(stub: ServedStub, change: Any, reason: str) -> None:
    whole = stub.completion

    def broken(body: dict[str, Any]) -> dict[str, Any]:
        made = whole(body)
        if len(body["prompt"]) > 50:
            change(made["choices"][0])
        return made

    stub.completion = broken  # type: ignore[method-assign]
    table = karat.score(served(Perplexity, stub), ROWS)
    assert table["perplexity.nats"].is_null().to_list() == [False] * 7 + [True]
    assert reason in table["perplexity.status"][7]

    def always(body: dict[str, Any]) -> dict[str, Any]:
        made = whole(body)
        change(made["choices"][0])
        return made

    stub.completion = always  # type: ignore[method-assign]
    with pytest.raises(KaratError, match="a first request shows that it cannot be used"):
        karat.score(served(Perplexity, stub, server={"seed": 2}), ROWS)


def test_rows_are_cut_to_what_the_server_reads(stub: ServedStub, pair: tuple[Any, Any]) -> None:
    stub.models = [{"id": "tiny", "max_model_len": 51}]
    table = karat.score(served(Perplexity, stub), ROWS)
    assert max(len(body["prompt"]) for body in stub.asked()) == 50
    assert table["perplexity.status"][7] == "truncated"
    local = karat.score(Perplexity(model=pair, max_tokens=50), ROWS)
    expected = local["perplexity.nats"].to_list()
    assert table["perplexity.nats"].to_list() == pytest.approx(expected, rel=1e-5)


def test_a_prompt_that_was_cut_by_the_server_is_no_score(stub: ServedStub) -> None:
    whole = stub.completion
    stub.completion = lambda body: whole({**body, "prompt": body["prompt"][:20]})  # type: ignore[method-assign]
    table = karat.score(served(Perplexity, stub), ROWS)
    assert "answered for 21 tokens, not 93" in table["perplexity.status"][7]


@pytest.mark.parametrize("dialect", ["vllm", "openai"])
def test_the_next_token_by_name(stub: ServedStub, pair: tuple[Any, Any], dialect: str) -> None:
    import torch

    model, tokenizer = pair
    ids = tuple(tokenizer("Score: ")["input_ids"])
    logs = torch.log_softmax(model(torch.tensor([ids])).logits[0, -1].double(), -1)
    # Bytes of UTF-8 sequences have no text of their own, so they have no name but their id.
    likely = [t for t in logs.topk(TOP).indices.tolist() if t < 128][:6]
    seen: dict[int, Any] = {}
    runner = ServedRunner(Server(url=stub.url, dialect=dialect), "tiny", tokenizer)
    runner.run([Request(ids, (len(ids) - 1,)), Request(ids, (0, 1))], seen.__setitem__)
    states = seen[0]
    assert isinstance(states, ServedStates)
    assert states.next_log_probabilities(likely) == pytest.approx(logs[likely].tolist(), rel=1e-5)
    rare = next(t for t in logs.argsort().tolist() if 33 <= t < 127)
    name = f"digit {chr(rare)}" if chr(rare).isdigit() else f"token {chr(rare)!r}"
    told = states.next_log_probabilities([*likely, rare])
    assert isinstance(told, str)
    assert told == f"{name} is not among the 20 most likely tokens"
    assert seen[1].nats_n.shape == (2,)
    with pytest.raises(ValueError, match="nothing follows"):
        _ = states.nats_n


@pytest.mark.parametrize("dialect", ["vllm", "openai"])
@pytest.mark.parametrize("kind", [DeitaComplexity, DeitaQuality])
def test_digits_from_a_server(
    stub: ServedStub, pair: tuple[Any, Any], kind: Any, dialect: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = served(kind, stub, server={"dialect": dialect})
    found = karat.score(scorer, ROWS)
    whole = f"{scorer.kind}.status"
    missing = [status for status in found[whole] if "is not among the 20 most likely tokens" in status]
    assert missing, "random weights: no digit is likely"
    assert all(re.fullmatch(r"failed: digit [1-6] is not .*", status) for status in missing)
    assert found[f"{scorer.kind}.score"].is_null().to_list() == [s.startswith("failed") for s in found[whole]]
    for module in ("served_runner", "served_states"):
        monkeypatch.setattr(f"karat.scorers.server.{module}.TOP", 259)
    found, local = karat.score(scorer, ROWS), karat.score(kind(model=pair), ROWS)
    assert found[whole].to_list() == local[whole].to_list()
    assert found[whole].to_list().count("ok") >= 4
    for column in (f"{scorer.kind}.score",):
        expected = local[column].drop_nulls().to_list()
        assert found[column].drop_nulls().to_list() == pytest.approx(expected, rel=1e-5)


def test_the_wrong_name_and_the_wrong_key_are_sentences(
    stub: ServedStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = Perplexity(model="tinny", server=stub.url, tokenizer=tiny_model("llama"))
    with pytest.raises(
        KaratError, match=r"404: The model `tinny` does not exist.*a name that the server knows"
    ):
        karat.score(scorer, ROWS)
    stub.needs_key = "another"
    monkeypatch.setenv("KARAT_TEST_KEY", KEY)
    with pytest.raises(KaratError, match=r"401.*Bearer \*\*\*.*is the key right") as caught:
        served(Perplexity, stub, server={"api_key_env": "KARAT_TEST_KEY"}).digest()
    assert KEY not in str(caught.value)


def test_the_key_is_nowhere_but_in_the_request(
    stub: ServedStub,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    caplog.set_level(logging.DEBUG)
    stub.needs_key = KEY
    monkeypatch.setenv("KARAT_TEST_KEY", KEY)
    scorer = served(Perplexity, stub, server={"api_key_env": "KARAT_TEST_KEY"})
    digest = scorer.digest()
    table = karat.score(scorer, ROWS)
    assert table["perplexity.nats"].null_count() == 0
    stub.before = failing_first(1_000, Given(400, {"error": {"message": f"bad key {KEY}"}}))
    table = karat.score(served(Perplexity, stub, server={"api_key_env": "KARAT_TEST_KEY"}), ROWS)
    assert "bad key ***" in table["perplexity.status"][0]
    said = capfd.readouterr()
    for text in (caplog.text, said.out, said.err, repr(scorer), scorer.model_dump_json(), str(table.rows())):
        assert KEY not in text
    stub.before = lambda call: None
    monkeypatch.setenv("KARAT_TEST_KEY", "sk-other")
    stub.needs_key = "sk-other"
    assert scorer.digest() == digest, "the key decides nothing"
    monkeypatch.delenv("KARAT_TEST_KEY")
    with pytest.raises(KaratError, match="KARAT_TEST_KEY is not set"):
        karat.score(scorer, ROWS)


@pytest.mark.parametrize(
    "spelled", [str, lambda key: key.replace("/", r"\/"), lambda key: f"\\u0073{key[1:]}"]
)
def test_a_key_that_a_server_spells_with_escapes_is_blotted_out(
    stub: ServedStub, monkeypatch: pytest.MonkeyPatch, spelled: Any
) -> None:
    key = "sk/a+b=" * 3
    monkeypatch.setenv("KARAT_TEST_KEY", key)
    content = json.dumps(json.dumps({"score": 3, "reason": "given KEY"})).replace("KEY", spelled(key))
    choice = f'{{"choices": [{{"index": 0, "message": {{"content": {content}}}}}]}}'.encode()
    stub.before = lambda call: Given(200, choice) if call.body else None
    scorer = Judge(model="tiny", server={"url": stub.url, "api_key_env": "KARAT_TEST_KEY"}, reasons=True)
    assert karat.score(scorer, ["a"])["judge.reason"].to_list() == ["given ***"]


@pytest.mark.parametrize("word", ["-", "1", "null", "EMPTY"])
def test_a_word_in_the_place_of_a_key_changes_no_answer(
    stub: ServedStub, monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    monkeypatch.setenv("KARAT_TEST_KEY", word)
    found = karat.score(served(Perplexity, stub, server={"api_key_env": "KARAT_TEST_KEY"}), ROWS)
    assert found["perplexity.nats"].null_count() == 0


def test_an_error_in_the_body_of_a_200_is_an_error(stub: ServedStub) -> None:
    busy = Given(200, {"error": {"message": "overloaded", "code": 503}})
    stub.before = failing_first(2, busy)
    assert karat.score(served(Perplexity, stub), ROWS)["perplexity.nats"].null_count() == 0
    stub.before = lambda call: busy if call.body and len(call.body["prompt"]) > 50 else None
    with pytest.raises(KaratError, match="answers 503: overloaded, 2 times"):
        karat.score(served(Perplexity, stub, server={"tries": 2}), ROWS)
    ill = Given(200, {"error": "no luck"})
    stub.before = lambda call: ill if call.body and len(call.body["prompt"]) > 50 else None
    table = karat.score(served(Perplexity, stub), ROWS)
    assert table["perplexity.status"][7] == "failed: the server answers with an error: no luck"


def test_redirects_are_not_followed(stub: ServedStub, pair: tuple[Any, Any]) -> None:
    with ServedStub(pair) as other:
        stub.before = lambda call: Given(307, b"", {"Location": other.url + "/completions"})
        with pytest.raises(KaratError, match="redirects to"):
            karat.score(served(Perplexity, stub), ROWS)
        assert not other.calls


@pytest.mark.parametrize(
    ("server", "problem"),
    [
        ({"url": "https://user:hunter2@host/v1"}, "no user, password"),
        ("https://host/v1?api_key=hunter2", "no user, password"),
        ("ftp://hunter2/v1", "no http"),
        ("hunter2", "no http"),
        ("http://[hunter2", "no address"),
        ("http://h:99999999/hunter2", "no address"),
        ({"url": "http://host/v1", "api_key_env": "KEY"}, "unencrypted"),
        ({"url": "https://host/v1", "api_key_env": "sk-hunter2"}, "never the key itself"),
        ({"url": "https://host/v1", "api_key": "hunter2"}, "no setting"),
    ],
)
def test_settings_that_are_unsafe_are_refused_without_being_shown(server: Any, problem: str) -> None:
    with pytest.raises((KaratError, ValidationError), match=problem) as caught:
        Perplexity(model="m", server=server)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1/v1", "http://localhost/v1", "http://[::1]:80/v1", "https://h/v1"]
)
def test_a_key_may_go_to_this_machine_or_over_https(url: str) -> None:
    assert Server(url=url, api_key_env="KEY").url == url
    assert Server(url="http://node7:8000/v1").endpoint("/models") == "http://node7:8000/v1/models"
    assert (
        Server(url="http://node7/v1/", api_key_env="KEY", cleartext_key=True).endpoint("/x").endswith("v1/x")
    )


def test_scorers_that_need_hidden_states_refuse_a_server() -> None:
    with pytest.raises(ValidationError, match="donod needs hidden states"):
        Donod(model="m", server="http://127.0.0.1:1/v1")
    with pytest.raises(ValidationError, match=r"adapter, dtype: with `server`"):
        Perplexity(model="m", server="http://127.0.0.1:1/v1", adapter="a", dtype="float16")
    with pytest.raises(ValidationError, match="is for a served model"):
        Perplexity(model="m", tokenizer="t")


def test_the_digest_names_what_is_served_and_not_where(stub: ServedStub, pair: tuple[Any, Any]) -> None:
    digest = served(Perplexity, stub).digest()
    with ServedStub(pair) as moved:
        moved.models = [{**(moved.models or [{}])[0], "created": 77}]
        assert served(Perplexity, moved, server={"concurrency": 3, "timeout": 9}).digest() == digest
        moved.models[0]["root"] = "/other"
        assert served(Perplexity, moved).digest() != digest
        moved.models = None
        assert served(Perplexity, moved).digest() != digest
    assert Perplexity(model=tiny_model("llama")).digest() != digest
    named = served(Perplexity, moved, revision="2026-05")
    assert named.digest() not in (digest, served(Perplexity, moved, revision="2026-06").digest())
    assert load(named.model_dump(mode="json"), Scorer) == named
    other = Perplexity(model="tiny", server=stub.url, tokenizer=tiny_model("gpt2"), revision="2026-05")
    assert other.digest() == named.digest(), "the same tokenizer files"


def test_waits_grow_and_can_be_repeated() -> None:
    again = retrying.Again("busy")
    waits = [retrying.wait(again, n, 0, "row") for n in range(1, 30)]
    assert waits == [retrying.wait(again, n, 0, "row") for n in range(1, 30)]
    assert waits != [retrying.wait(again, n, 1, "row") for n in range(1, 30)]
    for n, seconds in enumerate(waits, 1):
        middle = min(retrying.LONGEST_WAIT, retrying.FIRST_WAIT * 2 ** (n - 1))
        assert 0.5 * middle <= seconds <= 1.5 * middle
    assert retrying.retry_after("2.5") == 2.5
    assert retrying.retry_after("-3") == 0
    assert retrying.retry_after("Fri, 21 Nov 2025 00:00:00 GMT") == 0
    assert (retrying.retry_after("Fri, 21 Nov 2996 00:00:00 GMT") or 0) > 1e9
    assert [retrying.retry_after(text) for text in (None, "soon", "nan", "inf")] == [None] * 4


STOPPED = """
import sys, polars as pl, karat
from karat.scorers.perplexity import Perplexity
rows = pl.DataFrame({"id": list("abcdefgh"), "text": [f"text {i}" for i in range(8)]})
scorer = Perplexity(model="tiny", server=sys.argv[1], tokenizer=sys.argv[2])
karat.score(scorer, rows, workers=int(sys.argv[3]))
"""


@pytest.mark.parametrize("workers", ["1", "3"])
def test_ctrl_c_does_not_wait_for_the_server(stub: ServedStub, workers: str) -> None:
    released, held = threading.Event(), threading.Event()
    seen = itertools.count()

    def before(call: Call) -> Given | None:
        if call.path.endswith("completions") and next(seen):
            held.set()
            released.wait(120)
        return None

    stub.before = before
    before_signal = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        command = [sys.executable, "-c", STOPPED, stub.url, tiny_model("llama"), workers]
        run = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=dict(os.environ))
    finally:
        signal.signal(signal.SIGINT, before_signal)
    assert held.wait(120)
    run.send_signal(signal.SIGINT)
    said = run.communicate(timeout=60)[1]  # the requests are held for 120 s
    assert "KeyboardInterrupt" in said
    released.set()

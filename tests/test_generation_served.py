"""Responses from a server: requests, what answers mean, errors of one request and of all, nothing lost."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import ValidationError
from served_stub import KEY, Call, Given, ServedStub

from karat.errors import ConfigError, KaratError, ScoreError
from karat.scorers.generation.requests import seed_of
from karat.scorers.generation.responders import ResponseModel, responses_key, sampler_of
from karat.scorers.generation.samples import Ask, Sample
from karat.scorers.generation.served import ENOUGH, ServedSampler
from karat.scorers.generation.settings import Generation
from karat.scorers.server import retrying


def choice(text: str, finish: Any = "stop", index: int = 0, chat: bool = False) -> dict[str, Any]:
    said = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
    return {"index": index, "finish_reason": finish, **said}


def reply(*choices: dict[str, Any], tokens: Any = 5) -> Given:
    return Given(200, {"choices": list(choices), "usage": {"prompt_tokens": 3, "completion_tokens": tokens}})


def echoing(call: Call) -> Given | None:
    """Answers with the prompt and the seed, as many times as asked."""
    body = call.body
    if body is None:
        return None
    chat = "messages" in body
    prompt = body["messages"][0]["content"] if chat else body["prompt"]
    said = [choice(f"{prompt}/{body['seed']}/{k}", index=k, chat=chat) for k in range(body.get("n", 1))]
    return reply(*reversed(said))


@pytest.fixture
def stub() -> Iterator[ServedStub]:
    with ServedStub(name="m") as started:
        started.before = echoing
        yield started


@pytest.fixture(autouse=True)
def _no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrying, "FIRST_WAIT", 0.001)


def model(stub: ServedStub, **server: Any) -> ResponseModel:
    return ResponseModel(model="m", server={"url": stub.url, **server})


def sampler(stub: ServedStub, server: dict[str, Any] | None = None, **settings: Any) -> ServedSampler:
    found = sampler_of(model(stub, **(server or {})), Generation(**settings))
    assert isinstance(found, ServedSampler)
    return found


def asks(queries: int = 3, count: int = 4) -> list[Ask]:
    return [Ask(f"q{q}", f"prompt {q} {{x}}", n) for q in range(queries) for n in range(count)]


def test_each_response_is_asked_once_with_a_seed_of_its_own(stub: ServedStub) -> None:
    told: list[tuple[Ask, Sample]] = []
    threads = set()

    def on_sample(ask: Ask, sample: Sample) -> None:
        threads.add(threading.get_ident())
        told.append((ask, sample))

    wanted = [*asks(), *asks()]
    found = sampler(stub, temperature=1.6, top_p=0.95, stop="END", template="Q {prompt}\n", seed=4).sample(
        wanted, on_sample
    )
    for ask, sample in zip(wanted, found, strict=True):
        assert sample == Sample(f"Q {ask.prompt}\n/{seed_of(4, ask.query, ask.number)}/0", "stop", 5)
    assert Counter(ask for ask, _ in told) == Counter(asks())
    assert dict(told) == dict(zip(wanted, found, strict=True))
    assert threads == {threading.get_ident()}
    bodies = stub.asked()
    assert len(bodies) == len(asks())
    assert len({body["seed"] for body in bodies}) == len(bodies)
    assert {k: v for k, v in bodies[0].items() if k not in ("prompt", "seed")} == {
        "model": "m", "max_tokens": 2048, "temperature": 1.6, "top_p": 0.95, "stop": ["END"],
        "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0,
    }  # fmt: skip


def test_chat_plain_fields_and_fields_of_ones_own(stub: ServedStub) -> None:
    how = {"chat": True, "request": {"max_completion_tokens": 9, "max_tokens": None, "top_k": 3}}
    found = sampler(stub, {"dialect": "openai"}, **how).sample(asks(1, 1))
    assert found[0].text.startswith("prompt 0 {x}/")
    body = stub.asked("/v1/chat/completions")[0]
    assert body["messages"] == [{"role": "user", "content": "prompt 0 {x}"}]
    assert set(body) == {
        "model",
        "messages",
        "temperature",
        "top_p",
        "seed",
        "max_completion_tokens",
        "top_k",
    }


def test_several_responses_in_one_request(stub: ServedStub) -> None:
    found = sampler(stub, per_request=3).sample(asks(2, 4))
    assert sorted(body.get("n", 1) for body in stub.asked()) == [1, 1, 3, 3]
    seeds = [seed_of(0, "q1", 0), seed_of(0, "q1", 3)]
    assert [sample.text for sample in found[4:]] == [
        *(f"prompt 1 {{x}}/{seeds[0]}/{k}" for k in range(3)), f"prompt 1 {{x}}/{seeds[1]}/0",
    ]  # fmt: skip
    # What is counted is counted over all choices of an answer.
    assert [sample.tokens for sample in found[4:]] == [None, None, None, 5]


def test_a_server_that_gives_fewer_is_asked_one_by_one(stub: ServedStub) -> None:
    def one_only(call: Call) -> Given | None:
        body = call.body or {}
        return reply(choice(f"{body.get('seed')}")) if body else None

    stub.before = one_only
    found = sampler(stub, per_request=4).sample(asks(2, 4))
    assert [sample.text for sample in found] == [str(seed_of(0, a.query, a.number)) for a in asks(2, 4)]
    assert len(stub.asked()) == 2 + 6


def test_what_an_answer_says(stub: ServedStub) -> None:
    said: list[Given] = [
        reply(choice("a")),
        reply(choice("b", "length"), tokens=9),
        reply(choice("c", None), tokens=8),
        reply(choice("d", None), tokens=7),
        reply(choice("e END f", "length")),
        reply(choice("g", "content_filter")),
        reply(choice("h\ud800")),
        reply(choice("i"), tokens="many"),
        Given(200, {"choices": [{"text": None, "finish_reason": "stop"}]}),
        Given(200, {"choices": []}),
        Given(200, {"choices": [None]}),
        Given(400, {"error": {"message": "This model's maximum context length is 9"}}),
        Given(200, {"choices": [choice("j")]}),
    ]
    stub.before = lambda call: said[int(call.body["prompt"].split()[1])] if call.body else None
    found = sampler(stub, max_new_tokens=8, stop=("END",)).sample(asks(len(said), 1))
    assert found == [
        Sample("a", "stop", 5),
        Sample("b", "length", 9),
        Sample("c", "length", 8),
        Sample("d", "stop", 7),
        Sample("e ", "stop", 5),
        Sample("", "failed: the response ended with 'content_filter'", 0),
        Sample("h?", "stop", 5),
        Sample("i", "stop", None),
        Sample("", "failed: the answer holds no text", 0),
        Sample("", "failed: the answer holds no choice", 0),
        Sample("", "failed: the answer holds no choice", 0),
        Sample("", "failed: the server answers 400: This model's maximum context length is 9", 0),
        Sample("j", "stop", None),
    ]


def test_a_request_that_fails_at_every_try_fails_alone(stub: ServedStub) -> None:
    def flaky(call: Call) -> Given | None:
        if call.body and call.body["prompt"].startswith("prompt 1"):
            return Given(500, {"error": {"message": "out of blocks"}})
        return echoing(call)

    stub.before = flaky
    found = sampler(stub, {"tries": 3}).sample(asks(3, 1))
    assert [sample.finish for sample in found] == [
        "stop", "failed: the server answers 500: out of blocks, 3 times", "stop",
    ]  # fmt: skip
    assert len(stub.asked()) == 5


def test_what_passes_is_tried_again(stub: ServedStub) -> None:
    seen: Counter[str] = Counter()

    def busy(call: Call) -> Given | None:
        if call.body:
            with stub.lock:
                seen[call.body["prompt"]] += 1
                if seen[call.body["prompt"]] < 3:
                    return Given(503 if seen[call.body["prompt"]] == 1 else 429)
        return echoing(call)

    stub.before = busy
    assert {s.finish for s in sampler(stub).sample(asks(5, 1))} == {"stop"}
    assert set(seen.values()) == {3}


@pytest.mark.parametrize(("status", "told"), [(401, "key"), (404, "does not exist"), (403, "403")])
def test_what_concerns_all_ends_at_once(stub: ServedStub, status: int, told: str) -> None:
    stub.before = lambda call: Given(status, {"error": {"message": "key wrong, or m does not exist"}})
    with pytest.raises(ScoreError, match=told):
        sampler(stub, {"concurrency": 2}).sample(asks(30))
    assert len(stub.calls) <= 4


def test_what_arrived_before_the_end_is_handed_on(stub: ServedStub) -> None:
    def later_wrong(call: Call) -> Given | None:
        return Given(401) if len(stub.asked()) > 10 else echoing(call)

    stub.before = later_wrong
    told: list[Ask] = []
    with pytest.raises(ScoreError, match="401"):
        sampler(stub, {"concurrency": 1}).sample(asks(), lambda ask, _: told.append(ask))
    assert told == asks()[:10]


@pytest.mark.parametrize("status", [400, 503])
def test_a_server_that_answers_nothing_is_given_up(stub: ServedStub, status: int) -> None:
    stub.before = lambda call: Given(status, {"error": {"message": "top_k is not known"}})
    with pytest.raises(KaratError, match="top_k is not known") as error:
        sampler(stub, {"tries": 2, "concurrency": 4}).sample(asks(100))
    assert "`request` changes what is sent" in str(error.value)
    assert ENOUGH <= len(stub.asked()) < 100


def test_a_server_that_breaks_down_later_is_given_up(stub: ServedStub) -> None:
    stub.before = lambda call: Given(503) if len(stub.asked()) > 30 else echoing(call)
    told: list[Sample] = []
    with pytest.raises(ScoreError, match="503"):
        sampler(stub, {"tries": 2, "concurrency": 4}).sample(asks(100), lambda _, s: told.append(s))
    assert sum(not sample.failed for sample in told) == 30


def test_prompts_that_are_too_long_do_not_end_it_once_others_were_answered(stub: ServedStub) -> None:
    long = [Ask(f"l{k}", "long", 0) for k in range(40)]
    stub.before = lambda call: Given(400) if call.body and call.body["prompt"] == "long" else echoing(call)
    found = sampler(stub, {"concurrency": 1}).sample([*asks(1, 1), *long])
    assert sum(sample.failed for sample in found) == 40


def test_nobody_at_the_address() -> None:
    source = ResponseModel(model="m", server="http://127.0.0.1:9/v1")
    with pytest.raises(ScoreError, match="cannot be reached"):
        ServedSampler(source, Generation()).sample(asks())


def test_many_are_in_flight(stub: ServedStub) -> None:
    stub.before = lambda call: None
    stub.wait_for = 20
    stub.completion = lambda body: {"choices": [choice("x")]}  # type: ignore[method-assign]
    sampler(stub, {"concurrency": 20}).sample(asks(60, 1))
    assert stub.most_at_once == 20


def test_the_key_stays_out_of_responses(stub: ServedStub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUB_KEY", KEY)
    stub.before = lambda call: reply(choice(f"said {call.headers.get('Authorization')}"))
    found = sampler(stub, {"api_key_env": "STUB_KEY"}).sample(asks(1, 1))
    assert found[0].text == "said Bearer ***"


def test_seeds_of_a_query_differ() -> None:
    assert len({seed_of(0, "q", n) for n in range(5000)}) == 5000
    assert all(0 <= seed_of(2**62, f"{q}", 0) < 2**31 for q in range(200))
    assert seed_of(0, "q", 0) != seed_of(1, "q", 0) != seed_of(1, "r", 0)


def test_the_key_of_served_responses(stub: ServedStub) -> None:
    stub.before = lambda call: None
    base = Generation()
    key = responses_key(model(stub), base)
    assert key == responses_key(model(stub, concurrency=3), base)
    assert key != responses_key(model(stub), Generation(per_request=2))
    assert key != responses_key(model(stub), Generation(request={"top_k": 5}))
    named = ResponseModel(model="m", revision="v1", server=stub.url)
    other = ResponseModel(model="m", revision="v2", server=stub.url)
    assert len({key, responses_key(named, base), responses_key(other, base)}) == 3
    assert named.digest() != other.digest()


def test_settings_that_cannot_be(stub: ServedStub) -> None:
    for bad in (
        {"stop": ""},
        {"template": "no place"},
        {"request": {"n": 3}},
        {"top_p": 0},
        {"temprature": 1},
    ):
        with pytest.raises(ValidationError):
            Generation(**bad)  # type: ignore[arg-type]
    with pytest.raises(ConfigError):
        ResponseModel(model="m", server={"url": stub.url, "api_key": "x"})
    with pytest.raises(ScoreError, match="names no server"):
        ServedSampler(ResponseModel(model="m"), Generation())
    assert (
        Generation(template="{a} {prompt} {prompt}").prompt_of("{prompt}%s{}")
        == "{a} {prompt}%s{} {prompt}%s{}"
    )

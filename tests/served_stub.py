"""A loopback server that answers as vLLM does, from a tiny model; standard library and torch.

    with ServedStub(tiny_pair("llama", "float32")) as stub:
        Perplexity(model="tiny", server=stub.url, tokenizer=...)

`stub.before` sees every request first and may answer in the server's place; `stub.judge` writes the answers
of chat completions; `stub.calls` lists what was asked, `stub.most_at_once` counts requests in flight.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "sk-" + "stub" * 6


@dataclass
class Call:
    path: str
    body: dict[str, Any] | None
    headers: dict[str, str]


@dataclass
class Given:
    """An answer in the server's place."""

    status: int = 200
    content: Any = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)


class _Server(ThreadingHTTPServer):
    request_queue_size = 1024
    daemon_threads = True
    block_on_close = False


class ServedStub:
    def __init__(self, pair: tuple[Any, Any] | None = None, name: str = "tiny", vllm: bool = True) -> None:
        self.pair, self.name, self.vllm = pair, name, vllm
        self.models: list[dict[str, Any]] | None = [{"id": name, "root": "/weights", "owned_by": "vllm"}]
        self.before: Callable[[Call], Given | None] = lambda call: None
        self.judge: Callable[[dict[str, Any]], Any] = lambda body: '{"score": 3}'
        self.needs_key: str | None = None
        self.calls: list[Call] = []
        self.at_once = self.most_at_once = 0
        self.lock, self.computing = threading.RLock(), threading.Lock()
        self.arrived = threading.Condition(self.lock)
        self.wait_for = 1
        """Completions are answered when so many have been in flight together (10 s at most)."""
        self.server = _Server(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def __enter__(self) -> ServedStub:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def asked(self, path: str = "/v1/completions") -> list[dict[str, Any]]:
        return [call.body or {} for call in self.calls if call.path == path]

    def answer(self, call: Call) -> Given:
        with self.lock:
            self.calls.append(call)
        given = self.before(call)
        if given is not None:
            return given
        if self.needs_key and call.headers.get("Authorization") != f"Bearer {self.needs_key}":
            said = call.headers.get("Authorization", "none")
            return Given(401, {"error": {"message": f"Incorrect API key provided: {said}"}})
        if call.path == "/v1/models":
            return Given(404) if self.models is None else Given(200, {"object": "list", "data": self.models})
        body = call.body or {}
        if body.get("model") != self.name:
            return Given(404, {"error": {"message": f"The model `{body.get('model')}` does not exist."}})
        if call.path == "/v1/completions":
            self.gather()
            return Given(200, self.completion(body))
        if call.path == "/v1/chat/completions":
            self.gather()
            return Given(200, self.chat(body))
        return Given(404, {"detail": "Not Found"})

    def gather(self) -> None:
        with self.arrived:
            self.arrived.notify_all()
            self.arrived.wait_for(lambda: self.most_at_once >= self.wait_for, timeout=10)

    def completion(self, body: dict[str, Any]) -> dict[str, Any]:
        import torch

        assert self.pair is not None
        model, tokenizer = self.pair
        ids = body["prompt"]
        with self.computing, torch.inference_mode():
            logs = torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), -1)

        def named(token: int) -> str:
            if self.vllm and body.get("return_tokens_as_token_ids"):
                return f"token_id:{token}"
            return str(tokenizer.decode([token]))

        def most_likely(place: int, also: int) -> dict[str, float]:
            found = logs[place].topk(body["logprobs"]).indices.tolist()
            return {named(t): float(logs[place, t]) for t in dict.fromkeys([also, *found])}

        generated = int(logs[-1].argmax())
        values: list[float | None] = [float(logs[-1, generated])]
        tokens, tops = [named(generated)], [most_likely(len(ids) - 1, generated)]
        if body.get("echo"):
            told = [(float(logs[t - 1, ids[t]]), most_likely(t - 1, ids[t])) for t in range(1, len(ids))]
            values = [None, *(value for value, _ in told), *values]
            tops = [None, *(top for _, top in told), *tops]  # type: ignore[list-item]
            tokens = [*map(named, ids), *tokens]
        logprobs = {"tokens": tokens, "token_logprobs": values, "top_logprobs": tops, "text_offset": []}
        usage = {"prompt_tokens": len(ids), "completion_tokens": 1, "total_tokens": len(ids) + 1}
        return {"choices": [{"index": 0, "text": "", "logprobs": logprobs}], "usage": usage}

    def chat(self, body: dict[str, Any]) -> dict[str, Any]:
        said = self.judge(body)
        choice = said if isinstance(said, dict) else {"message": {"role": "assistant", "content": said}}
        read = sum(len(message["content"]) for message in body["messages"]) // 4
        usage = {"prompt_tokens": read, "completion_tokens": 10, "total_tokens": read + 10}
        return {"choices": [{"index": 0, "finish_reason": "stop", **choice}], "usage": usage}


def _handler(stub: ServedStub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            return

        def do_GET(self) -> None:
            self.handle_call(None)

        def do_POST(self) -> None:
            self.handle_call(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def handle_call(self, body: dict[str, Any] | None) -> None:
            with stub.arrived:
                stub.at_once += 1
                stub.most_at_once = max(stub.most_at_once, stub.at_once)
            try:
                given = stub.answer(Call(self.path, body, dict(self.headers.items())))
            finally:
                with stub.arrived:
                    stub.at_once -= 1
            data = given.content if isinstance(given.content, bytes) else json.dumps(given.content).encode()
            try:
                self.send_response(given.status)
                for name, value in given.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)
            except OSError:
                self.close_connection = True  # the client has given up

    return Handler

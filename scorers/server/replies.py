"""What a server's answer means: a reply, a row refused, a failure that may pass, or the end of the run."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from karat.errors import ScoreError
from karat.scorers.server.retrying import Again, passing, retry_after
from karat.scorers.server.settings import Server

if TYPE_CHECKING:
    import httpx

_ROW = frozenset({400, 413, 422})
"""Statuses that are about what was asked, so about one row: too long, not allowed."""
_SHORTEST_KEY = 4
_HINTS = {
    401: "is the key right, and its variable named in api_key_env?",
    404: "is `model` a name that the server knows, and does the address end in /v1?",
}


@dataclass(frozen=True)
class Ask:
    """One request; `label` names what it is about in errors (the id of a row)."""

    path: str
    body: dict[str, Any] | None = None
    """None: a GET."""
    label: str = ""
    optional: bool = False
    """Whether a server may lack the endpoint (404, 405): then it is refused rather than an error."""
    excused: bool = False
    """Whether it is refused, rather than the end of the run, when a live server fails it at every try."""


@dataclass(frozen=True)
class Refused:
    """The server's word on why it does not answer this request; asking again would not help."""

    why: str
    passing: bool = False
    """Whether it may help after all, later: what failed at every try of an ask that is excused."""


Reply = dict[str, Any] | Refused


class Reader:
    """Reads answers of one server; its key is blotted out wherever a server repeats it."""

    def __init__(self, server: Server, key: str | None) -> None:
        self.server = server
        # What is shorter is no secret but a word for none, such as "-", and part of every other answer.
        self._key = key if key and len(key) >= _SHORTEST_KEY else None

    def read(self, response: httpx.Response, ask: Ask) -> Reply | Again:
        """The reply, or what failed in a way that may pass; raises ScoreError for what will not."""
        status = response.status_code
        if status == 200:
            found = self._parsed(response.content)
            if found is None:
                return Again("answers with no JSON object")
            code = _error_code(found)
            if code is None:
                return found
            # Some gateways answer 200 and put what went wrong, 429 or 503, into the body.
            if not 400 <= code < 600:
                return Refused(f"answers with an error: {self.said(_message(response))}")
            status = code
        told = f"answers {status}: {self.said(_message(response))}"
        if passing(status):
            return Again(told, retry_after(response.headers.get("Retry-After")))
        if status in _ROW or (ask.optional and status in (404, 405)):
            return Refused(told)
        if 300 <= status < 400:
            to = self.said(response.headers.get("Location", "nowhere"))
            self.stop(f"redirects to {to}, which is not followed", ask, "give the final address as `url`")
        self.stop(told, ask, _HINTS.get(status))

    def _parsed(self, content: bytes) -> dict[str, Any] | None:
        """The JSON object of an answer with the key blotted out, None where it is none."""
        try:
            found = json.loads(content)
            # After parsing: escapes may hide the key, and it may be part of a number or a name of JSON's own.
            if self._key and (b"\\" in content or self._key.encode() in content):
                found = self._blotted(found)
        except (ValueError, RecursionError):
            return None
        return found if isinstance(found, dict) else None

    def _blotted(self, value: Any) -> Any:
        if isinstance(value, str):
            return value.replace(self._key, "***") if self._key else value
        if isinstance(value, list):
            return [self._blotted(item) for item in value]
        if isinstance(value, dict):
            return {self._blotted(name): self._blotted(item) for name, item in value.items()}
        return value

    def stop(self, problem: str, ask: Ask, hint: str | None = None) -> NoReturn:
        """End the run with a sentence."""
        about = f", row {ask.label}" if ask.label else ""
        raise ScoreError(problem, where=f"server {self.server.endpoint(ask.path)}{about}", hint=hint)

    def said(self, text: str) -> str:
        """A foreign text on one line, short, storable and without the key."""
        line = " ".join(text.encode("utf-8", "replace").decode().split())
        if self._key:
            line = line.replace(self._key, "***")
        return line if len(line) <= 300 else line[:297] + "..."


def _error_code(found: dict[str, Any]) -> int | None:
    """What an answer that holds an error in the place of a result gives as its code, 0 for none."""
    error = found.get("error")
    if not error or "choices" in found or "data" in found:
        return None
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, int) and not isinstance(code, bool) else 0


def _message(response: httpx.Response) -> str:
    """What an error answer says: OpenAI's `error.message`, or the text itself."""
    try:
        found = json.loads(response.content)
    except (ValueError, RecursionError):
        return response.text
    for name in ("error", "message", "detail"):
        if isinstance(found, dict) and found.get(name):
            found = found[name]
    return found if isinstance(found, str) else json.dumps(found)

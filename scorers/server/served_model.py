"""What can be known of a served model: its name, and what the server tells about it. Never its weights."""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic_core import PydanticCustomError

from karat.scorers.model.files import model_files_digest
from karat.scorers.server.client import channel
from karat.scorers.server.replies import Ask, Refused
from karat.scorers.server.settings import Server

if TYPE_CHECKING:
    from karat.scorers.model.source import ModelSource

HERE_ONLY = ("adapter", "dtype", "quantization", "device", "batch_tokens")
"""Settings of a model that is loaded here; a server has decided them already."""
_TELLING = ("id", "root", "parent", "owned_by", "max_model_len")
"""Fields of `GET /models` that stay the same while the model does; vLLM's `created` is the time of asking."""
_TOKENIZER = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt",
              "*.model", "*.tiktoken", "chat_template*")  # fmt: skip


def check_served(scorer: ModelSource) -> None:
    """Refuse settings that a server cannot follow, and scorers that need more than log-probabilities."""
    if scorer.server is None:
        if scorer.tokenizer is not None:
            raise PydanticCustomError(
                "server", "`tokenizer` is for a served model; here the model has its own"
            )
        return
    if not scorer.served:
        raise PydanticCustomError(
            "server",
            "{kind} needs hidden states, which no server gives; leave `server` out and name a model to load",
            {"kind": scorer.kind},
        )
    if not isinstance(scorer.model, str):
        raise PydanticCustomError("server", "with `server`, `model` is the name under which it is served")
    given = [name for name in HERE_ONLY if name in scorer.model_fields_set]
    if any(getattr(scorer, name) != type(scorer).model_fields[name].default for name in given):
        raise PydanticCustomError(
            "server", "{given}: with `server` that is the server's to decide", {"given": ", ".join(given)}
        )


def served_environment(scorer: ModelSource) -> dict[str, str]:
    """What decides the numbers of a scorer that asks a server, as far as it can be known."""
    assert scorer.server is not None  # noqa: S101 - the caller's condition
    facts = {name: version(name) for name in ("transformers", "tokenizers")}
    facts["model"] = served_facts(scorer.server, str(scorer.model), scorer.revision)
    facts["tokenizer"] = tokenizer_digest(scorer.tokenizer or str(scorer.model))
    return facts


def served_facts(server: Server, model: str, revision: str | None) -> str:
    """What names a served model in a digest: its name, and the user's word on the revision or the server's.

    With a revision the server is not asked, and may be off. Raises ScoreError where it has to be asked and
    does not answer. That the weights behind a name are still the same cannot be checked.
    """
    if revision is not None:
        return f"served:{model}@{revision}"
    entry = listed(server, model)
    told = {name: str(entry[name]) for name in _TELLING if entry.get(name)}
    return f"served:{model}:{json.dumps(told, sort_keys=True)}"


def listed(server: Server, model: str) -> dict[str, Any]:
    """What `GET /models` tells about a model; empty where there is no such list, or not the model."""
    reply = channel(server).ask([Ask("/models", optional=True)])[0]
    found = None if isinstance(reply, Refused) else reply.get("data")
    entries = [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []
    return next((entry for entry in entries if entry.get("id") == model), {})


def longest(server: Server, model: str) -> int | None:
    """Tokens that may be asked about: all that the server reads but the one that is generated."""
    told = listed(server, model).get("max_model_len")
    return told - 1 if isinstance(told, int) and told > 2 else None


def tokenizer_digest(name: str) -> str:
    """Digest of the tokenizer's files in a folder, or the commit of a repository on the Hub."""
    folder = Path(name).expanduser()
    if not folder.is_dir():
        return model_files_digest(name, None)
    found = hashlib.blake2b(digest_size=16)
    for path in sorted({path for pattern in _TOKENIZER for path in folder.glob(pattern) if path.is_file()}):
        found.update(
            f"{path.name}:{hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()};".encode()
        )
    return found.hexdigest()

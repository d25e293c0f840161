"""Which model a scorer asks and how it runs: the settings that all model-based scorers share."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from importlib.metadata import version
from os import PathLike, fspath
from typing import Any, ClassVar, Literal

from pydantic import Field, field_serializer, field_validator, model_validator
from pydantic_core import PydanticCustomError

from karat.parts import Part, Scorer
from karat.scorers.model.files import model_files_digest
from karat.scorers.server.settings import Server

Dtype = Literal["auto", "float32", "bfloat16", "float16", "float64"]


@dataclass(frozen=True, eq=False)
class Loaded:
    """A model in memory with its tokenizer, for use from Python."""

    model: Any
    tokenizer: Any

    def digest(self) -> str:
        """Digest of the configuration, the parameters and all that decides how text becomes tokens."""
        import torch

        found = hashlib.blake2b(digest_size=16)
        found.update(json.dumps(self.model.config.to_dict(), sort_keys=True, default=str).encode())
        for name, value in sorted(self.model.state_dict().items()):
            found.update(f"{name}:{value.dtype}:{tuple(value.shape)};".encode())
            flat = value.detach().cpu().contiguous().view(-1).view(torch.uint8)
            found.update(memoryview(flat.numpy()))
        found.update(json.dumps(_tokenizing(self.tokenizer), sort_keys=True, default=str).encode())
        return found.hexdigest()

    def __repr__(self) -> str:
        """The two classes: a model's own description has a line for each layer."""
        return f"Loaded({type(self.model).__name__}, {type(self.tokenizer).__name__})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Loaded) and other.model is self.model and other.tokenizer is self.tokenizer

    def __hash__(self) -> int:
        return hash((id(self.model), id(self.tokenizer)))


def _tokenizing(tokenizer: Any) -> dict[str, Any]:
    """Vocabulary, merges, normaliser, what is put around a text, special tokens, chat template."""
    core = getattr(tokenizer, "backend_tokenizer", None)
    told = json.loads(core.to_str()) if core is not None else {}
    return {
        # How it cuts and pads is left over from its last call.
        "core": {name: value for name, value in told.items() if name not in ("truncation", "padding")},
        "vocabulary": tokenizer.get_vocab(),
        "special": getattr(tokenizer, "special_tokens_map", None),
        "template": getattr(tokenizer, "chat_template", None),
    }


class ModelSource(Part):
    """Which model is asked, where it runs and in what numbers."""

    neutral: ClassVar[frozenset[str]] = frozenset({"device", "batch_tokens", "server", "tokenizer"})
    """Settings that decide how fast and where, not what: they are no part of the digest."""

    served: ClassVar[bool] = False
    """Whether log-probabilities are enough, so that a server can answer; else hidden states are needed."""

    model: str | Loaded = Field(
        description="a folder, a Hub id, the name on a server, or (from Python) a loaded model with tokenizer"
    )
    server: Server | None = Field(None, description="an OpenAI-compatible server to ask: its address")
    tokenizer: str | None = Field(None, description="tokenizer of the served model; default: its name")
    revision: str | None = Field(
        None, description="branch, tag or commit on the Hub; with a server: your name for the served weights"
    )
    adapter: str | None = Field(None, description="a PEFT adapter on top: a folder or a Hub id")
    dtype: Dtype = Field("auto", description="auto: float32 on a CPU; on a GPU what the files hold")
    quantization: Literal["8bit", "4bit"] | None = Field(None, description="load quantised (bitsandbytes)")
    trust_remote_code: bool = Field(False, description="run code that comes with the model; off")
    device: str = Field("auto", description="auto: every GPU, else the CPU; cpu; cuda:0; cuda:0,cuda:1")
    batch_tokens: int | None = Field(None, ge=1, description="padded tokens in a batch; default by device")

    @model_validator(mode="before")
    @classmethod
    def _tokenizer_beside_the_model(cls, given: Any) -> Any:
        """`model=model, tokenizer=tokenizer`, both loaded, is the pair of them."""
        if not isinstance(given, dict) or not hasattr(given.get("model"), "state_dict"):
            return given
        if given.get("tokenizer") is None or isinstance(given["tokenizer"], str | PathLike):
            return given
        rest = {name: value for name, value in given.items() if name != "tokenizer"}
        return {**rest, "model": (given["model"], given["tokenizer"])}

    @field_validator("model", mode="before")
    @classmethod
    def _model_or_pair(cls, model: Any) -> Any:
        if isinstance(model, Loaded):
            return model
        if hasattr(model, "state_dict"):
            raise PydanticCustomError("model", "give the tokenizer as well: model=(model, tokenizer)")
        if isinstance(model, tuple | list) and len(model) == 2:
            pair = tuple(model)
        elif hasattr(model, "model") and hasattr(model, "tokenizer"):  # such as a pipeline of transformers
            pair = (model.model, model.tokenizer)
        else:
            return model
        if not hasattr(pair[0], "state_dict") or not callable(pair[1]):
            raise PydanticCustomError(
                "model", "a pair is (model, tokenizer), both loaded and neither of them missing"
            )
        return Loaded(*pair)

    @field_validator("model", "adapter", "tokenizer", mode="before")
    @classmethod
    def _path_as_text(cls, given: Any) -> Any:
        return fspath(given) if isinstance(given, PathLike) else given

    @model_validator(mode="after")
    def _either_here_or_served(self) -> ModelSource:
        from karat.scorers.server.served_model import check_served

        check_served(self)
        return self

    @field_serializer("model")
    def _named(self, model: str | Loaded) -> str:
        return model if isinstance(model, str) else f"loaded:{model.digest()}"

    def environment(self) -> dict[str, str]:
        """Digests of the model's and the adapter's files, and the versions of the libraries that run them."""
        if self.server is not None:
            from karat.scorers.server.served_model import served_environment

            return served_environment(self)
        facts = {name: version(name) for name in ("torch", "transformers", "tokenizers")}
        if isinstance(self.model, str):
            facts["model"] = model_files_digest(self.model, self.revision)
        if self.dtype == "auto":
            facts["runs_in"] = _automatic_dtype(self.model, self.device)
        if self.adapter:
            facts["adapter"] = model_files_digest(self.adapter, None)
        return facts

    def source(self) -> tuple[Any, ...]:
        """What two scorers must agree on to share a pass."""
        return (
            self.model, self.server, self.tokenizer, self.revision, self.adapter, self.dtype,
            self.quantization, self.trust_remote_code, self.device, self.batch_tokens,
        )  # fmt: skip


class ModelScorer(ModelSource, Scorer):
    """A scorer that asks a model.

    Scorers whose settings of the model are equal share its passes: see `karat.scorers.model.runner`.
    """

    max_tokens: int = Field(2048, ge=2, description="longer sequences are cut, counted and flagged")

    def at_once(self) -> int:
        """As many as a server is to be asked at a time."""
        return 1 if self.server is None else self.server.concurrency


def _automatic_dtype(model: str | Loaded, device: str) -> str:
    """What `auto` comes to here: a CPU's float32 and a GPU's bfloat16 are not to be mixed in one column."""
    import torch

    if isinstance(model, Loaded):
        return str(model.model.dtype)
    on_cpu = not torch.cuda.is_available() if device == "auto" else device.startswith("cpu")
    return "float32" if on_cpu else "files"

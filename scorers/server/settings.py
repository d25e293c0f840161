"""Where a server is, how hard it may be asked, and which environment variable holds its key."""

from __future__ import annotations

import ipaddress
import os
import re
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, model_validator

from karat.errors import ConfigError, ScoreError

_VARIABLE = re.compile(r"[A-Z][A-Z0-9_]*")


class Server(BaseModel):
    """An OpenAI-compatible server; a bare address stands for one with the defaults.

    The key is named, never written: it is read from the environment when a request is sent, and stands in
    no log, manifest, digest or error. It goes to the address given and to no other (redirects are not
    followed), and over plain http to this machine only, unless `cleartext_key` says otherwise.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)

    url: str = Field(description="address up to the version: http://127.0.0.1:8000/v1")
    api_key_env: str | None = Field(None, description="environment variable that holds the key")
    concurrency: int = Field(256, ge=1, le=4096, description="requests in flight at one time")
    timeout: float = Field(600, gt=0, description="seconds that one request may take")
    tries: int = Field(8, ge=1, le=100, description="how often a request is sent before the run stops")
    seed: int = Field(0, description="of the jitter of the waits between tries")
    dialect: Literal["vllm", "openai"] = Field(
        "vllm", description="vllm: its additions are used, tokens are checked by id; openai: plain fields"
    )
    cleartext_key: bool = Field(False, description="send the key over plain http to another machine")

    @model_validator(mode="before")
    @classmethod
    def _from_address(cls, given: Any) -> Any:
        if isinstance(given, dict) and (written := {"key", "api_key", "token"} & set(given)):
            raise ConfigError(
                f"`{min(written)}` is no setting: a key in a config ends in manifests and reports",
                where="server",
                hint="put the key into an environment variable and name that: api_key_env: OPENAI_API_KEY",
            )
        return {"url": given} if isinstance(given, str) else given

    @model_validator(mode="after")
    def _safe(self) -> Server:
        # Raised past pydantic, whose errors would show what was given: it may be a secret.
        where = "server.url"
        try:
            parts = urlsplit(self.url)
            _ = parts.port
        except ValueError:
            raise ConfigError("is no address", where=where, hint="http://127.0.0.1:8000/v1") from None
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise ConfigError(
                "must hold no user, password, query or fragment",
                where=where,
                hint="put the key into an environment variable and name that: api_key_env",
            )
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError("is no http(s) address", where=where, hint="http://127.0.0.1:8000/v1")
        if self.api_key_env is None:
            return self
        if not _VARIABLE.fullmatch(self.api_key_env):
            raise ConfigError(
                "must be the name of an environment variable, in capitals, and never the key itself",
                where="server.api_key_env",
                hint="api_key_env: OPENAI_API_KEY",
            )
        if parts.scheme == "http" and not self.loopback and not self.cleartext_key:
            raise ConfigError(
                f"the key would travel to {parts.hostname} unencrypted",
                where=where,
                hint="use https, or allow it with cleartext_key: true",
            )
        return self

    @property
    def loopback(self) -> bool:
        """Whether the server is this machine."""
        host = urlsplit(self.url).hostname or ""
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host == "localhost"

    def endpoint(self, path: str) -> str:
        """Full address of an endpoint such as `/completions`."""
        return self.url.rstrip("/") + path

    def key(self) -> str | None:
        """The key, None where none is named; raises ScoreError where the variable is empty."""
        if self.api_key_env is None:
            return None
        value = os.environ.get(self.api_key_env, "").strip()
        if not value:
            raise ScoreError(
                f"the environment variable {self.api_key_env} is not set",
                where="server.api_key_env",
                hint=f"export {self.api_key_env}=..., or leave api_key_env out for a server without a key",
            )
        if not value.isascii() or not value.isprintable() or " " in value:
            raise ScoreError(
                f"the environment variable {self.api_key_env} holds more than a key",
                where="server.api_key_env",
                hint="only the key: no spaces, no line breaks",
            )
        return value

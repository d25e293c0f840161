"""Where rows come from, as settings: files, the Hub, or the packages installed beside karat."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from karat.rows.harvest import HarvestSettings
from karat.rows.leaderboard import LeaderboardSettings

Layout = Literal["text", "alpaca", "prompt_completion", "preference", "messages", "sharegpt"]
Format = Literal["jsonl", "json", "parquet", "csv", "tsv", "arrow", "saved"]


class Columns(BaseModel):
    """Which of the user's columns is what; what is not named is detected."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str | Literal[False] | None = Field(
        None, description="unique key; default `id`; false, or where there is none: a hash of the content"
    )
    group: str | None = Field(None, description="source, domain or class: for quotas and composition")
    text: str | None = Field(None, description="plain text")
    prompt: str | None = Field(None, description="what is asked")
    input: str | None = Field(None, description="Alpaca's second part of the prompt")
    response: str | None = Field(None, description="what is answered; of preference data the chosen answer")
    rejected: str | None = Field(None, description="the other answer of preference data")
    messages: str | None = Field(None, description="list of turns with role and content, or from and value")


class RowOptions(BaseModel):
    """What every source has in common."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layout: Layout | None = Field(None, description="default: detected from the columns")
    columns: Columns = Columns()
    on_bad_row: Literal["error", "skip"] = Field("error", description="skipped rows are counted and shown")
    on_duplicate: Literal["error", "skip"] = Field("error", description="`skip` keeps the first of each id")


class FileData(RowOptions):
    """JSONL (also .gz, .zst), JSON, Parquet, CSV, TSV, Arrow, or a folder saved by `datasets`."""

    kind: Literal["file"] = "file"
    path: str | tuple[str, ...] = Field(description="file, folder or glob; a list of them")
    format: Format | None = Field(None, description="default: detected from name and content")
    split: str | None = Field(None, description="split of a saved DatasetDict")


class HubData(RowOptions):
    """A dataset on the Hugging Face Hub."""

    kind: Literal["hub"] = "hub"
    name: str = Field(pattern=r"^[\w.-]+(/[\w.-]+)?$", description="user/name")
    config: str | None = None
    split: str = "train"
    revision: str | None = Field(None, description="branch, tag or commit; a commit makes runs repeatable")


class HarvestData(HarvestSettings, RowOptions):
    """Documented functions of the packages installed beside karat, found by parsing their source."""

    kind: Literal["harvest"] = "harvest"
    layout: Layout | None = "prompt_completion"
    columns: Columns = Columns(id="id", group="package", prompt="prompt", response="completion")


class LeaderboardData(LeaderboardSettings, RowOptions):
    """A made-up leaderboard's questions; `responses: {simulate: ...}` with these settings are the answers."""

    kind: Literal["leaderboard"] = "leaderboard"
    layout: Layout | None = "prompt_completion"
    columns: Columns = Columns(id="id", group="dataset", prompt="prompt", response="completion")


def _kind(value: Any) -> str:
    kind = value.get("kind", "file") if isinstance(value, dict) else getattr(value, "kind", "file")
    return str(kind)


DataSpec = Annotated[
    Annotated[FileData, Tag("file")]
    | Annotated[HubData, Tag("hub")]
    | Annotated[HarvestData, Tag("harvest")]
    | Annotated[LeaderboardData, Tag("leaderboard")],
    Discriminator(_kind),
]


def data_keys(kind: Any, *, nested: bool = False) -> list[str]:
    """The keys that may stand in a data source of this kind, or in its `columns`."""
    if nested:
        return list(Columns.model_fields)
    models: dict[Any, type[RowOptions]] = {
        "hub": HubData,
        "harvest": HarvestData,
        "leaderboard": LeaderboardData,
    }
    return list(models.get(kind, FileData).model_fields)

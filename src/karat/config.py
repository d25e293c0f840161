"""One YAML file and one pydantic model: what a run reads, computes, selects, trains and writes."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from karat.config_errors import explained
from karat.deriving import derived_scorers, source_problem
from karat.errors import ConfigError, KaratError
from karat.parts import DerivedScorer, Scorer
from karat.registry import AnyScorer, AnySelector
from karat.rows import DataSpec
from karat.yaml_lines import Document, Loc, override, parse_yaml, read_yaml

SLUG = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"


def _train_settings(value: Any) -> Any:
    if value is not None and not isinstance(value, dict | BaseModel):
        raise PydanticCustomError("mapping", "must be a mapping of keys")
    if not isinstance(value, dict):
        return value
    # The core may not import trainers; the settings' own class does the checking.
    settings = importlib.import_module("karat.trainers.settings").TrainSettings
    return settings.model_validate(value)


def _percent(value: Any) -> Any:
    if isinstance(value, str) and value.strip().endswith("%"):
        try:
            value = float(value.strip().removesuffix("%")) / 100
        except ValueError:
            value = -1.0
    elif isinstance(value, str | bool | list):
        raise PydanticCustomError(
            "share", "must be a share of the reference such as 50%, or rows of their own"
        )
    if isinstance(value, int | float) and not 0 < value < 1:
        raise PydanticCustomError("share", "must be between 0% and 100%, or rows of their own")
    return value


def _listed(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def _columns(number: int, scorer: Scorer) -> dict[str, Any]:
    """The columns of a scorer; how wide a vector is may be known by a model's files only."""
    try:
        return dict(scorer.columns())
    except KaratError as error:
        problem = f"{error.problem} ({error.hint})" if error.hint else error.problem
        raise PydanticCustomError(
            "scorer", "{problem}", {"problem": problem, "at": ("scorers", number)}
        ) from error


class ExportSettings(BaseModel):
    """How the kept rows are written."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shard_rows: int = Field(100_000, ge=1, description="rows in one Parquet file")
    vectors: bool = Field(False, description="whether columns of vectors (embeddings) go with the rows")


class Config(BaseModel):
    """One run. Unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    name: str = Field(pattern=SLUG, description="letters, digits, dot, dash and underscore")
    out: Path = Field(description="the run's folder; default runs/<name>")
    store: Path = Field(description="where scores are kept for reuse; default .store beside the run's folder")
    seed: int = Field(0, ge=0, description="seed of the evaluation split and of the controls")
    data: DataSpec = Field(description="the pool to choose from")
    reference: DataSpec | None = Field(None, description="rows like those that the model is for")
    evaluate: Annotated[float | DataSpec | None, BeforeValidator(_percent)] = Field(
        None, description="rows to measure on, or the share of the reference that is kept from the scorers"
    )
    scorers: tuple[AnyScorer, ...] = Field(min_length=1)
    select: AnySelector
    export: ExportSettings = ExportSettings()
    train: Annotated[Any, BeforeValidator(_train_settings)] = None

    @model_validator(mode="after")
    def _fits_together(self) -> Config:
        written: dict[str, str] = {}
        for number, scorer in enumerate(self.scorers):
            if scorer.needs_reference and self.reference is None:
                raise PydanticCustomError(
                    "reference", "scorer {kind} needs `reference`: rows like those that the model is for",
                    {"kind": scorer.kind, "at": ("scorers", number)},
                )  # fmt: skip
            for column in (*_columns(number, scorer), scorer.status_column()):
                if column in written:
                    raise PydanticCustomError(
                        "columns",
                        "two scorers write the column {column}; leave one out",
                        {"column": column, "at": ("scorers", number)},
                    )
                written[column] = scorer.kind
        self._sources_exist()
        if isinstance(self.evaluate, float) and self.reference is None:
            raise PydanticCustomError(
                "evaluate", "a share needs `reference`, which it is a share of", {"at": ("evaluate",)}
            )
        if self.train is not None and self.evaluate is None:
            raise PydanticCustomError(
                "evaluate",
                "needs `evaluate`: held-out rows, or the share of `reference` to hold out",
                {"at": ("train",)},
            )
        return self

    def _sources_exist(self) -> None:
        first_hand = [scorer for scorer in self.scorers if not isinstance(scorer, DerivedScorer)]
        written = {name: dtype for scorer in first_hand for name, dtype in scorer.columns().items()}
        for scorer in derived_scorers(self.scorers):
            if problem := source_problem(scorer, written):
                settings = type(scorer).model_fields
                named = [key for key in settings if problem[0] in _listed(getattr(scorer, key))]
                at = ("scorers", self.scorers.index(scorer), *named[:1])
                raise PydanticCustomError("source", "{problem}", {"problem": problem[1], "at": at})
            written |= scorer.columns()

    def score_columns(self) -> list[str]:
        """The columns that the scorers write, in order."""
        return [column for scorer in self.scorers for column in scorer.columns()]


@dataclass(frozen=True)
class Loaded:
    """A config with the document it came from, so that later checks can name key and line as well."""

    config: Config
    document: Document

    def error(self, loc: Loc, problem: str, hint: str | None = None) -> ConfigError:
        """A ConfigError at one key."""
        return ConfigError(problem, where=self.document.where(loc), hint=hint)


def load_config(path: Path, overrides: list[str] | None = None) -> Loaded:
    """Read, override and check a config file; raises ConfigError naming every wrong key and its line."""
    return from_document(override(read_yaml(path), overrides or []), default_name=path.stem)


def from_yaml(text: str, name: str = "config", overrides: list[str] | None = None) -> Loaded:
    """The same from a string."""
    return from_document(override(parse_yaml(text, name), overrides or []), default_name=name)


def from_document(document: Document, default_name: str) -> Loaded:
    """Check a document; relative paths are taken from the current directory and made absolute."""
    if not isinstance(document.data, dict):
        raise ConfigError("must be a mapping of keys", where=document.name, hint="see `karat init`")
    data = dict(document.data)
    data.setdefault("name", default_name)
    out = data.get("out") or Path("runs") / str(data["name"])
    data["out"] = _folder(document, "out", out)
    beside = data["out"].parent if isinstance(data["out"], Path) else Path("runs")
    data["store"] = _folder(document, "store", data.get("store") or beside / ".store")
    try:
        config = Config.model_validate(data)
    except ValidationError as error:
        raise explained(error, document) from None
    return Loaded(config, document)


def _folder(document: Document, key: str, value: Any) -> Any:
    if not isinstance(value, str | Path):
        return value
    try:
        if "\0" in str(value):
            raise RuntimeError("it holds a NUL character")
        return Path(value).expanduser().absolute()
    except RuntimeError as error:  # an unknown ~user
        raise ConfigError(f"is no usable path: {error}", where=document.where((key,))) from None

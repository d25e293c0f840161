"""What `train:` in a config says."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

from karat.code_digest import code_digest
from karat.registry import AnyElementLoss, AnyReweighter

TINY_RATE = 4e-3
PRETRAINED_RATE = 2e-5


class Strata(BaseModel):
    """Groups of training rows made from a score: parts of equal size by its quantiles, equal scores together.

    Each arm is cut by its own rows, so that every arm has groups of the same sizes. Rows without the score
    are a group of their own.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    by: str = Field(min_length=1)
    """Score column, such as irt.difficulty."""
    bins: int = Field(default=4, ge=2, le=1000)
    """How many groups."""
    replace: bool = False
    """Says that these are meant where the data has groups as well."""


class TrainSettings(BaseModel):
    """Train a causal language model on the selection, and the same model on each control.

    Every arm takes `steps` steps of `batch_size` x `gradient_accumulation` blocks of at most `max_length`
    tokens; with one seed, all arms start from the same weights.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    model: str = Field(default="tiny", min_length=1)
    """"tiny" (bytes, 0.7 M parameters, from scratch), or a folder or Hub id of a pretrained causal LM."""
    steps: PositiveInt = 150
    batch_size: PositiveInt = 8
    gradient_accumulation: PositiveInt = 1
    learning_rate: PositiveFloat | None = None
    """Peak of a cosine schedule; None: 0.004 for "tiny", 0.00002 for a pretrained model."""
    warmup: float = Field(default=0.1, ge=0, le=1)
    """Share of the steps over which the learning rate rises."""
    max_length: int = Field(default=128, ge=2)
    """Tokens in a block; longer rows become several blocks, none of it is cut off."""
    seeds: tuple[int, ...] = (1, 2, 3)
    evaluate_every: PositiveInt = 50
    evaluate_rows: PositiveInt | None = 100
    """At most this many held-out rows, drawn by the hash of their id; None: all of them."""
    reweighter: AnyReweighter | None = None
    """Adapts the weights to the losses, in every arm alike, so that the arms differ in their rows alone."""
    reference: str | None = Field(default=None, min_length=1)
    """Folder or Hub id of the causal LM that rules such as doremi follow the excess over."""
    loss: AnyElementLoss | None = None
    """In place of the cross-entropy of every token, such as ldr_kl, in every arm alike."""
    controls: tuple[Literal["tokens", "tokens+group", "shuffled"], ...] = ("tokens",)
    """Random selections of the same size in tokens, or in tokens of each group; "shuffled": the selection
    itself without its order, for `order: rank`. All controls are shuffled."""
    order: Literal["shuffled", "rank"] = "shuffled"
    """Whether the selection's rows are drawn at random or stage by stage, shuffled inside a stage."""
    pacing: Literal["once", "cumulative", "every_epoch"] = "once"
    """order rank: how stages fill the training, see karat.trainers.CurriculumSampler."""
    stages: PositiveInt | None = None
    """order rank: cut the rank into so many; None: the selection's own (`curriculum.stage`), or else 4."""
    groups: Strata | None = None
    """Groups for the reweighter by the quantile of a score, such as {by: irt.difficulty, bins: 4}."""
    use_weights: bool = True
    """Whether the selection's weights reach the loss, or only its choice of rows counts."""

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if not self.seeds:
            raise ValueError("seeds: name at least one; an interval needs three")
        for name, values in (("seeds", self.seeds), ("controls", self.controls)):
            if len(set(values)) < len(values):
                raise ValueError(f"{name}: one is named twice")
        if not all(0 <= seed < 2**32 for seed in self.seeds):
            raise ValueError("seeds: from 0 to 4294967295")
        return self

    @model_validator(mode="after")
    def _is_used(self) -> Self:
        if self.order == "shuffled":
            fields = type(self).model_fields
            given = [name for name in ("pacing", "stages") if getattr(self, name) != fields[name].default]
            if given:
                raise ValueError(f"{given[0]}: is for `order: rank`; the order is shuffled")
            if "shuffled" in self.controls:
                raise ValueError("controls: shuffled is the selection without its order, for `order: rank`")
        if self.groups is not None and (self.reweighter is None or not self.reweighter.needs_groups()):
            kind = "there is none" if self.reweighter is None else f"{self.reweighter.kind} does not"
            raise ValueError(f"groups: need a reweighter that reads them, such as group_dro; {kind}")
        return self

    @model_validator(mode="after")
    def _has_its_reference(self) -> Self:
        follows = self.reweighter is not None and self.reweighter.measure() == "excess"
        if follows and self.reference is None:
            raise ValueError("reference: name the causal LM that the reweighter follows the excess over")
        if self.reference is not None and not follows:
            raise ValueError("reference: is for a reweighter that follows the excess over it, such as doremi")
        return self

    def shuffled(self) -> TrainSettings:
        """The same training without an order."""
        return self.model_copy(update={"order": "shuffled", "pacing": "once", "stages": None})

    def missing_folder(self) -> bool:
        """Whether `model` can only be a folder, and there is none."""
        looks = self.model.startswith((".", "/", "~")) or self.model.count("/") > 1
        return looks and not Path(self.model).is_dir()

    def digest(self, **changes: Any) -> str:
        """Key of what an arm does with its rows: settings, code, the reweighter's code, the model's files.

        changes: settings to be taken as these, such as seeds=[1]. A Hub id is known by its name only.
        """
        from karat.trainers.train import ArmResult

        settings = self.model_dump(mode="json") | changes
        code = [code_digest(TrainSettings), code_digest(ArmResult)]
        parts = [None if part is None else part.digest() for part in (self.reweighter, self.loss)]
        models = [_files(Path(name)) for name in (self.model, self.reference) if name is not None]
        facts = json.dumps([settings, code, parts, models], sort_keys=True)
        return hashlib.blake2b(facts.encode(), digest_size=16).hexdigest()

    @property
    def rate(self) -> float:
        """The learning rate, with its default."""
        if self.learning_rate is not None:
            return self.learning_rate
        return TINY_RATE if self.model == "tiny" else PRETRAINED_RATE


def _files(folder: Path) -> list[tuple[str, str]]:
    """Name and digest of every file of a model's folder; [] where the model is not one."""
    if not folder.is_dir():
        return []
    found = []
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        with path.open("rb") as file:
            found.append((path.name, hashlib.file_digest(file, "sha256").hexdigest()))
    return found

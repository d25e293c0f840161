"""A corpus that every machine has: the documented functions of the packages beside karat."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
from typing import TYPE_CHECKING, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, field_validator, model_validator

from karat.code_digest import code_digest
from karat.rows.harvest_rows import Harvest, Harvester, Progress
from karat.rows.python_functions import STDLIB, source_files

if TYPE_CHECKING:
    import polars as pl

DEFAULT_PACKAGES = (
    *("numpy", "scipy", "sklearn", "torch", "polars", "pandas"),
    *("pyarrow", "transformers", "datasets", "prefect", "pydantic", "stdlib"),
)


class HarvestSettings(BaseModel):
    """(docstring → function source) pairs parsed from installed packages; nothing is imported or run.

    `part` names one of three sets with no source file and no text in common: of `heldout_package`, files
    with about `heldout_share` of its bytes are taken out by the hash of their path, half of them for
    "reference" (what scorers look at), half for "heldout" (evaluation); the rest and all other packages
    are the "pool". Exact duplicates are kept once over all parts, and a row that shares half of its
    lines with one row of a part before it (heldout, reference, pool) is dropped: packages repeat
    themselves from file to file. "all" holds nothing out.

    Sizes are in UTF-8 bytes. At most `rows` rows, as evenly over the packages as they allow; which ones
    is a function of `seed` and the row's name. Raises ConfigError where a package is not installed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    packages: tuple[str, ...] = DEFAULT_PACKAGES
    rows: PositiveInt = 6000
    per_package: PositiveInt | None = None
    min_doc: PositiveInt = 40
    max_doc: PositiveInt = 1500
    min_source: PositiveInt = 60
    max_source: PositiveInt = 2500
    part: Literal["pool", "reference", "heldout", "all"] = "pool"
    heldout_package: str | None = "polars"
    heldout_share: float = Field(default=0.3, gt=0, lt=1)
    seed: int = 17

    @field_validator("packages")
    @classmethod
    def _packages(cls, packages: tuple[str, ...]) -> tuple[str, ...]:
        if not packages:
            raise ValueError("name at least one package")
        for name in packages:
            if not name.isidentifier():
                raise ValueError(f"{name!r} is not the name of a top-level package, as in `import numpy`")
        if len(set(packages)) < len(packages):
            raise ValueError("a package is named twice")
        return packages

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for what, low, high in (
            ("doc", self.min_doc, self.max_doc),
            ("source", self.min_source, self.max_source),
        ):
            if low > high:
                raise ValueError(f"min_{what} {low} is above max_{what} {high}")
        if self.part in ("reference", "heldout") and self.heldout_package is None:
            raise ValueError(f"part {self.part!r} needs heldout_package")
        if self.heldout_package is not None and not self.heldout_package.isidentifier():
            raise ValueError(f"{self.heldout_package!r} is not the name of a top-level package")
        return self

    def facts(self) -> dict[str, object]:
        """Everything that the rows depend on: settings, code, Python and the packages' versions."""
        return {
            "settings": self.model_dump(mode="json"),
            "code": code_digest(type(self)),
            "python": platform.python_version(),
            "versions": _versions(self.packages_read()),
        }

    def fingerprint(self) -> str:
        """Digest of `facts()`: equal fingerprints, equal rows."""
        text = json.dumps(self.facts(), sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def load(self, on_file: Progress | None = None) -> pl.DataFrame:
        """The rows of `part`; `on_file(done, total)` is called as files are read."""
        return self.harvest(on_file).frame

    def harvest(self, on_file: Progress | None = None) -> Harvest:
        """The rows of `part`, with counts of what was left out and why."""
        return Harvester(self, on_file).harvest()

    def packages_read(self) -> list[str]:
        """The packages that `part` depends on, the held-out one first."""
        held = [] if self.heldout_package is None or self.part == "all" else [self.heldout_package]
        pool = self.packages if self.part in ("pool", "all") else ()
        return list(dict.fromkeys([*held, *pool]))


def _versions(packages: list[str]) -> dict[str, str]:
    """Version of each package's distribution; where it has none, a digest of its files' names and sizes."""
    homes = importlib.metadata.packages_distributions()
    found: dict[str, str] = {}
    for package in packages:
        distributions = sorted(set(homes.get(package, ())))
        if package != STDLIB and distributions:
            found[package] = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in distributions)
        elif package != STDLIB:
            listing = [(file.path, file.size) for file in source_files(package)]
            found[package] = hashlib.blake2b(repr(listing).encode(), digest_size=16).hexdigest()
    return found

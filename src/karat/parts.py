"""The three contracts: everything in karat is a Scorer, a Selector or a Reweighter, or calls one.

A part is a frozen pydantic model: its settings, its code and its cache key are one object. It prints,
compares, pickles and hashes by its settings. In YAML its `kind` names it; a kind with a colon
(`my_package.my_module:MyScorer`) loads a stranger's class, so a plug-in needs no registration.
"""

from __future__ import annotations

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer

from karat.code_digest import code_digest
from karat.errors import ScoreError

if TYPE_CHECKING:
    import polars as pl
    import torch

    from karat.fitting import Arrays, Fitting
    from karat.measured import Measured

    State = dict[str, torch.Tensor]


class Part(BaseModel):
    """Settings with a name, a digest and a place in the catalogue."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    kind: ClassVar[str] = ""
    """The name in YAML and in column names: the class name in snake case."""
    summary: ClassVar[str] = ""
    """One line for `karat list`."""
    formula: ClassVar[str] = ""
    """What is computed, for `karat list NAME`."""
    paper: ClassVar[str] = ""
    """Author, year, identifier and section."""

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        if "kind" not in cls.__dict__:
            cls.kind = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", cls.__name__).lower()

    @classmethod
    def yaml_kind(cls) -> str:
        """What `kind:` has to say in a config: the short name of karat's own parts, else the import path."""
        own = cls.__module__ == "karat" or cls.__module__.startswith("karat.")
        return cls.kind if own else f"{cls.__module__}:{cls.__qualname__}"

    @model_serializer(mode="wrap")
    def _with_kind(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {"kind": self.yaml_kind(), **handler(self)}

    def environment(self) -> dict[str, str]:
        """Facts outside settings and code that change the result: a library's version, a model's files."""
        return {}

    neutral: ClassVar[frozenset[str]] = frozenset()
    """Settings that change where or how fast the result is computed, and not the result."""

    def digest(self) -> str:
        """Key of everything that determines the result: settings, code with what it calls, environment."""
        settings = {k: v for k, v in self.model_dump(mode="json").items() if k not in self.neutral}
        facts = [settings, code_digest(type(self)), self.environment()]
        canonical = json.dumps(facts, sort_keys=True, ensure_ascii=False)
        return hashlib.blake2b(canonical.encode(), digest_size=16).hexdigest()

    def __hash__(self) -> int:
        return hash((type(self), self.model_dump_json()))


class Scorer(Part, ABC):
    """Chunks of rows in, columns keyed by `id` out; offline, may use a GPU.

    Law: every id once and in the order of the chunk; a row's score depends on its content and on the
    reference alone, never on its neighbours, its id, the chunking or the number of workers. Null means
    "no score", and then `<kind>.status` says why; NaN is a bug and is refused.

    A scorer that `needs_pool` (a density ratio, a race for the best k) may also depend on the contents of
    the pool, as a multiset: never on their order or ids. `fit` sees them once, before any row is scored.
    """

    needs_reference: ClassVar[bool] = False
    """Whether `prepare` must be given reference rows."""
    reads: ClassVar[tuple[str, ...]] = ("text",)
    """The columns of the row view (karat.rows.VIEW) that the score depends on."""

    @abstractmethod
    def columns(self) -> dict[str, pl.DataType]:
        """Names and types of the columns that `score` returns, without id and status."""

    def needs_pool(self) -> bool:
        """Whether `fit` has to see the whole pool before a row can be scored."""
        return False

    def fit(self, pool: pl.DataFrame, reference: pl.DataFrame | None, fitting: Fitting) -> Arrays:
        """Learn from the whole pool what every row's score needs; called only if `needs_pool`.

        pool: the columns of `reads` and `copies` (UInt32); each distinct content once, nulls included,
        sorted by content, so that the order of the pool cannot matter. Returns named numpy arrays, which
        are kept on disk and given to `prepare`, there or on another machine. Long fits keep steps
        (`fitting.keep`), go on from them, and say how far they are (`fitting.report`).
        """
        raise NotImplementedError(f"{self.yaml_kind()} needs the pool but has no fit()")

    def prepare(self, reference: pl.DataFrame | None, fitted: Arrays | None = None) -> Any:
        """Load what all chunks share once (reference texts, a model); threads share it, read-only.

        fitted: what `fit` returned; None for a scorer that does not need the pool.
        """
        return None

    def notes(self, prepared: Any) -> tuple[str, ...]:
        """Sentences that the user should read about what was prepared, such as targets that were cut."""
        return ()

    @abstractmethod
    def score(self, rows: pl.DataFrame, prepared: Any) -> pl.DataFrame:
        """Score one chunk: `id`, the columns of `columns()`, and `<kind>.status` (null where all is well)."""

    def at_once(self) -> int:
        """How many rows of a chunk are under way together; chunks hold as many at least, if there are."""
        return 1

    def shares(self) -> Hashable | None:
        """Scorers with equal keys are scored together, in one pass over what they share (a model)."""
        return None

    @classmethod
    def score_together(
        cls, scorers: Sequence[Scorer], rows: pl.DataFrame, prepared: Sequence[Any]
    ) -> list[pl.DataFrame]:
        """What `score` of each would return; called on the class of the first, if they share a key."""
        return [scorer.score(rows, ready) for scorer, ready in zip(scorers, prepared, strict=True)]

    @classmethod
    def status_column(cls) -> str:
        """Name of the column that says why a score is null."""
        return f"{cls.kind}.status"


class DerivedScorer(Scorer, ABC):
    """Columns computed from those of other scorers, once for the whole table; cheap, so never kept.

    Law: a row's value depends on its sources, its content, the reference and the multiset of all rows'
    sources and contents; never on ids, on the order of the rows or on threads. A column is null only where
    the status says why, and the status speaks only where a column is null.
    """

    lists: ClassVar[bool] = False
    """Whether its sources may be columns of lists of numbers."""

    @abstractmethod
    def sources(self) -> tuple[str, ...]:
        """The columns of other scorers, of numbers or vectors, that `derive` reads."""

    def reference_sources(self) -> tuple[str, ...]:
        """Those of them that it reads of the reference's rows as well, scored by the same scorers."""
        return ()

    @abstractmethod
    def derive(self, table: pl.DataFrame, view: pl.DataFrame, reference: pl.DataFrame | None) -> pl.DataFrame:
        """`id`, the columns of `columns()` and `<kind>.status`: the rows of the table, in its order.

        table: `id` and `sources()`, no NaN and no infinity; view: the same rows as the row view with the
        columns of `reads`; reference: the reference's row view and the columns of `reference_sources()`, or
        None where `needs_reference` is false.
        """

    def needs_pool(self) -> bool:
        """Always: the scores of all rows."""
        return True

    def fit(self, pool: pl.DataFrame, reference: pl.DataFrame | None, fitting: Fitting) -> Arrays:
        """Refused: nothing is learned apart from the table."""
        raise self._refusal()

    def score(self, rows: pl.DataFrame, prepared: Any) -> pl.DataFrame:
        """Refused: what is derived needs the scores of all rows."""
        raise self._refusal()

    def _refusal(self) -> ScoreError:
        return ScoreError(
            f"is computed from {', '.join(self.sources())} of all rows, not chunk by chunk",
            where=f"scorer {self.yaml_kind()}",
            hint="give it to karat.score together with its sources, or to karat.derive with a score table",
        )


class ItemScorer(Scorer, ABC):
    """Columns that belong to an item by its name, and not to the content of a row: learned from responses.

    Who solved which item says how hard it is; the text does not. Law: a row's value depends on its id and
    on the table of responses alone; the order of either does not matter. A column is null only where the
    status says why, and the status speaks only where a column is null.
    """

    reads: ClassVar[tuple[str, ...]] = ()
    source: ClassVar[str] = "responses"
    """What it is learned from, for messages."""
    lack: ClassVar[str] = "no responses"
    """What a row whose id is no item has, for messages and its status."""

    def joins(self) -> bool:
        """Whether these settings join by id; if not, it is a scorer of contents like any other."""
        return True

    @abstractmethod
    def measure(self, fitting: Fitting) -> Measured:
        """Read the responses that the settings name, and measure every item; kept under `digest()`.

        So `environment()` has to hold the digest of what is read.
        """

    def fit(self, responses: Any, *_: Any, **__: Any) -> Any:  # type: ignore[override]  # never has a pool
        """Free for what a person calls with responses in hand; nothing here learns from the pool."""
        raise self._refusal()

    def score(self, rows: pl.DataFrame, prepared: Any) -> pl.DataFrame:
        """Refused: values are joined by id."""
        raise self._refusal()

    def _refusal(self) -> ScoreError:
        return ScoreError(
            "is measured from responses and joined by id, not computed from rows",
            where=f"scorer {self.yaml_kind()}",
            hint="karat.score and `karat run` join it",
        )


class Selector(Part, ABC):
    """Score table in, one `weight` per id out (0 = dropped), with the reason; offline, pure polars.

    Law: pure; ties are broken by id; randomness is a function of (seed, id) only, so sharding changes
    nothing and larger budgets contain smaller ones.
    """

    @abstractmethod
    def needs(self) -> tuple[str, ...]:
        """The columns of the score table that the decision reads."""

    def check(self, rows: pl.DataFrame, lengths: pl.DataFrame | None = None) -> None:
        """Raise SelectionError for what cannot work on these rows (id, group), before anything is scored.

        `lengths` (id, length.tokens, ...) is given once it is known, which is early, as it is cheap.
        """
        return

    @abstractmethod
    def select(self, scores: pl.DataFrame) -> pl.DataFrame:
        """Columns `id`, `weight` (Float64), `reason` (String), `rank` (UInt32, 1 = first; null = unranked).

        One row for each row of `scores`, in its order. Columns named `<kind>.<name>` may follow: numbers of
        its own that the selection shows.
        """

    def notes(self, scores: pl.DataFrame, selection: pl.DataFrame) -> tuple[str, ...]:
        """Sentences that the user should read about a selection that was made of these scores."""
        return ()


class Reweighter(Part, ABC):
    """Losses in, weights and new state out; inside the training step, pure torch.

    Law: pure (state in, state out); float32; the same on one rank or many and for any accumulation;
    constant losses give weights of one; a row whose static weight is 0 gets 0 and does not touch the state.
    """

    def init(self, n_samples: int, n_groups: int = 0) -> State:
        """State before the first step, as tensors only, so that a checkpoint can hold it."""
        return {}

    @abstractmethod
    def update(
        self,
        weights: torch.Tensor,
        losses: torch.Tensor,
        rows: torch.Tensor,
        state: State,
        groups: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, State]:
        """New weights for one scope of samples (the micro-batch of all ranks).

        weights: [B] float32, static weights of mean one over the training set; losses: [B] float32, mean
        nats per scored token, detached; rows: [B] int64, row numbers in the training set; groups: [B]
        int64 or None. Returns weights [B] (online weights of mean one over the samples of positive static
        weight, multiplied onto the static ones) and the new state.
        """

    def needs_groups(self) -> bool:
        """Whether `groups` must be given."""
        return False

    def sees_window(self) -> bool:
        """Whether `update` has to see the whole accumulated step of all ranks at once."""
        return getattr(self, "scope", None) == "window"

    def measure(self) -> Literal["loss", "excess", "gradient_norm"]:
        """What `losses` has to hold.

        loss: mean nats per scored token. excess: mean over the scored tokens of max(l - l_ref, 0), l_ref the
        loss of a reference model. gradient_norm: the norm of the gradient of the sample's mean loss with
        respect to its logits, sqrt(sum_t |softmax(z_t) - onehot(y_t)|^2) / n.
        """
        return "loss"


class ElementLoss(Part, ABC):
    """A loss in place of the cross-entropy of one label, for each element apart; pure torch.

    Law: pure and differentiable in the logits; an element's loss depends on its own logits and label alone.
    """

    @abstractmethod
    def losses(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """logits: [N, K] float32, labels: [N] int64 in [0, K). Returns [N] float32 in nats, with gradient."""

"""Before the first step: which facts the rows have, and by which route weights get into this loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from karat.errors import WeightError
from karat.reweight.online.static import Static
from karat.trainers import attach, checks, columns, host, packed
from karat.trainers.facts import Facts, PackedFacts, StreamFacts, TableFacts
from karat.trainers.reference import Reference
from karat.trainers.routes import pairs
from karat.trainers.routes.chunked import Chunked
from karat.trainers.routes.log_probs import LogProbs
from karat.trainers.routes.logits import FromLogits
from karat.trainers.routes.loss_hook import LossHook
from karat.trainers.step import WeightedStep
from karat.trainers.weigher import Weigher

if TYPE_CHECKING:
    from karat.trainers.options import Options
    from karat.trainers.routes.route import Route


@dataclass(frozen=True)
class Prepared:
    """What the rows carry into a batch, and what the reweighter starts from."""

    facts: Facts
    n_rows: int
    """0 for a stream."""
    group_names: tuple[str, ...]
    ids: Any
    """polars Series of the rows' ids, or None where they have none or are a stream."""
    stream: bool
    has_weights: bool


def rows(options: Options, loader: Any, trainer: Any, args: Any, kept: frozenset[str]) -> Prepared:
    """Read weights, groups and ids of the training set, however its rows reach the loader.

    kept: names that the model's forward takes, and so are not dropped. Raises WeightError where a weight
    cannot be found or is none.
    """
    packs = trainer is not None and checks.is_trl(trainer, "SFTTrainer") and trainer.args.packing
    if attach.is_stream(attach.rows_of(loader)):
        if packs:
            raise packed.streamed()
        return _stream(options, kept)
    if packs:
        original = options.dataset if options.dataset is not None else packed.given(trainer)
        segments = packed.segments_of(trainer, original)
        found = _read(options, [original])
        return _of_table(found, PackedFacts(found.read, frozenset(), segments))
    found = _read(options, host.sources(loader, trainer, args))
    drop = frozenset(found.ours) - kept
    return _of_table(found, TableFacts(found.read, drop, found.unread))


@dataclass(frozen=True)
class _Found:
    read: columns.Columns
    ours: tuple[str, ...]
    unread: frozenset[str]
    ids: Any


def _of_table(found: _Found, facts: Facts) -> Prepared:
    read = found.read
    return Prepared(facts, read.n_rows, read.group_names, found.ids, False, read.weights is not None)


def _read(options: Options, datasets: list[Any]) -> _Found:
    known = [columns.names(dataset) for dataset in datasets]
    everything = list(dict.fromkeys(name for names in known for name in names))
    name = columns.choose_weight(everything, options.weight)
    needs_groups = options.reweighter.needs_groups()
    if needs_groups and options.group not in everything:
        raise WeightError(
            f"{options.reweighter.kind} needs groups, and the training set has no column {options.group!r}",
            hint=f"ReweightCallback(..., group=NAME); its columns: {', '.join(everything) or 'none'}",
        )

    def find(column: str) -> Any:
        return columns.read(
            next(data for data, names in zip(datasets, known, strict=True) if column in names), column
        )

    weights = columns.scaled(find(name)) if name is not None else None
    groups, group_names = columns.numbered(find(options.group)) if needs_groups else (None, ())
    ids = find(options.id) if options.ledger and options.id in everything else None
    read = columns.Columns(len(datasets[0]), weights, groups, group_names)
    ours = tuple(column for column in (name, options.group if needs_groups else None) if column)
    unread: frozenset[str] = frozenset()
    if options.weight is not None and weights is None:
        unread = frozenset({options.weight, columns.ALIAS.get(options.weight, options.weight)})
    return _Found(read, ours, unread, ids)


def _stream(options: Options, kept: frozenset[str]) -> Prepared:
    """Rows without numbers bring everything along; what needs the whole set is refused or told."""
    rule = options.reweighter
    if rule.needs_groups() and not options.group_names:
        raise WeightError(
            f"{rule.kind} needs the names of all groups, which a stream does not tell before it ends",
            hint="ReweightCallback(..., group_names=[...])",
        )
    sizes = [
        {name: value.shape for name, value in rule.init(n, len(options.group_names)).items()} for n in (2, 3)
    ]
    if sizes[0] != sizes[1]:
        raise WeightError(
            f"{rule.kind} keeps a number for every row, and the rows of a stream have no number",
            hint="use a map-style data set",
        )
    group = options.group if rule.needs_groups() else None
    ours = frozenset(name for name in (options.id, options.weight, group) if name)
    facts = StreamFacts(
        options.id, options.weight, group, options.group_names, options.mean_weight, ours - kept
    )
    return Prepared(facts, 0, options.group_names, None, True, options.weight is not None)


def step(
    options: Options, model: Any, trainer: Any, args: Any, weigher: Weigher, n_groups: int
) -> WeightedStep:
    """The weighted step by the route that fits; raises WeightError where there is none."""
    base = checks.unwrapped(model)
    reference = None if options.reference is None else Reference.of(options.reference)
    route = _route(options, base, trainer, args)
    fused = LogProbs(gradient_only=getattr(args, "loss_type", "nll") == "dft")
    made = WeightedStep(
        model,
        route,
        weigher,
        options.reduction,
        args.average_tokens_across_devices,
        exact=options.accumulation == "exact",
        element=options.loss,
        reference=reference,
        fused=None if isinstance(route, pairs.Pairs) else fused,
        n_groups=n_groups,
    )
    if isinstance(route, pairs.Pairs) and (made.scoring.element or reference or made.scoring.norms):
        raise WeightError(
            "a pair has a loss of its own kind: no other loss, gradient norm or reference model goes with it",
            where="DPOTrainer",
        )
    return made


def _route(options: Options, base: Any, trainer: Any, args: Any) -> Route:
    if trainer is not None and checks.is_trl(trainer, "DPOTrainer"):
        follows = not isinstance(options.reweighter, Static)
        pairs.check(trainer, follows)
        return pairs.Pairs(trainer, pairs.is_measured(trainer))
    checks.check_head(base, args)
    family = checks.family_of(base)
    if options.chunked:
        return Chunked(base, compiled=bool(args.torch_compile))
    if family is None:
        return FromLogits(base)
    return LossHook(base, family, compiled=bool(args.torch_compile))


def forward_names(base: Any) -> frozenset[str]:
    """Names that the model's forward takes, so that no column of that name is kept from it."""
    return frozenset(checks.forward_names(base))

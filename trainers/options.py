"""What a ReweightCallback was told, checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic_core import PydanticCustomError, ValidationError

from karat.errors import WeightError
from karat.parts import ElementLoss, Part, Reweighter
from karat.registry import load
from karat.reweight.online.static import Static
from karat.trainers.loss import Reduction

if TYPE_CHECKING:
    from os import PathLike

Accumulation = Literal["exact", "stock"]


@dataclass(frozen=True)
class Options:
    """See ReweightCallback."""

    reweighter: Reweighter
    weight: str | None
    group: str
    id: str
    reduction: Reduction
    accumulation: Accumulation
    loss: ElementLoss | None
    reference: Any
    dataset: Any
    group_names: tuple[str, ...]
    mean_weight: float
    chunked: bool
    ledger: bool | str | PathLike[str]

    @classmethod
    def checked(
        cls,
        reweighter: Any,
        loss: Any,
        reduction: Any,
        accumulation: Any,
        group_names: Sequence[str],
        mean_weight: float,
        **others: Any,
    ) -> Options:
        """Raises WeightError for what is no reweighter, no loss or an unknown word."""
        rule = Static() if reweighter is None else _part(reweighter, Reweighter, "reweighter")
        element = None if loss is None else _part(loss, ElementLoss, "loss")
        if reduction not in ("token", "sample"):
            raise WeightError(f"unknown reduction {reduction!r}", hint="'token' or 'sample'")
        if accumulation not in ("exact", "stock"):
            raise WeightError(f"unknown accumulation {accumulation!r}", hint="'exact' or 'stock'")
        if not 0 < mean_weight < float("inf"):
            raise WeightError(f"mean_weight is {mean_weight}", hint="it is a positive number")
        if rule.measure() == "excess" and others["reference"] is None:
            raise WeightError(
                f"{rule.kind} follows the excess over a reference model, and there is none",
                hint="ReweightCallback(..., reference=MODEL)",
            )
        if others["chunked"] and (element is not None or rule.measure() != "loss"):
            raise WeightError(
                "chunked=True computes the cross-entropy without logits, which another loss, gradient norms "
                "and the excess over a reference model need",
                hint="leave chunked out",
            )
        return cls(
            rule,
            loss=element,
            reduction=reduction,
            accumulation=accumulation,
            group_names=tuple(str(name) for name in group_names),
            mean_weight=float(mean_weight),
            **others,
        )


def _part(value: Any, contract: type[Part], name: str) -> Any:
    try:
        part: Any = load(value, contract)
    except PydanticCustomError as error:
        raise WeightError(str(error), where=name) from error
    except ValidationError as error:
        told = (": ".join([*map(str, one["loc"]), one["msg"]]) for one in error.errors())
        raise WeightError("; ".join(told), where=name) from error
    if not isinstance(part, contract):
        raise WeightError(
            f"{part!r} is not a {name}",
            hint="for example ReweightCallback(LinUpper(temperature=0.4))",
        )
    return part

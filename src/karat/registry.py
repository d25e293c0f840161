"""From a `kind` to its class: karat's own parts by short name, a stranger's by import path."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, SerializeAsAny
from pydantic_core import PydanticCustomError

from karat.allocation import Allocation
from karat.errors import closest
from karat.parts import ElementLoss, ItemScorer, Part, Reweighter, Scorer, Selector
from karat.verifier import Verifier

# Each package carries its own table MEMBERS of kind -> "module:Class", so that listing loads nothing heavy.
HOMES: dict[type[Part], str] = {
    Scorer: "karat.scorers",
    ItemScorer: "karat.scorers",
    Selector: "karat.reweight.select",
    Reweighter: "karat.reweight.online",
    ElementLoss: "karat.reweight.online.element_losses",
    Verifier: "karat.scorers.verifiers",
    Allocation: "karat.reweight.allocate",
}

P = TypeVar("P", bound=Part)


def members(contract: type[Part]) -> Mapping[str, str]:
    """Table of kind -> "module:Class" of karat's own parts of one contract."""
    table: Mapping[str, str] = importlib.import_module(HOMES[contract]).MEMBERS
    return table


def import_class(path: str, contract: type[P]) -> type[P]:
    """The class behind "module:Class", checked to be of the contract."""
    module, _, name = path.partition(":")
    if not module or not name or module.startswith("."):
        raise PydanticCustomError(
            "kind", "{path} is no import path; write package.module:Class", {"path": path}
        )
    try:
        found: Any = importlib.import_module(module)
        for step in name.split("."):
            found = getattr(found, step)
    except Exception as error:  # importing runs a stranger's code, which may raise anything
        why = (
            str(error)
            if isinstance(error, ImportError | AttributeError)
            else f"{type(error).__name__}: {error}"
        )
        raise PydanticCustomError(
            "kind", "cannot import {path}: {why}", {"path": path, "why": why}
        ) from error
    if not (isinstance(found, type) and issubclass(found, contract)):
        raise PydanticCustomError(
            "kind", "{path} is not a {contract}", {"path": path, "contract": contract.__name__}
        )
    if missing := sorted(getattr(found, "__abstractmethods__", ())):
        raise PydanticCustomError(
            "kind", "{path} does not define {missing}", {"path": path, "missing": ", ".join(missing)}
        )
    return found


def resolve(kind: str, contract: type[P]) -> type[P]:
    """The class that a `kind` names."""
    if ":" in kind:
        return import_class(kind, contract)
    table = members(contract)
    if kind not in table:
        raise PydanticCustomError(
            "kind",
            "unknown {contract} '{kind}'; {hint}",
            {"contract": words(contract), "kind": kind, "hint": _meant(kind, table)},
        )
    return import_class(table[kind], contract)


def words(contract: type[Part]) -> str:
    """The contract's name in a sentence: `element loss`."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", contract.__name__).lower()


def _meant(kind: str, table: Mapping[str, str]) -> str:
    module, _, name = kind.rpartition(".")
    if module and name[:1].isupper():
        return f"a class of your own is written '{module}:{name}'"
    return closest(kind, table)


def load(settings: Any, contract: type[P]) -> Any:
    """A part from its YAML form: a mapping with `kind`, or the bare kind where defaults will do."""
    if isinstance(settings, str):
        settings = {"kind": settings}
    if not isinstance(settings, Mapping):
        return settings
    rest = dict(settings)
    kind = rest.pop("kind", None)
    if not isinstance(kind, str):
        raise PydanticCustomError(
            "kind",
            "needs `kind`; known: {known}",
            {"known": ", ".join(sorted(members(contract)))},
        )
    return resolve(kind, contract).model_validate(rest)


def _loader(contract: type[Part]) -> Callable[[Any], Any]:
    return lambda settings: load(settings, contract)


AnyScorer = Annotated[SerializeAsAny[Scorer], BeforeValidator(_loader(Scorer))]
AnySelector = Annotated[SerializeAsAny[Selector], BeforeValidator(_loader(Selector))]
AnyReweighter = Annotated[SerializeAsAny[Reweighter], BeforeValidator(_loader(Reweighter))]
AnyElementLoss = Annotated[SerializeAsAny[ElementLoss], BeforeValidator(_loader(ElementLoss))]
AnyVerifier = Annotated[SerializeAsAny[Verifier], BeforeValidator(_loader(Verifier))]
AnyAllocation = Annotated[SerializeAsAny[Allocation], BeforeValidator(_loader(Allocation))]

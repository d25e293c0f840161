"""What there is to configure: the catalogue behind `karat list` and the hints for mistyped keys."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, is_dataclass
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticCustomError, PydanticUndefined

from karat.allocation import Allocation
from karat.errors import ConfigError, closest
from karat.parts import ElementLoss, Part, Reweighter, Scorer, Selector
from karat.registry import members, resolve, words
from karat.verifier import Verifier

CONTRACTS: dict[str, type[Part]] = {
    "scorers": Scorer,
    "selectors": Selector,
    "reweighters": Reweighter,
    "element losses": ElementLoss,
    "verifiers": Verifier,
    "allocations": Allocation,
}


@dataclass(frozen=True)
class Setting:
    """One setting of a part, as a person reads it."""

    name: str
    type: str
    default: str
    description: str


def catalogue() -> dict[str, list[type[Part]]]:
    """Every part of karat, by contract, in alphabetical order."""
    return {
        title: [resolve(kind, contract) for kind in sorted(members(contract))]
        for title, contract in CONTRACTS.items()
    }


def find(name: str) -> type[Part]:
    """A part by kind, class name or import path; raises ConfigError with the nearest name.

    Where contracts share a name, the part of the first one in CONTRACTS; `find_all` has them all.
    """
    return find_all(name)[0]


def find_all(name: str) -> list[type[Part]]:
    """The parts of a kind, class name or import path, one for each contract that has it."""
    if ":" in name:
        return [_imported(name)]
    found, known = [], []
    for contract in CONTRACTS.values():
        table = members(contract)
        classes = {path.partition(":")[2]: kind for kind, path in table.items()}
        kind = name if name in table else classes.get(name)
        if kind is not None:
            found.append(resolve(kind, contract))
        known += [*table, *classes]
    if not found:
        hint = closest(name, known)
        kinds = [kind for kind in known if kind.islower()]
        raise ConfigError(
            f"there is no part named {name!r}", hint=closest(name, kinds) if "known:" in hint else hint
        )
    return found


def _imported(path: str) -> type[Part]:
    why = ""
    for contract in CONTRACTS.values():
        try:
            return resolve(path, contract)
        except PydanticCustomError as error:
            why = error.message()
    raise ConfigError("is not a scorer, selector or reweighter" if " is not a " in why else why, where=path)


def contract_of(part: type[Part]) -> str:
    """`scorer`, `selector`, `reweighter`, `element loss` and so on."""
    return next(words(contract) for contract in CONTRACTS.values() if issubclass(part, contract))


def settings_of(model: type[BaseModel]) -> list[Setting]:
    """Names, types, defaults and descriptions of a model's fields."""
    found = []
    for name, info in model.model_fields.items():
        default = info.get_default(call_default_factory=True) if not info.is_required() else PydanticUndefined
        shown = "required" if default is PydanticUndefined else _value(default)
        kind = " ".join([_words(info.annotation), _limits(info.metadata)]).strip()
        found.append(Setting(name, kind, shown, info.description or ""))
    return found


_LIMITS = (("gt", ">"), ("ge", "≥"), ("lt", "<"), ("le", "≤"))
_CAPITAL = re.compile(r"(?<=[a-z])(?=[A-Z])")
_PLAIN = {int: "whole number", float: "number", str: "text", bool: "true or false", type(None): "null"}


def _limits(metadata: Iterable[Any]) -> str:
    """Bounds, as > 0."""
    return ", ".join(
        f"{sign} {getattr(one, key):g}" for one in metadata for key, sign in _LIMITS if hasattr(one, key)
    )


def _words(annotation: Any) -> str:
    """A type as a person would say it who writes YAML."""
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " or ".join(map(str, inside))
    if origin is Annotated:
        bounds = [one for given in inside[1:] for one in getattr(given, "metadata", [given])]
        return " ".join([_words(inside[0]), _limits(bounds)]).strip()
    if origin in (Union, UnionType):
        # An object that only Python can give, beside a text, is nothing that a config could hold.
        written = [part for part in inside if not (is_dataclass(part) and str in inside)]
        return " or ".join(_words(member) for member in written if member is not type(None))
    if origin is dict:
        return f"{{name: {_words(inside[1])}}}"
    if origin in (tuple, list):
        return f"list of {_words(inside[0])}"
    if annotation in _PLAIN:
        return _PLAIN[annotation]
    fields = getattr(annotation, "model_fields", {})
    name = fields["kind"].default if "kind" in fields else getattr(annotation, "__name__", str(annotation))
    return _CAPITAL.sub(" ", name).lower()


def _value(default: Any) -> str:
    if default is None or isinstance(default, bool):
        return {None: "null", True: "true", False: "false"}[default]
    return "its defaults" if isinstance(default, BaseModel) else str(default)


def keys_at(loc: tuple[Any, ...], data: Any) -> list[str]:
    """The keys that may stand in the mapping at `loc` of a config."""
    from karat.config import Config, ExportSettings

    if not loc:
        return list(Config.model_fields)
    here: Any = data
    for step in loc:
        here = here[step]
    kind = here.get("kind") if isinstance(here, dict) else None
    head = loc[0]
    if head == "export":
        return list(ExportSettings.model_fields)
    if head in ("data", "reference", "evaluate"):
        from karat.rows import data_keys

        return data_keys(kind, nested=loc[-1] == "columns")
    if head == "train" and len(loc) == 1:
        return list(importlib.import_module("karat.trainers.settings").TrainSettings.model_fields)
    if head == "synthesize" and len(loc) == 1:
        settings = importlib.import_module("karat.scorers.synthesis_settings").SynthesisSettings
        return list(settings.model_fields)
    if loc[-1] == "generation":
        return list(importlib.import_module("karat.scorers.generation.settings").Generation.model_fields)
    if loc[-1] == "server":
        return list(importlib.import_module("karat.scorers.server.settings").Server.model_fields)
    if loc[-1] == "embedder":
        embedder_class = importlib.import_module("karat.scorers.embedders").embedder_class
        try:
            return ["kind", *embedder_class(kind).model_fields]
        except PydanticCustomError:
            return []
    nested: dict[str, type[Part]] = {"verifier": Verifier, "allocation": Allocation, "loss": ElementLoss}
    heads: dict[str, type[Part]] = {"scorers": Scorer, "select": Selector, "train": Reweighter}
    contract = nested.get(str(loc[-1])) or heads.get(str(head))
    if contract is None or not isinstance(kind, str):
        return []
    try:
        return ["kind", *resolve(kind, contract).model_fields]
    except PydanticCustomError:
        return []

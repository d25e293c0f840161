"""What there is to configure: the catalogue behind `karat list` and the hints for mistyped keys."""

from __future__ import annotations

import importlib
import re
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
    """A part by kind, class name or import path; raises ConfigError with the nearest name."""
    known: dict[str, type[Part]] = {}
    for contract in CONTRACTS.values():
        for kind, path in members(contract).items():
            known[kind] = contract
            known[path.partition(":")[2]] = contract
    if ":" in name:
        why = ""
        for contract in CONTRACTS.values():
            try:
                return resolve(name, contract)
            except PydanticCustomError as error:
                why = error.message()
        raise ConfigError(
            "is not a scorer, selector or reweighter" if " is not a " in why else why, where=name
        )
    if name not in known:
        hint = closest(name, known)
        kinds = [kind for kind in known if kind.islower()]
        raise ConfigError(
            f"there is no part named {name!r}", hint=closest(name, kinds) if "known:" in hint else hint
        )
    table = members(known[name])
    kind = name if name in table else next(k for k, path in table.items() if path.endswith(f":{name}"))
    return resolve(kind, known[name])


def contract_of(part: type[Part]) -> str:
    """`scorer`, `selector`, `reweighter`, `element loss` and so on."""
    return next(words(contract) for contract in CONTRACTS.values() if issubclass(part, contract))


def settings_of(model: type[BaseModel]) -> list[Setting]:
    """Names, types, defaults and descriptions of a model's fields."""
    found = []
    for name, info in model.model_fields.items():
        default = info.get_default(call_default_factory=True) if not info.is_required() else PydanticUndefined
        shown = "required" if default is PydanticUndefined else _value(default)
        limits = [
            f"{sign} {getattr(m, key):g}" for m in info.metadata for key, sign in _LIMITS if hasattr(m, key)
        ]
        kind = " ".join([_words(info.annotation), ", ".join(limits)]).strip()
        found.append(Setting(name, kind, shown, info.description or ""))
    return found


_LIMITS = (("gt", ">"), ("ge", "≥"), ("lt", "<"), ("le", "≤"))
_CAPITAL = re.compile(r"(?<=[a-z])(?=[A-Z])")
_PLAIN = {int: "whole number", float: "number", str: "text", bool: "true or false", type(None): "null"}


def _words(annotation: Any) -> str:
    """A type as a person would say it who writes YAML."""
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " or ".join(map(str, inside))
    if origin is Annotated:
        return _words(inside[0])
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

"""The settings of a model that writes responses, in their short forms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from karat.scorers.generation.responders import ResponseModel


def folded(given: Any) -> Any:
    """Settings in which `model` is a mapping, with those of its settings that stand beside it.

    `{model: NAME, server: URL, samples: 8}` becomes `{model: {model: NAME, server: URL}, samples: 8}`.
    """
    if not isinstance(given, Mapping) or given.get("model") is None:
        return given
    model = given["model"]
    if isinstance(model, ResponseModel):
        return given
    if isinstance(model, Mapping):
        inner = {name: value for name, value in model.items() if name != "kind"}
    else:
        inner = {"model": model}
    beside = [name for name in ResponseModel.model_fields if name != "model" and name in given]
    inner |= {name: given[name] for name in beside}
    return {**{name: value for name, value in given.items() if name not in beside}, "model": inner}

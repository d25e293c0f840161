"""The reweighter's state beside the model in a checkpoint, as safetensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from karat.errors import WeightError

if TYPE_CHECKING:
    from karat.parts import Reweighter, State

FILE = "karat_reweighter.safetensors"


def save(folder: Path, reweighter: Reweighter, state: State, group_names: tuple[str, ...]) -> None:
    """Write the state, with the settings that it belongs to; the file appears whole or not at all."""
    from safetensors.torch import save_file

    facts = {"reweighter": _settings(reweighter), "groups": json.dumps(group_names, ensure_ascii=False)}
    partial = folder / f"{FILE}.part"
    save_file({name: value.detach().cpu().contiguous() for name, value in state.items()}, partial, facts)
    partial.replace(folder / FILE)


def load(folder: Path, reweighter: Reweighter, fresh: State, group_names: tuple[str, ...]) -> State:
    """The state that was saved, checked to be this reweighter's and of the shape of `fresh`."""
    from safetensors import SafetensorError, safe_open

    path = folder / FILE
    if not path.is_file():
        if not fresh:
            return fresh
        raise WeightError(
            f"the checkpoint has no state for {reweighter.kind}",
            where=str(path),
            hint="resume from a checkpoint that was trained with it, or start anew",
        )
    try:
        with safe_open(path, framework="pt") as file:
            facts = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except SafetensorError as error:
        raise WeightError(
            f"the reweighter's state cannot be read: {error}", where=str(path), hint="use another checkpoint"
        ) from error
    if facts.get("reweighter") != _settings(reweighter):
        raise WeightError(
            f"the checkpoint was trained with {facts.get('reweighter')}, "
            f"this run has {_settings(reweighter)}",
            where=str(path),
            hint="resume with the same reweighter and settings",
        )
    shapes = {name: (value.shape, value.dtype) for name, value in state.items()}
    if shapes != {name: (value.shape, value.dtype) for name, value in fresh.items()}:
        raise WeightError("the saved state has other tensors than expected", where=str(path))
    if facts.get("groups") != json.dumps(group_names, ensure_ascii=False):
        raise WeightError(
            f"the checkpoint was trained with the groups {facts.get('groups')}, the data now has "
            f"{json.dumps(group_names, ensure_ascii=False)}",
            where=str(path),
            hint="resume with the same training set",
        )
    return state


def _settings(reweighter: Reweighter) -> str:
    return json.dumps(reweighter.model_dump(mode="json"), sort_keys=True, ensure_ascii=False)

"""Laws of every part, whatever its contract: for the batteries of scorers, item scorers and verifiers."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Sequence

import yaml

from karat.parts import Part
from karat.registry import load

_DIGESTS = """
import importlib, json, sys
from karat.registry import load
contract = getattr(importlib.import_module(sys.argv[1]), sys.argv[2])
print(json.dumps([load(settings, contract).digest() for settings in json.load(sys.stdin)]))
"""


def check_round_trips(part: Part, contract: type[Part]) -> None:
    """Pickle, Python, YAML and JSON give the same part back, with the same hash."""
    assert pickle.loads(pickle.dumps(part)) == part  # noqa: S301 - our own bytes
    assert load(part.model_dump(), contract) == part
    assert load(yaml.safe_load(yaml.safe_dump(part.model_dump(mode="json"))), contract) == part
    assert hash(load(part.model_dump(), contract)) == hash(part)


def check_described(part: Part) -> None:
    """`karat list` has something to show."""
    assert part.summary
    assert part.formula
    assert part.paper
    assert len(part.summary) < 90


def digests_elsewhere(parts: Sequence[Part], contract: type[Part], seed: str) -> list[str]:
    """Digests as another process computes them, with another seed of Python's hashes."""
    answer = subprocess.run(
        [sys.executable, "-c", _DIGESTS, contract.__module__, contract.__name__],
        input=json.dumps([part.model_dump(mode="json") for part in parts]),
        env={**os.environ, "PYTHONHASHSEED": seed},
        capture_output=True,
        text=True,
        check=True,
    )
    found: list[str] = json.loads(answer.stdout)
    return found

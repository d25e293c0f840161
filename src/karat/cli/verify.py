"""`karat verify`: does the gradient of a Trainer, or of a config's training stage, carry its weights?"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from rich.console import Console
from rich.text import Text

from karat.errors import ConfigError, KaratError, closest

out = Console(highlight=False)
HINT = "karat verify train.py:make_trainer, with a function that takes nothing and returns the Trainer"
STANDARD_LIBRARY = sysconfig.get_path("stdlib")
ROWS = 64
"""Rows of a config's data that its training stage is tried on."""


def verify_command(target: str, *, steps: int, seed: int, last: bool, tolerance: float | None) -> None:
    """Print the table; raises ConfigError for an unusable target, exits with 1 if weights are lost."""
    from karat.trainers.verification.table import show_verification
    from karat.trainers.verification.verify import verify_weights

    with _trainer(target) as trainer:
        try:
            found = verify_weights(
                trainer,
                steps,
                seed=seed,
                parameters="last" if last else "all",
                tolerance=tolerance,
                raises=False,
                show=False,
            )
        except KaratError:
            raise
        except Exception as error:  # the user's own code may raise anything
            raise KaratError(
                f"training raised {type(error).__name__}: {error}",
                where=_place(error),
                hint="does trainer.train() work without karat verify?",
            ) from error
    if not trainer.is_world_process_zero():
        sys.exit(0 if found.passed else 1)
    out.print(Text(f"karat verify {target}", style="bold"), soft_wrap=True)
    show_verification(found, out)
    if not found.passed:
        sys.exit(1)


@contextmanager
def _trainer(target: str) -> Iterator[Any]:
    if target.endswith((".yaml", ".yml")):
        with _of_config(Path(target)) as trainer:
            yield trainer
    else:
        yield _made(target, _function(target))


def _function(target: str) -> Callable[[], Any]:
    """The function that FILE.py:NAME or module:NAME names; nothing else is imported."""
    source, colon, name = target.rpartition(":")
    if not colon or not source or not name:
        raise ConfigError(f"{target!r} is neither FILE.py:FUNCTION nor a config file", hint=HINT)
    module = _from_file(Path(source)) if source.endswith(".py") else _from_module(source)
    found: Any = getattr(module, name, None)
    if found is None:
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise ConfigError(f"there is no {name!r}", where=source, hint=closest(name, known))
    if not callable(found):
        raise ConfigError(f"{name!r} is a {type(found).__name__}, not a function", where=source, hint=HINT)
    function: Callable[[], Any] = found
    return function


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ConfigError("there is no such file", where=str(path), hint=HINT)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ConfigError("is no Python file", where=str(path), hint=HINT)
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent.absolute()))  # what the file imports from beside it
    sys.modules[path.stem] = module  # so that loader workers can unpickle what it defines
    loader = spec.loader
    return _imported(str(path), lambda: loader.exec_module(module), module)


def _from_module(name: str) -> ModuleType:
    sys.path.insert(0, str(Path.cwd()))
    return _imported(name, lambda: importlib.import_module(name), None)


def _imported(source: str, load: Callable[[], Any], module: ModuleType | None) -> ModuleType:
    try:
        found = load()
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"importing it raised {type(error).__name__}: {error}",
            where=_place(error, source),
            hint="put training behind `if __name__ == '__main__':`, and the Trainer into a function",
        ) from error
    return module if module is not None else found


def _made(target: str, function: Callable[[], Any]) -> Any:
    from transformers import Trainer

    try:
        trainer = function()
    except KaratError:
        raise
    except Exception as error:
        raise ConfigError(
            f"it raised {type(error).__name__}: {error}", where=_place(error, target), hint=HINT
        ) from error
    if not isinstance(trainer, Trainer):
        raise ConfigError(f"it returned {type(trainer).__name__}, not a Trainer", where=target, hint=HINT)
    return trainer


def _place(error: BaseException, outer: str | None = None) -> str | None:
    """File and line where it was raised, the innermost that is not a library's."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [
        frame
        for frame in frames
        if "site-packages" not in frame.filename
        and not frame.filename.startswith(("<", STANDARD_LIBRARY))
        and Path(frame.filename) != Path(__file__)
        and f"{Path('karat', 'trainers')}" not in frame.filename
    ]
    return f"{own[-1].filename}:{own[-1].lineno}" if own else outer


@contextmanager
def _of_config(path: Path) -> Iterator[Any]:
    """The Trainer of the config's training stage, on the first rows of its data."""
    import polars as pl

    from karat.config import load_config
    from karat.reading import load_rows
    from karat.store import Store

    loaded = load_config(path, [])
    settings = loaded.config.train
    if settings is None:
        raise loaded.error(("train",), "there is no training stage to verify", "add `train: {}`")
    store = Store(loaded.config.store)
    rows = load_rows(loaded.config.data, store).view()
    chosen = loaded.config.out / "selection.parquet"
    if settings.use_weights and chosen.is_file():  # a run's own weights; else probe weights will do
        weights = pl.read_parquet(chosen, columns=["id", "weight"], glob=False)
        rows = rows.join(weights, on="id").filter(pl.col("weight") > 0)
    from karat.trainers.verification.stage import stage_trainer

    with stage_trainer(rows.head(ROWS), settings) as trainer:
        yield trainer

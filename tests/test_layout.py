"""The folders are the architecture: one import package, one name for each module, all in the wheel."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HOMES = {"flows", "scorers", "reweight", "trainers"}


def packages_on_disk() -> set[str]:
    found = set()
    for init in (ROOT / "src" / "karat").rglob("__init__.py"):
        found.add(".".join(init.parent.relative_to(ROOT / "src").parts))
    for home in HOMES:
        for init in (ROOT / home).rglob("__init__.py"):
            found.add(".".join(["karat", *init.parent.relative_to(ROOT).parts]))
    return found


def test_every_package_is_listed_for_the_wheel() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert set(listed) == packages_on_disk()


def test_every_folder_with_code_is_a_package() -> None:
    for home in HOMES | {"src/karat"}:
        for module in (ROOT / home).rglob("*.py"):
            assert (module.parent / "__init__.py").exists(), module


@pytest.mark.parametrize("name", [*sorted(HOMES), "src.karat", "src.karat.scorers", "reweight.select"])
def test_no_second_name_from_the_checkout(name: str) -> None:
    done = subprocess.run([sys.executable, "-c", f"import {name}"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0
    assert "ImportError" in done.stderr
    assert "karat" in done.stderr


@pytest.mark.parametrize("name", sorted(HOMES))
def test_links_for_static_tools_point_home(name: str) -> None:
    link = ROOT / "src" / "karat" / name
    assert link.is_symlink()
    assert link.resolve() == ROOT / name


def imported(folder: Path) -> dict[Path, set[str]]:
    found = {}
    for module in folder.rglob("*.py"):
        names: set[str] = set()
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                names.add(node.module or "")
        found[module] = names
    return found


@pytest.mark.parametrize(
    ("folder", "forbidden"),
    [
        ("scorers", {"prefect", "karat.flows", "karat.trainers", "karat.reweight"}),
        ("trainers", {"prefect", "karat.flows"}),
        (
            "reweight",
            {"prefect", "transformers", "datasets", "karat.flows", "karat.trainers", "karat.scorers"},
        ),
        ("src/karat", {"prefect"}),
    ],
)
def test_imports_point_one_way(folder: str, forbidden: set[str]) -> None:
    for module, names in imported(ROOT / folder).items():
        for name in names:
            assert not any(name == stop or name.startswith(f"{stop}.") for stop in forbidden), (module, name)


def test_help_is_quick_to_import() -> None:
    """`karat --help` loads none of the heavy libraries."""
    code = (
        "import sys, karat, karat.cli.app\n"
        "heavy = {'torch', 'transformers', 'datasets', 'prefect', 'plotly', 'polars'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("package", "name"),
    [
        ("karat", "score"),
        ("karat.scorers", "ZipFit"),
        ("karat.reweight", "LinUpper"),
        ("karat.trainers", "ReweightCallback"),
    ],
)
def test_dir_shows_what_is_loaded_on_demand(package: str, name: str) -> None:
    assert name in dir(importlib.import_module(package))


@pytest.mark.parametrize(
    "package", [f"karat.{name}" for name in ("scorers", "reweight", "reweight.select", "reweight.online",
                                             "reweight.allocate", "scorers.verifiers", "trainers")]
)  # fmt: skip
def test_names_loaded_on_demand_are_the_typed_ones(package: str) -> None:
    module = importlib.import_module(package)
    tree = ast.parse(Path(str(module.__file__)).read_text())
    blocks = [
        node for node in tree.body if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
    ]
    typed = {
        name.asname for node in ast.walk(blocks[0]) if isinstance(node, ast.ImportFrom) for name in node.names
    }
    assert set(dir(module)) - set(vars(module)) <= typed
    for name in typed:
        assert getattr(module, str(name)).__name__ == {"OnlineCurriculum": "Curriculum"}.get(str(name), name)


def test_what_weighs_before_during_and_beyond_training_has_one_home() -> None:
    from karat.reweight import Curriculum, GroupDro, OnlineCurriculum, Prop2Diff, Uniform

    assert [part.kind for part in (Curriculum, GroupDro, OnlineCurriculum, Prop2Diff, Uniform)] == [
        "curriculum", "group_dro", "curriculum", "prop2_diff", "uniform",
    ]  # fmt: skip

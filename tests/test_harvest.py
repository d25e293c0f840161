"""Harvesting: what is parsed, what is held out, and that the same packages give the same rows."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from karat.errors import ConfigError
from karat.rows import HarvestData
from karat.rows.harvest_rows import Harvester, NearCopies, Row
from karat.rows.python_functions import functions_of, source_files

SOURCE = '''
import nowhere_to_be_found
raise SystemExit("harvesting must not run this")

def top(a,
        b=1):
    """Add two numbers, Grüße ∑.

    Then:
        indented line
    """
    s = """
  left alone
"""
    return a + b

class Outer:
    """A class is not a function."""

    class Inner:
        @staticmethod
        @decorate(with_=1)
        async def deep():
            \'\'\'Go deep.\'\'\'  # a comment beside it
            def hidden():
                """Nested functions are left out."""
                return 1
            return hidden

    if True:
        try:
            def tried(self):
                "One line, plain quotes."
                return self
        except ValueError:
            pass

def no_doc():
    return 1

def empty():
    """Only a docstring."""
    ...

def shared(): """Doc on the line."""; return 1
'''


def write(root: Path, files: dict[str, str | bytes]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())


def function(name: str) -> str:
    return textwrap.dedent(f'''
        def {name}(value):
            """Return the {name} of a value, described at enough length for the limits."""
            total_of_{name} = value + len("{name}")
            other_of_{name} = total_of_{name} * total_of_{name}
            return other_of_{name} - total_of_{name}
        ''')


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two packages, `kt_small` (6 functions) and `kt_large` (100), that must never be imported."""
    bomb = "raise RuntimeError('imported')\n"
    write(tmp_path, {"kt_small/__init__.py": bomb + "".join(function(f"small{i}") for i in range(6))})
    write(tmp_path, {"kt_large/__init__.py": bomb})
    for file in range(20):
        text = "".join(function(f"large{file}x{i}") for i in range(5))
        write(tmp_path, {f"kt_large/sub/m{file:02}.py": text})
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def harvest(**settings: object) -> HarvestData:
    return HarvestData.model_validate({"packages": ["kt_large"], "heldout_package": "kt_large", **settings})


def test_functions_are_cut_out_exactly() -> None:
    found = {f.name: f for f in functions_of(SOURCE.encode())}
    assert list(found) == ["top", "Outer.Inner.deep", "Outer.tried"]
    assert found["top"].docstring == "Add two numbers, Grüße ∑.\n\nThen:\n    indented line"
    assert (
        found["top"].source == 'def top(a,\n        b=1):\n    s = """\n  left alone\n"""\n    return a + b\n'
    )
    assert found["top"].line == 5
    deep = found["Outer.Inner.deep"].source
    assert deep.startswith("@staticmethod\n@decorate(with_=1)\nasync def deep():\n    def hidden():\n")
    assert found["Outer.tried"].source == "def tried(self):\n    return self\n"


def test_encodings_newlines_and_form_feeds() -> None:
    latin = '# -*- coding: latin-1 -*-\ndef f():\n    """Größe"""\n    return 1\n'.encode("latin-1")
    assert functions_of(latin)[0].docstring == "Größe"
    body = 'def f():\r\n    """d"""\r\n    return "\x0c\u2028"\r\n'
    assert functions_of(body.encode())[0].source == 'def f():\n    return "\x0c\u2028"\n'
    assert functions_of(b"\xef\xbb\xbf" + b'def f():\n  "d"\n  return 1')[0].name == "f"
    assert functions_of(b"") == []


def test_rows_have_the_promised_columns_and_no_path_of_this_machine(packages: Path) -> None:
    frame = harvest(part="all", packages=["kt_small", "kt_large"]).load()
    assert frame.columns == ["id", "prompt", "completion", "package", "path", "name"]
    assert frame.height == 106
    assert frame["id"].n_unique() == 106
    row = frame.filter(name="kt_large.sub.m03.large3x2").row(0, named=True)
    assert row["id"] == "kt_large.sub.m03.large3x2@sub/m03.py:14"
    assert row["completion"].startswith("def large3x2(value):\n    total_of_large3x2 = ")
    assert str(packages) not in frame.write_json()
    assert "kt_large" not in sys.modules


def test_parts_share_no_file_and_no_text(packages: Path) -> None:
    parts = {part: harvest(part=part).load() for part in ("pool", "reference", "heldout")}
    files = [set(frame["path"]) for frame in parts.values()]
    assert all(a.isdisjoint(b) for i, a in enumerate(files) for b in files[:i])
    assert sum(frame.height for frame in parts.values()) == 100
    assert 10 <= parts["reference"].height <= 15
    assert 10 <= parts["heldout"].height <= 15


def as_source(completion: str, prompt: str) -> str:
    return completion.replace("(value):\n", f'(value):\n    """{prompt}"""\n')


def test_exact_and_near_copies_stay_on_one_side(packages: Path) -> None:
    held = harvest(part="heldout").load()
    reference = harvest(part="reference").load()
    stolen = as_source(held["completion"][0], held["prompt"][0])
    near = stolen.replace("return", "assert value\n    return")
    taken = as_source(reference["completion"][0], reference["prompt"][0])
    write(packages, {"kt_small/copy.py": stolen, "kt_small/copy2.py": near, "kt_small/copy3.py": taken})
    done = harvest(packages=["kt_small"]).harvest()
    assert done.counts["exact duplicates"] == 2
    assert done.counts["near copies of held-out rows"] == 1
    assert done.frame.height == 6


def test_duplicates_inside_the_pool_are_kept_once(packages: Path) -> None:
    write(packages, {"kt_small/again.py": function("small1")})
    done = harvest(part="all", packages=["kt_small"]).harvest()
    assert (done.frame.height, done.counts["exact duplicates"]) == (6, 1)


def test_rows_are_shared_evenly_and_what_a_small_package_lacks_goes_to_the_others(packages: Path) -> None:
    done = harvest(part="all", packages=["kt_large", "kt_small"], rows=40).harvest()
    assert dict(done.frame["package"].value_counts().rows()) == {"kt_small": 6, "kt_large": 34}
    capped = harvest(part="all", packages=["kt_large", "kt_small"], rows=40, per_package=9).load()
    assert dict(capped["package"].value_counts().rows()) == {"kt_small": 6, "kt_large": 9}
    assert done.counts["files not needed"] > 0


def test_the_same_packages_give_the_same_rows_and_the_seed_draws_others(packages: Path) -> None:
    one = harvest(rows=20).load()
    assert one.equals(harvest(rows=20).load())
    assert set(one["id"]) != set(harvest(rows=20, seed=18).load()["id"])
    assert harvest(part="heldout").load().equals(harvest(part="heldout", seed=99).load())


def test_bad_files_are_counted_and_named(packages: Path) -> None:
    bad: dict[str, str | bytes] = {
        "broken.py": "def f(:\n",
        "bytes.py": b"\xff\xfe\x00",
        "nul.py": b'"""\0"""',
    }
    bad |= {"codec.py": "# coding: nope\n", "deep.py": "'''d'''\nx = " + "(" * 5000 + ")" * 5000}
    write(packages / "kt_small", bad)
    write(packages / "kt_small", {"surrogate.py": function("s").replace("Return the", "Return \\ud800 the")})
    done = harvest(part="all", packages=["kt_small"]).harvest()
    assert done.counts["files that cannot be parsed"] == 5
    assert "kt_small/broken.py: SyntaxError" in done.unreadable
    assert done.counts["functions that are not UTF-8"] == 1
    assert done.frame.height == 6


def test_tests_and_vendored_folders_are_left_out(packages: Path) -> None:
    for name in ("tests/a.py", "_vendor/b.py", "test_c.py", "conftest.py", "kept.py"):
        write(packages / "kt_small", {name: function("x")})
    assert [file.path for file in source_files("kt_small")] == ["__init__.py", "kept.py"]


def test_progress_reaches_the_total(packages: Path) -> None:
    calls: list[tuple[int, int]] = []
    harvest(rows=10).load(on_file=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (21, 21)
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)


def test_a_missing_package_is_named_with_the_nearest_installed_one() -> None:
    with pytest.raises(ConfigError, match=r"'nunpy'.*did you mean 'numpy'"):
        harvest(packages=["nunpy"], part="all").load()
    with pytest.raises(ConfigError, match=r"'sys'.*no Python source"):
        harvest(packages=["sys"], part="all").load()


def test_nothing_left_is_an_error(packages: Path) -> None:
    with pytest.raises(ConfigError, match="no rows"):
        harvest(min_doc=1400).load()
    with pytest.raises(ConfigError, match="no rows for part 'heldout'"):
        harvest(heldout_package="kt_small", part="heldout").load()


@pytest.mark.parametrize(
    "settings",
    [
        {"packages": []},
        {"packages": ["scipy.stats"]},
        {"packages": ["numpy", "numpy"]},
        {"rows": 0},
        {"min_doc": 10, "max_doc": 5},
        {"heldout_share": 1.0},
        {"part": "heldout", "heldout_package": None},
        {"heldout_package": "a.b"},
        {"pacakges": ["numpy"]},
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        HarvestData.model_validate(settings)


def test_the_fingerprint_follows_settings_and_versions(packages: Path) -> None:
    base = harvest().fingerprint()
    assert base == harvest().fingerprint()
    assert base != harvest(rows=5).fingerprint()
    write(packages, {"kt_large/new.py": function("new")})
    assert base != harvest().fingerprint()  # no version is known, so the files themselves count
    versions = HarvestData(packages=("numpy", "stdlib"), heldout_package=None).facts()["versions"]
    assert isinstance(versions, dict)
    assert versions["numpy"].startswith("numpy ")


@settings(deadline=None)
@given(
    st.integers(1, 500), st.lists(st.integers(0, 200), min_size=1, max_size=8), st.none() | st.integers(1, 50)
)
def test_shares_fill_the_budget_evenly(rows: int, sizes: list[int], cap: int | None) -> None:
    wanted = HarvestData(packages=("numpy",), rows=rows, per_package=cap)
    most = {str(i): size for i, size in enumerate(sizes)}
    shares = Harvester(wanted)._shares(most)
    limit = {p: min(n, cap or n) for p, n in most.items()}
    assert sum(shares.values()) == min(rows, sum(limit.values()))
    assert all(shares[p] <= limit[p] for p in most)
    unfilled = [shares[p] for p in most if shares[p] < limit[p]]
    assert not unfilled or max(shares.values()) - min(unfilled) <= 1


def test_near_copy_needs_half_of_the_lines_of_one_row() -> None:
    def row(*lines: str) -> Row:
        return Row("p", "p.py", 1, "n", "\n".join(line * 20 for line in lines), "x")

    seen = NearCopies()
    seen.add(row("a", "b", "c", "d"))
    seen.add(row("e", "f"))
    assert row("a", "b", "y", "z") in seen
    assert row("a", "w", "y", "z") not in seen
    assert row("a", "e", "y", "w", "v", "u") not in seen  # half of e's row, but a third of this one
    assert Row("p", "p.py", 1, "n", "short", "x") not in seen


def test_the_installed_packages_for_real() -> None:
    done = HarvestData(packages=("polars", "json"), rows=50, heldout_package="polars").harvest()
    assert done.frame.height == 50
    assert done.unreadable == ()

"""What the store and the run's folder do after kills, damage by hand and company."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import polars as pl
import pytest

from karat.code_digest import code_digest, modules_digest
from karat.errors import StoreError
from karat.export import write_dataset
from karat.progress import Lines
from karat.reading import RowSet, load_rows
from karat.record import complete, outputs, write_record
from karat.rows import FileData
from karat.scorers.length import Length
from karat.store import Store, alone, keep, replacing, replacing_folder, write_parquet


@pytest.fixture
def source(tmp_path: Path) -> FileData:
    path = tmp_path / "pool.jsonl"
    path.write_text("".join(json.dumps({"text": f"row {n}", "n": n}) + "\n" for n in range(50)))
    return FileData(path=str(path))


@pytest.mark.parametrize("name", ["view.parquet", "original.parquet", "about.json"])
@pytest.mark.parametrize("damage", ["cut", "gone", "empty"])
def test_damaged_rows_are_read_again(tmp_path: Path, source: FileData, name: str, damage: str) -> None:
    store = Store(tmp_path / "store")
    first = load_rows(source, store)
    assert first.fresh
    assert not load_rows(source, store).fresh
    path = first.folder / name
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-9] if damage == "cut" else b"")
    again = load_rows(source, store)
    assert again.fresh
    assert again.view().equals(first.view())
    assert again.original()["n"].to_list() == list(range(50))


def test_rows_that_others_are_using_stay(
    tmp_path: Path, source: FileData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes read one source; the slower one must not take the files from under the quicker one."""
    from karat import reading

    store, quick = Store(tmp_path / "store"), []

    def slow(spec: FileData) -> object:
        monkeypatch.undo()
        quick.append(load_rows(source, store))
        quick.append((quick[0].folder / "view.parquet").stat().st_ino)
        return reading.read(spec)

    monkeypatch.setattr(reading, "read", slow)
    slower = load_rows(source, store)
    assert isinstance(quick[0], RowSet)
    assert (slower.folder / "view.parquet").stat().st_ino == quick[1]
    assert slower.view().equals(quick[0].view())


def test_a_kept_frame_is_written_once_and_mended(tmp_path: Path) -> None:
    frame, path = pl.DataFrame({"digest": ["a"], "id": ["x"]}), tmp_path / "r" / "1.parquet"
    assert keep(frame, path) == path
    stamp = path.stat().st_mtime_ns
    keep(frame, path)
    assert path.stat().st_mtime_ns == stamp
    path.write_bytes(path.read_bytes()[:20])
    keep(frame, path)
    assert pl.read_parquet(path).equals(frame)


def test_a_refusing_system_is_no_reason_to_delete_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    path = keep(pl.DataFrame({"digest": ["a"]}), store.scores("k") / "1.parquet")

    def refuse(*_: object, **__: object) -> pl.DataFrame:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(pl, "read_parquet", refuse)
    with pytest.raises(StoreError, match="cannot be read: Too many open files"):
        store.known_scores("k", {"s.x": pl.Float64()})
    assert path.exists()


def test_a_dataset_stays_whole_when_its_successor_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "dataset"
    write_dataset(pl.DataFrame({"a": [1, 2, 3]}), folder, 2)
    from karat import export

    def full(frame: pl.DataFrame, path: Path) -> None:
        if "00001" in path.name:
            raise OSError(28, "No space left on device")
        write_parquet(frame, path)

    monkeypatch.setattr(export, "write_parquet", full)
    with pytest.raises(StoreError, match="No space left"):
        write_dataset(pl.DataFrame({"a": [4, 5, 6]}), folder, 2)
    assert pl.read_parquet(folder / "*.parquet")["a"].to_list() == [1, 2, 3]
    assert [path.name for path in tmp_path.iterdir()] == ["dataset"]


def test_a_file_that_polars_cannot_write_is_a_store_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no room"), replacing(tmp_path / "x.parquet"):
        raise pl.exceptions.ComputeError("no room")
    assert not list(tmp_path.iterdir())


def test_one_run_at_a_time_in_a_folder(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom karat.errors import StoreError\n"
        "from karat.store import alone\n"
        "try:\n    with alone(Path(sys.argv[1]), Path(sys.argv[2])): print('mine')\n"
        "except StoreError as error: print(error.problem)\n"
    )

    def other(out: str) -> str:
        command = [sys.executable, "-c", code, str(tmp_path / "store"), str(tmp_path / out)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    with alone(tmp_path / "store", tmp_path / "a"):
        assert other("a") == "another run is writing here"
        assert other("b") == "mine"
    assert other("a") == "mine"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    with replacing_folder(tmp_path / "run" / "dataset") as fresh:
        write_parquet(pl.DataFrame({"a": [1]}), fresh / "train-0.parquet")
    write_parquet(pl.DataFrame({"id": ["1"]}), tmp_path / "run" / "selection.parquet")
    (tmp_path / "run" / "report.html").write_text("<p>fine</p>")
    write_record(tmp_path / "run", {"key": "k", "outputs": outputs(tmp_path / "run")})
    return tmp_path / "run"


@pytest.mark.parametrize("name", ["selection.parquet", "report.html", "dataset/train-0.parquet", "run.json"])
@pytest.mark.parametrize("change", ["edited", "gone"])
def test_a_run_that_was_edited_by_hand_is_not_complete(run: Path, name: str, change: str) -> None:
    assert complete(run, "k") is not None
    assert complete(run, "other") is None
    if change == "gone":
        (run / name).unlink()
    else:
        (run / name).write_bytes((run / name).read_bytes()[:-3])
    assert complete(run, "k") is None


def test_a_stray_file_in_the_dataset_is_noticed(run: Path) -> None:
    (run / "dataset" / "more.jsonl").write_text("{}")
    assert complete(run, "k") is None


def test_code_of_a_helper_beside_the_scorer_counts(tmp_path: Path) -> None:
    (tmp_path / "my_scorer.py").write_text("import json\nimport numpy\nimport my_helper\nclass S: pass\n")
    helper = tmp_path / "my_helper.py"

    def digest(text: str) -> str:
        helper.write_text(text)
        code = "from karat.code_digest import code_digest; import my_scorer; print(code_digest(my_scorer.S))"
        environment = {**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, "-c", code]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

    before = digest("def f(x):\n    return x + 1\n")
    assert digest('def f(x):\n    """Said."""\n    return x + 1  # why\n') == before
    assert digest("def f(x):\n    return x + 2\n") != before


def test_code_digest_of_a_class_is_that_of_its_modules() -> None:
    assert code_digest(Length) != modules_digest("karat.scorers.zip_fit")
    assert modules_digest("karat.export") != modules_digest("karat.selecting")


def test_progress_lines_of_many_threads_stay_whole(capfd: pytest.CaptureFixture[str]) -> None:
    lines = Lines()

    def work(name: str) -> None:
        for _ in range(200):
            lines.start(name, 6, "steps")

    threads = [threading.Thread(target=work, args=(f"train {n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    shown = capfd.readouterr().err.splitlines()
    assert len(shown) == 800
    assert set(shown) == {f"train {n}: 6 steps" for n in range(4)}

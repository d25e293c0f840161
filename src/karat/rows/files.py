"""Which files a path means, and what is in them."""

from __future__ import annotations

import glob
from pathlib import Path

from karat.errors import DataError, closest
from karat.rows.csv_files import TEXT_COLUMNS, read_csv, with_numbers
from karat.rows.json_lines import read_json_lines
from karat.rows.loaded import Loaded, stack
from karat.rows.opened import opened
from karat.rows.specs import FileData, Format
from karat.rows.tables import read_arrow, read_parquet, read_saved

SUFFIXES: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".parquet": "parquet",
    ".csv": "csv",
    ".tsv": "tsv",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
}
_PACKED = (".gz", ".zst")


def find_files(spec: FileData) -> list[Path]:
    """Files and folders that the setting means, globs sorted; raises DataError for what is not there."""
    found: list[Path] = []
    for pattern in [spec.path] if isinstance(spec.path, str) else spec.path:
        try:
            found.extend(_matches(pattern))
        except PermissionError:
            raise DataError("may not be read (permission denied)", where=pattern, key=("path",)) from None
        except (OSError, ValueError, RuntimeError) as error:  # too long a name, a NUL, an unknown ~user
            raise DataError(f"is no usable path: {error}", where=pattern, key=("path",)) from None
    if not found:
        raise DataError("names no file", where=str(spec.path), key=("path",))
    return found


def _matches(pattern: str) -> list[Path]:
    if not pattern.strip():
        raise DataError("names no file", where=repr(pattern), key=("path",))
    path = Path(pattern).expanduser()
    if path.exists():
        return _unfold(path)
    if path.is_symlink():
        raise DataError(f"is a link to {path.readlink()}, which is not there", where=pattern)
    if glob.has_magic(pattern):
        matches = sorted(Path(match) for match in glob.glob(str(path), recursive=True))  # noqa: PTH207 - keeps absolute patterns absolute
        matches = [match for match in matches if not match.is_dir() or is_saved(match)]
        if not matches:
            raise DataError("no file matches", where=pattern, key=("path",))
        return matches
    raise DataError("no such file", where=pattern, hint=_near(path), key=("path",))


def _near(path: Path) -> str | None:
    if not path.parent.is_dir():
        return f"there is no folder {path.parent}"
    hint = closest(path.name, [p.name for p in path.parent.iterdir()])
    return hint if len(hint) < 200 else None


def _unfold(path: Path) -> list[Path]:
    if path.is_file() or is_saved(path):
        return [path]
    if not path.is_dir():
        raise DataError(
            "is neither a file nor a folder", where=str(path), hint="save the rows to a file first"
        )
    inside = sorted(p for p in path.iterdir() if p.is_file() and by_suffix(p) is not None)
    if not inside:
        deeper = next((p for p in sorted(path.rglob("*")) if p.is_file() and by_suffix(p)), None)
        hint = f"for the folders inside: {path / '**' / ('*' + deeper.suffix)}" if deeper else None
        raise DataError("is a folder with no data files and no saved dataset", where=str(path), hint=hint)
    return inside


def is_saved(path: Path) -> bool:
    """Whether a folder was written by `datasets.save_to_disk`."""
    return (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()


def by_suffix(path: Path) -> Format | None:
    """The format that a file's name promises."""
    name = path.with_suffix("") if path.suffix.lower() in _PACKED else path
    return SUFFIXES.get(name.suffix.lower())


def detect_format(path: Path) -> Format:
    """The format by name, else by the first bytes; raises DataError where neither tells."""
    if path.is_dir():
        return "saved"
    with opened(path) as file:
        head = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    named = by_suffix(path)
    if named in ("json", "jsonl"):
        return "json" if head.startswith(b"[") else "jsonl"
    if named is not None:
        return named
    for magic, found in (
        (b"PAR1", "parquet"),
        (b"ARROW1", "arrow"),
        (b"\xff\xff\xff\xff", "arrow"),
        (b"{", "jsonl"),
        (b"[", "json"),
    ):
        if head.startswith(magic):
            return found  # type: ignore[return-value]
    raise DataError(
        "cannot tell its format",
        where=str(path),
        hint=f"set `format:` to {', '.join(sorted(set(SUFFIXES.values())))}",
    )


def read_files(spec: FileData) -> Loaded:
    """All rows of all files; raises DataError naming file and row."""
    parts = []
    untyped = []
    for path in find_files(spec):
        if path.is_file() and path.stat().st_size == 0:
            raise DataError("is empty", where=str(path))
        kind = spec.format or detect_format(path)
        if kind != "saved" and spec.split is not None:
            raise DataError("has no splits", where=str(path), hint="leave `split` out")
        untyped.append(kind in ("csv", "tsv"))
        parts.append(_read(path, kind, spec))
    texts = {*TEXT_COLUMNS, *filter(None, (spec.columns.model_dump(exclude={"id", "group"})).values())}
    if not all(untyped):
        for part, plain in zip(parts, untyped, strict=True):
            part.frame = with_numbers(part.frame, texts) if plain else part.frame
    whole = stack(parts)
    if all(untyped):
        whole.frame = with_numbers(whole.frame, texts)
    return whole


def _read(path: Path, kind: Format, spec: FileData) -> Loaded:
    skip = spec.on_bad_row == "skip"
    if path.is_dir() != (kind == "saved"):
        raise DataError(f"cannot be read with `format: {kind}`: {_what(path)}", where=str(path))
    if kind in ("jsonl", "json"):
        return read_json_lines(path, skip=skip, array=kind == "json")
    if kind in ("csv", "tsv"):
        return read_csv(path, skip=skip, separator="\t" if kind == "tsv" else ",")
    if kind == "saved":
        return read_saved(path, spec.split)
    return read_parquet(path) if kind == "parquet" else read_arrow(path)


def _what(path: Path) -> str:
    return "it is a folder" if path.is_dir() else "it is a file, and a saved dataset is a folder"

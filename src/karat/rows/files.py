"""Which files a path means, and what is in them."""

from __future__ import annotations

import glob
from pathlib import Path

from karat.errors import DataError, closest
from karat.rows.json_lines import opened, read_json_lines
from karat.rows.loaded import Loaded, stack
from karat.rows.specs import FileData, Format
from karat.rows.tables import read_arrow, read_csv, read_parquet, read_saved

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
    """Files and folders that the setting means, globs in sorted order; raises DataError for what is not there."""
    found: list[Path] = []
    for pattern in [spec.path] if isinstance(spec.path, str) else spec.path:
        path = Path(pattern).expanduser()
        if path.exists():
            found.extend(_unfold(path))
        elif glob.has_magic(pattern):
            matches = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207 - keeps absolute patterns absolute
            if not matches:
                raise DataError("no file matches", where=pattern)
            found.extend(Path(match) for match in matches)
        else:
            near = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
            hint = closest(path.name, near) if path.parent.is_dir() else f"there is no folder {path.parent}"
            raise DataError("no such file", where=pattern, hint=hint if len(hint) < 200 else None)
    if not found:
        raise DataError("names no file", where=str(spec.path))
    return found


def _unfold(path: Path) -> list[Path]:
    if path.is_file() or is_saved(path):
        return [path]
    inside = sorted(p for p in path.iterdir() if p.is_file() and by_suffix(p) is not None)
    if not inside:
        raise DataError("is a folder with no data files and no saved dataset", where=str(path))
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
    for magic, found in ((b"PAR1", "parquet"), (b"ARROW1", "arrow"), (b"{", "jsonl"), (b"[", "json")):
        if head.startswith(magic):
            return found  # type: ignore[return-value]
    raise DataError(
        "cannot tell its format", where=str(path), hint=f"set `format:` to {', '.join(sorted(set(SUFFIXES.values())))}"
    )


def read_files(spec: FileData) -> Loaded:
    """All rows of all files; raises DataError naming file and row."""
    parts = []
    for path in find_files(spec):
        if path.is_file() and path.stat().st_size == 0:
            raise DataError("is empty", where=str(path))
        try:
            parts.append(_read(path, spec))
        except PermissionError:
            raise DataError("may not be read (permission denied)", where=str(path)) from None
    whole = stack(parts)
    if whole.frame.height == 0:
        hint = f"{sum(whole.skipped.values()):,} bad rows were skipped" if whole.skipped else None
        raise DataError("has no rows", where=whole.source, hint=hint)
    return whole


def _read(path: Path, spec: FileData) -> Loaded:
    kind = spec.format or detect_format(path)
    skip = spec.on_bad_row == "skip"
    if kind in ("jsonl", "json"):
        return read_json_lines(path, skip=skip, array=kind == "json")
    if kind in ("csv", "tsv"):
        return read_csv(path, skip=skip, separator="\t" if kind == "tsv" else ",")
    if kind == "saved":
        return read_saved(path, spec.split)
    return read_parquet(path) if kind == "parquet" else read_arrow(path)

"""What leaves this machine with a published run: no absolute paths, no tokens, no passwords."""

from __future__ import annotations

import re
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

REMOVED = "(removed)"
# A path starts the text or follows something that cannot belong to a path, a word or a URL.
_START = r"(?<![\w.:/\\~*-])(?:[A-Za-z]:[\\/]|\\\\|~[\w.-]*/|/|(?:\.\./)+)"
_PATH = re.compile(_START + r"""[^\s'",;:|<>()\[\]{}]+""")
_FILE_URL = re.compile(r"file:/+\S*")
_TOKEN = re.compile(r"\b(?:hf|api|sk|gh[pousr]|xox[abp]|AKIA)[_-]?[A-Za-z0-9_-]{16,}\b")
_LOGIN = re.compile(r"(?<=://)[^/\s@]+@")
_SECRET_KEY = re.compile(r"(?i)(?:^|[_-])(?:token|password|passwd|secret|api_?key|credentials?)$")


def public(value: Any) -> Any:
    """A copy of a JSON value fit to be published: absolute paths shortened to their last part.

    A key that names a secret loses its value (numbers stay: `tokens: 100` is a count).
    """
    if isinstance(value, dict):
        return {
            _text(str(key)): REMOVED
            if isinstance(item, str) and _SECRET_KEY.search(str(key))
            else public(item)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [public(item) for item in value]
    return _text(value) if isinstance(value, str) else value


def _text(text: str) -> str:
    text = _LOGIN.sub("", _TOKEN.sub(REMOVED, text))
    if PurePosixPath(text).is_absolute() and "\n" not in text and not re.search(r"\s[-/~]", text):
        return PurePosixPath(text).name
    return _PATH.sub(_last_part, _FILE_URL.sub(_last_part, text))


def _last_part(match: re.Match[str]) -> str:
    return PureWindowsPath(match.group().rstrip("\\/")).name or PurePosixPath(match.group()).name

"""karat: score, select and weight the data that models are trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING

if __name__ != "karat":
    raise ImportError(f"this folder is the package karat; import it by that name, not as {__name__!r}")

from karat.lazy import lazy_members

if TYPE_CHECKING:
    from karat.deriving import derive as derive
    from karat.errors import KaratError as KaratError
    from karat.rows import read as read
    from karat.scoring import score as score
    from karat.scoring import score_stream as score_stream
    from karat.selecting import select as select
    from karat.selecting import weigh as weigh

__version__ = "0.1.0"

__getattr__ = lazy_members(
    __name__,
    {
        "KaratError": "karat.errors:KaratError",
        "derive": "karat.deriving:derive",
        "read": "karat.rows:read",
        "score": "karat.scoring:score",
        "score_stream": "karat.scoring:score_stream",
        "select": "karat.selecting:select",
        "weigh": "karat.selecting:weigh",
    },
)

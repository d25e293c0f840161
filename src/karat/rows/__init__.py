"""Rows: from files, folders, frames and the Hub to one view with stable ids."""

from karat.rows.frames import from_frame
from karat.rows.reading import fingerprint, read
from karat.rows.specs import (
    Columns,
    DataSpec,
    FileData,
    HarvestData,
    HubData,
    LeaderboardData,
    RowOptions,
    data_keys,
)
from karat.rows.view import VIEW, Rows, content_digest

__all__ = [
    "VIEW",
    "Columns",
    "DataSpec",
    "FileData",
    "HarvestData",
    "HubData",
    "LeaderboardData",
    "RowOptions",
    "Rows",
    "content_digest",
    "data_keys",
    "fingerprint",
    "from_frame",
    "read",
]

"""The report of a run: one self-contained HTML page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from karat.lazy import lazy_members

if TYPE_CHECKING:
    from karat.report.page import write_report as write_report

__getattr__ = lazy_members(__name__, {"write_report": "karat.report.page:write_report"})

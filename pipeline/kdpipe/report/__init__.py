"""A benchmark's figures as files for people and programs: JSON, CSV, PNG, text and one HTML page."""

from __future__ import annotations

from kdpipe.report.files import write
from kdpipe.report.tables import table

__all__ = ["table", "write"]

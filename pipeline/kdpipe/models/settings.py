"""The setting that allows code which files name."""

from __future__ import annotations

from pydantic import Field

from kdpipe.settings import Settings


class CodeSettings(Settings):
    """Code"""

    trust_code: bool = Field(False, exclude=True)
    """Run the code that a params file, a fleet, a run or a .pt2 names (command line only; default: refuse it)."""

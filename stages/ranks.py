"""The ranks of a launcher such as torchrun, which kdpipe does not use."""

from __future__ import annotations

import os

from kdpipe.errors import ParamsError


def refuse_ranks(command: str) -> None:
    """Refuse to run as one of several ranks, each of which would do the whole work in the same directory.

    Raises:
        ParamsError: the environment has a ``WORLD_SIZE`` above 1.
    """
    ranks = os.environ.get("WORLD_SIZE", "")
    if ranks.isdecimal() and int(ranks[:9]) > 1:
        raise ParamsError(
            f"kdpipe {command} runs in one process, and WORLD_SIZE is {ranks[:9]}: start it without torchrun, or unset "
            "WORLD_SIZE."
        )

"""Image files that cannot be used, all named at once, and remarks on those that can."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kdpipe import durable
from kdpipe.dataset import decode
from kdpipe.dataset.caching import cache_directory, prepare
from kdpipe.dataset.identity import sample_id
from kdpipe.printable import printable

_NAMED = 5
"""Files that a message names; the others are in a file."""


def listed(reasons: Sequence[str], *, of: int, what: str) -> str:
    """Return one line on the files of ``reasons``, out of ``of``: the first of them, and a file with all."""
    if len(reasons) == 1:
        return reasons[0]
    named = "; ".join(reason.rpartition("; ")[0] or reason for reason in reasons[:_NAMED])
    line = f"{len(reasons):,} of {of:,} images of {what} cannot be used: {named}"
    if len(reasons) > _NAMED:
        path = _write(reasons, what)
        line += f"; and {len(reasons) - _NAMED:,} more" + (f", all listed in {path}" if path else "")
    return f"{line}; replace or remove them"


def _write(reasons: Sequence[str], what: str) -> Path | None:
    path = cache_directory() / "broken" / f"{sample_id(what).hex()}.txt"
    with contextlib.suppress(OSError):
        prepare(path)
        durable.write_text(path, "".join(f"{printable(reason)}\n" for reason in reasons))
        return path
    return None


def notes_on(remarks: npt.NDArray[np.uint8], split: str) -> tuple[str, ...]:
    """Return a line for each remark of ``kdpipe.dataset.decode.remark`` that a split's images have."""
    turned = int(np.count_nonzero(remarks & decode.TURNED))
    dark = int(np.count_nonzero(remarks & decode.DARK))
    notes = []
    if turned:
        notes.append(
            f"{turned:,} images of {split} carry an EXIF orientation, which is not applied: pixels are as stored."
        )
    if dark:
        notes.append(
            f"warning: {dark:,} images of {split} have 16 bits but no level above 4,095, and become nearly black. "
            "Scale their levels to 0..65535."
        )
    return tuple(notes)

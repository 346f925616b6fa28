"""Command `merge`: one store of several that differ in their samples alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kdpipe.errors import ParamsError
from kdpipe.stages.console import progress, show
from kdpipe.store.merging import merge


def merge_stores(stores: Sequence[Path], out: Path) -> None:
    """Merge ``stores`` to ``out``, and print what it holds.

    Raises:
        ParamsError: there are fewer than two different stores, or ``out`` is no store's name or one of them.
    """
    if len({path.resolve() for path in stores}) < max(2, len(stores)):
        raise ParamsError("kdpipe merge needs two or more different stores.")
    if out.suffix != ".zarr":
        raise ParamsError(f"--out must end in .zarr, got {out}")
    if out.resolve() in {path.resolve() for path in stores}:
        raise ParamsError(f"--out is {out}, one of the stores to merge: pass another path.")
    found = merge(stores, out, progress=progress)
    samples = ", ".join(f"{found.samples(split):,} '{split}' samples" for split in sorted(found.names, reverse=True))
    show(f"{out}: {samples} in {len(found.splits)} segments, digest {found.digest}.")

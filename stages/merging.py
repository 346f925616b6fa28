"""Commands `merge` and `compact`: one store of several, and a store without the rows that are not used any more."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kdpipe import dataset
from kdpipe.errors import ParamsError
from kdpipe.pairing.compaction import compact
from kdpipe.stages.console import progress, show
from kdpipe.store.manifest import Manifest, read
from kdpipe.store.merging import merge
from kdpipe.store.reader import open_store


def merge_stores(stores: Sequence[Path], out: Path) -> None:
    """Merge ``stores`` to ``out``, and print what it holds.

    Raises:
        ParamsError: there are fewer than two different stores, or ``out`` is no store's name or one of them.
    """
    if len({path.resolve() for path in stores}) < max(2, len(stores)):
        raise ParamsError("kdpipe merge needs two or more different stores.")
    _refuse_unfit(out, stores)
    _show(out, merge(stores, out, progress=progress))


def compact_store(path: Path, data: str, out: Path) -> None:
    """Copy the store at ``path`` to ``out`` with the samples of ``data``, and print what it holds.

    Raises:
        ParamsError: ``out`` is no store's name, or the store itself.
    """
    _refuse_unfit(out, [path])
    signals = open_store(path).signals
    stores = {split: open_store(path, split, beside=signals) for split in read(path).names}
    datasets = {split: dataset.load(data, split, progress=progress) for split in stores}
    found = compact(stores, datasets, out, progress=progress)
    _show(out, found)
    left = {
        split: sum(len(each.sample_ids) for each in store.segments) - found.samples(split)
        for split, store in stores.items()
    }
    show(", ".join(f"{rows:,} '{split}' rows left out" for split, rows in sorted(left.items(), reverse=True)) + ".")


def _refuse_unfit(out: Path, stores: Sequence[Path]) -> None:
    if out.suffix != ".zarr":
        raise ParamsError(f"--out must end in .zarr, got {out}")
    if out.resolve() in {path.resolve() for path in stores}:
        raise ParamsError(f"--out is {out}, which is read: pass another path.")


def _show(out: Path, found: Manifest) -> None:
    samples = ", ".join(f"{found.samples(split):,} '{split}' samples" for split in sorted(found.names, reverse=True))
    show(f"{out}: {samples} in {len(found.splits)} segments, digest {found.digest}.")

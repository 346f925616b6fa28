"""Command `stores`: the stores at a place, and how much of a dataset each covers."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from kdpipe import dataset
from kdpipe.dataset import Dataset
from kdpipe.errors import KdpipeError, MissingSplitError, StoreError
from kdpipe.printable import printable
from kdpipe.sharing.listing import Covered, Listed, by_coverage, stores_of
from kdpipe.sharing.page import COLUMNS, cells
from kdpipe.sharing.streaming import localize, open_store
from kdpipe.stages.console import progress, say, show, show_json, show_table
from kdpipe.store import manifest, tree

if TYPE_CHECKING:
    from kdpipe.store.reader import LogitStore

_SPLITS = ("train", "test")
_LEFT_OUT = ("Published",)
_MOST_BYTES = 1024**3
"""Bytes of ids and digests of one split that are fetched and kept in memory."""


def show_stores(place: str, *, data: str | None, as_json: bool) -> None:
    """Print the stores at ``place``; with ``data``, those that have most of its images come first.

    Raises:
        StoreError: there are none, or the catalog is damaged or was changed.
        RemoteError: the place cannot be read.
        DatasetError: the dataset cannot be read.
    """
    found = stores_of(place, say=say)
    if data is not None:
        datasets = _datasets(data)
        with progress("comparing", total=len(found), unit="stores") as done:
            found = by_coverage(found, lambda each: _covered(each, datasets, done))
    if as_json:
        show_json([each.to_json() for each in found])
        return
    _show(found, data=data)


def _datasets(data: str) -> dict[str, Dataset]:
    found = {}
    for split in _SPLITS:
        try:
            found[split] = dataset.load(data, split, progress=progress)
        except MissingSplitError:
            continue
    if not found:
        dataset.load(data, _SPLITS[0], progress=progress)
    return found


def _covered(listed: Listed, datasets: dict[str, Dataset], done: Callable[[int], None]) -> Covered | None:
    """Compare ids and contents with those of a store, of which nothing else is fetched."""
    from kdpipe.pairing.coverage import Coverage

    done(1)
    if "names" in listed.row.withheld:
        return None
    covered = dict.fromkeys(datasets, 0)
    try:
        for split, images in datasets.items():
            if split in listed.row.samples:
                covered[split] = Coverage.of(_opened(listed.store, split), images).usable
    except KdpipeError as error:
        say(f"warning: {listed.name}: {error}")
        return None
    return Covered(covered, {split: len(images) for split, images in datasets.items()})


def _opened(place: str, split: str) -> LogitStore:
    """Open a store for the ids, digests and labels of a split, which alone are fetched if they are not too large.

    Raises:
        StoreError: they are; or the store is damaged.
        RemoteError: they cannot be fetched.
    """
    files = manifest.read(localize(place).path).files
    size = sum(file.size for name, file in files.items() if name.split("/")[0].split(".")[0] == split and _beside(name))
    if size > _MOST_BYTES:
        raise StoreError(f"the ids of '{split}' take {size / 1e6:,.0f} MB, which are not fetched for a list.")
    return open_store(place, split, memory_limit=_MOST_BYTES)


def _beside(name: str) -> bool:
    return name.endswith("zarr.json") or name.split("/")[1] in tree.SIDE


def _show(found: list[Listed], *, data: str | None) -> None:
    table = Table(box=None, pad_edge=False, show_edge=False)
    titles = [(title, number) for title, number in COLUMNS if title not in _LEFT_OUT]
    table.add_column(titles[0][0], overflow="fold", no_wrap=False, min_width=12)
    if data is not None:
        table.add_column("Yours", justify="right")
    for title, number in titles[1:]:
        table.add_column(title, justify="right" if number else "left", overflow="fold")
    for each in found:
        first = [each.name] + ([_share(each.covered)] if data is not None else [])
        rest = [cell.text or "n/a" for cell in cells(each.row)][: len(titles) - 1]
        table.add_row(*(Text(printable(text)) for text in (*first, *rest)))
    show_table(table, width=200)
    if data is not None and found and found[0].covered is not None and found[0].covered.share > 0:
        show(f"Next: kdpipe pull {shlex.quote(found[0].place)} --data {shlex.quote(data)}")


def _share(covered: Covered | None) -> str:
    if covered is None:
        return "n/a"
    counts = ", ".join(f"{covered.covered[split]:,} of {covered.samples[split]:,} {split}" for split in covered.samples)
    return f"{covered.share:.1%} ({counts})"

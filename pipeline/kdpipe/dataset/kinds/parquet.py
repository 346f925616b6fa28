"""``parquet:GLOB``: tables of encoded images and labels in Parquet files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kdpipe.dataset.arrow import PARQUET, row_group_bytes
from kdpipe.dataset.options import dataset_name, options, split_files
from kdpipe.dataset.registry import Listing, Request, register
from kdpipe.dataset.tabular import OPTIONS, Tables, list_tables

_MANY_BYTES = 10**9
_LARGE_GROUP = 32 * 10**6
"""Bytes of encoded images in all files, and in a row group, from which reading at random is slow."""


@register("parquet:GLOB", source="https://parquet.apache.org")
def list_parquet(request: Request, written: str) -> Listing:
    """Parquet files with a column of encoded images and one of labels, one or more files for each split.

    Raises:
        MissingSplitError: There are no files of the split.
        DatasetError: A file is missing or damaged, or has other columns.
    """
    pattern, given = options("parquet", written, OPTIONS)
    memory = f"parquet {Path(pattern).absolute()} {given.get('image')}"
    tables = Tables(
        name=dataset_name(pattern),
        form=PARQUET,
        files=lambda split: split_files(pattern, split, kind="parquet"),
        given=given,
        memory=memory,
        notes=_notes,
    )
    return list_tables(request, tables)


def _notes(paths: Sequence[Path], column: str) -> tuple[str, ...]:
    """Return a warning where shuffled images would be read with large row groups around them."""
    sizes = [size for path in paths for size in row_group_bytes(path, column)]
    if sum(sizes) <= _MANY_BYTES or max(sizes) <= _LARGE_GROUP:
        return ()
    return (
        f"warning: each image of {paths[0].parent} is read with its row group, up to {max(sizes) / 10**6:,.0f} MB. "
        "If images are streamed, convert the files once with hf:FOLDER, or write row groups of about 100 images.",
    )

"""``parquet:GLOB``: tables of encoded images and labels in Parquet files."""

from __future__ import annotations

from pathlib import Path

from kdpipe.dataset.arrow import PARQUET
from kdpipe.dataset.options import dataset_name, options, split_files
from kdpipe.dataset.registry import Listing, Request, register
from kdpipe.dataset.tabular import OPTIONS, Tables, list_tables


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
        dataset_name(pattern), PARQUET, lambda split: split_files(pattern, split, kind="parquet"), given, memory
    )
    return list_tables(request, tables)

"""Files of Parquet and of Arrow streams: their columns, and the encoded images in one of them.

They are read with pyarrow, which comes with the extra ``hf``. Columns of extension types, which may run code of others
when they are read, are refused.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from kdpipe.dataset.containers import Open
from kdpipe.dataset.sources import LARGEST_FILE
from kdpipe.errors import DatasetError
from kdpipe.printable import first_line
from kdpipe.reading import open_regular, why_unread

Schema = Any
"""``pyarrow.Schema``."""
Table = Any
"""``pyarrow.Table``."""

_KEPT = 256 * 1024**2
"""Bytes of images of row groups of Parquet that a process keeps, beside the last one."""
LARGEST_GROUP = 4 * 1024**3
"""Bytes of images in a row group at most."""
LARGEST_COLUMNS = 2 * 1024**3
"""Bytes of a column of labels or names, in all files of a split, at most."""
_PLAIN_BATCH = 65_536
"""Rows of numbers that are decompressed at a time."""
_BATCH = 64
"""Rows of images or text that are decompressed at a time."""


class Columns(Protocol):
    """Reads some columns of a file whole."""

    def __call__(self, path: Path, names: Sequence[str], *, most: int | None = None) -> Table:
        """Return the columns; ``a.b`` is the field ``b`` of the column ``a``.

        Raises:
            DatasetError: they take more than ``most`` bytes, or the file is damaged.
        """


@dataclass(frozen=True)
class Format:
    """A format of tables, whose functions take a path."""

    schema: Callable[[Path], Schema]
    rows: Callable[[Path], int]
    """Returns the number of rows."""
    columns: Columns
    images: Callable[[str], Open]
    """Returns the function that opens a file for the images of a column."""


def library(name: str) -> Any:
    """Return a module of pyarrow.

    Raises:
        DatasetError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise DatasetError(f"Arrow and Parquet files need pyarrow ({error}); run: pip install 'kdpipe[hf]'") from error


def features_of(schema: Schema) -> Mapping[str, Any]:
    """Return the features that Hugging Face ``datasets`` wrote into a schema, by column; none where there are none."""
    try:
        found = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _parquet(path: Path) -> Any:
    parquet = library("pyarrow.parquet")
    with _refused(path):
        with open_regular(path, follow=True):
            pass
        return parquet.ParquetFile(path, memory_map=False)


def _parquet_schema(path: Path) -> Schema:
    with _parquet(path) as file, _refused(path):
        return file.schema_arrow


def _parquet_rows(path: Path) -> int:
    with _parquet(path) as file, _refused(path):
        return int(file.metadata.num_rows)


def _parquet_columns(path: Path, names: Sequence[str], *, most: int | None = None) -> Table:
    arrow, batches, left = library("pyarrow"), [], most
    with _parquet(path) as file, _refused(path):
        schema = file.schema_arrow
        lost = [name for name in names if name.partition(".")[0] not in schema.names]
        if lost:
            raise DatasetError(f"{path} has no column '{lost[0]}', expected the columns of the first file of its split")
        plain = all(name in schema.names and arrow.types.is_primitive(schema.field(name).type) for name in names)
        # A few bytes can stand for as many as they like, so text is read in small parts.
        for batch in file.iter_batches(batch_size=_PLAIN_BATCH if plain else _BATCH, columns=list(names)):
            batches.append(_decoded(batch))
            if left is not None:
                left -= batches[-1].nbytes
                if left < 0:
                    raise _large(path, names, most or 0)
        return arrow.Table.from_batches(batches) if batches else schema.empty_table().select(list(names))


def _decoded(batch: Any) -> Any:
    """Return a batch whose columns have values in place of indices into a dictionary."""
    arrow = library("pyarrow")
    columns = [each.dictionary_decode() if arrow.types.is_dictionary(each.type) else each for each in batch.columns]
    return arrow.RecordBatch.from_arrays(columns, names=batch.schema.names)


def _large(path: Path, names: Sequence[str], most: int) -> DatasetError:
    return DatasetError(
        f"{', '.join(map(repr, names))} of {path} takes more than the {most:,} bytes that are left of "
        f"{LARGEST_COLUMNS:,} for a column of labels or names in all files of a split; check that it is the right "
        "column, or split the dataset"
    )


def _stream(path: Path) -> Table:
    """Return all columns of a stream of Arrow, mapped into memory."""
    arrow = library("pyarrow")
    with _refused(path):
        with open_regular(path, follow=True):
            pass
        with arrow.memory_map(str(path)) as mapped, arrow.ipc.open_stream(mapped) as reader:
            return reader.read_all()


def _stream_columns(path: Path, names: Sequence[str], *, most: int | None = None) -> Table:
    table, arrow = _stream(path), library("pyarrow")
    found = {}
    for name in names:
        column, _, inner = name.partition(".")
        with _refused(path):
            values = table.column(name if name in table.column_names else column)
            values.validate(full=True)
            if inner and name not in table.column_names:
                values = arrow.chunked_array(
                    [chunk.field(inner) for chunk in values.chunks], values.type.field(inner).type
                )
            found[name] = values
    if most is not None and sum(each.nbytes for each in found.values()) > most:
        raise _large(path, names, most)
    return arrow.table(found)


class _Rows:
    """The images of a column of an Arrow stream; see ``Container``."""

    def __init__(self, column: str, path: Path) -> None:
        (self._values,) = _stream_columns(path, [column]).columns

    def content(self, place: int, size: int) -> bytes:  # noqa: ARG002 (the column knows the size)
        return _content(self._values[place])


def row_group_bytes(path: Path, column: str) -> list[int]:
    """Return the bytes of a column in each row group of a Parquet file, before compression."""
    found = []
    with _parquet(path) as file, _refused(path):
        for group in map(file.metadata.row_group, range(file.metadata.num_row_groups)):
            columns = [group.column(index) for index in range(group.num_columns)]
            found.append(sum(each.total_uncompressed_size for each in columns if each.path_in_schema == column))
    return found


class RowGroups:
    """The images of a column of a Parquet file, whose row groups are read whole; see ``Container``."""

    def __init__(self, column: str, path: Path, *, most: int = LARGEST_GROUP) -> None:
        """Open the file for the images of a column, of which a row group has at most ``most`` bytes.

        Raises:
            DatasetError: it is missing or damaged.
        """
        self._kept = _groups  # at the end of the process, before the file is deleted, the name may be gone
        self._file, self._column, self._path, self._most = _parquet(path), column, path, most
        metadata = self._file.metadata
        counts = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        self._starts = np.concatenate([[0], np.cumsum(counts)])
        self._failed = dict[int, DatasetError]()
        self._lock = threading.Lock()

    def content(self, place: int, size: int) -> bytes:  # noqa: ARG002 (the column knows the size)
        """Return an image.

        Raises:
            DatasetError: its row group is damaged or too large.
        """
        group = int(np.searchsorted(self._starts, place, side="right")) - 1
        with self._lock:
            key = (id(self), group)
            values = self._kept.get(key)
            if group in self._failed:
                raise self._failed[group]
            if values is None:
                try:
                    values = self._read(group)
                except DatasetError as error:
                    self._failed[group] = error
                    raise
                self._kept.put(key, values)
        return _content(values[place - int(self._starts[group])])

    def _read(self, group: int) -> Any:
        """Return the images of a row group; in batches, since a few bytes can stand for as many as they like."""
        arrow, chunks, total = library("pyarrow"), [], 0
        with _refused(self._path):
            for batch in self._file.iter_batches(batch_size=_BATCH, row_groups=[group], columns=[self._column]):
                column = batch.column(0)
                chunks.append(column.field(0) if arrow.types.is_struct(column.type) else column)
                total += chunks[-1].nbytes
                if total > self._most:
                    raise DatasetError(f"cannot be read: its row group has more than {self._most:,} bytes")
            return arrow.chunked_array(chunks)

    def __del__(self) -> None:
        """Forget what was kept of the file."""
        self._kept.forget(id(self))


class _Kept:
    """Row groups that were read last."""

    def __init__(self) -> None:
        self._values: OrderedDict[tuple[int, int], Any] = OrderedDict()
        self._lock = threading.RLock()  # a file may be deleted, and forgotten, while another is put

    def get(self, key: tuple[int, int]) -> Any:
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
            return self._values.get(key)

    def put(self, key: tuple[int, int], values: Any) -> None:
        with self._lock:
            self._values[key] = values
            while len(self._values) > 1 and sum(each.nbytes for each in self._values.values()) > _KEPT:
                self._values.popitem(last=False)

    def forget(self, file: int) -> None:
        with self._lock:
            for key in [key for key in self._values if key[0] == file]:
                del self._values[key]


_groups = _Kept()


def _content(value: Any) -> bytes:
    content = value.as_py()
    if content is None:
        raise DatasetError("has no encoded image, or only the name of its file; write the table with embedded images")
    if not isinstance(content, bytes) or len(content) > LARGEST_FILE:
        raise DatasetError(f"is larger than {LARGEST_FILE:,} bytes")
    return content


@contextlib.contextmanager
def _refused(path: Path) -> Iterator[None]:
    """Turn an error of pyarrow into one line on a file."""
    arrow = library("pyarrow")
    try:
        yield
    except (arrow.ArrowException, OSError, KeyError, ValueError, MemoryError) as error:
        if isinstance(error, OSError) and error.errno:
            raise DatasetError(f"{path} cannot be read: {why_unread(error)}") from error
        raise DatasetError(
            f"{path} is damaged, or lacks a column: {first_line(error)}; make it or download it again"
        ) from error


PARQUET = Format(_parquet_schema, _parquet_rows, _parquet_columns, lambda column: partial(RowGroups, column))
STREAM = Format(
    lambda path: _stream(path).schema,
    lambda path: int(_stream(path).num_rows),
    _stream_columns,
    lambda column: partial(_Rows, column),
)

"""Arrays in ``.npz`` files of others: named, typed and bounded before they are read, never unpickled.

Rows of an array that is stored without compression are read from the file one by one; a compressed one is read whole.
What is read whole of a split takes half of the machine's memory at most.
"""

from __future__ import annotations

import io
import lzma
import os
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy

from kdpipe.dataset.offsets import OffsetFile
from kdpipe.dataset.sources import suggest_path
from kdpipe.errors import DatasetError
from kdpipe.printable import first_line
from kdpipe.reading import open_regular, why_unread

Array = npt.NDArray[Any]

_MOST_ARRAYS = 10_000
_HEADER = 64 * 1024
"""Bytes of an array's header at most."""
_LOCAL = struct.Struct("<4s22xHH")
"""A member's local header: signature, lengths of its name and of its extra fields."""


@dataclass(frozen=True)
class Member:
    """An array in a file, not read yet."""

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool
    header: int
    """Bytes before its values."""
    offset: int | None
    """Place of its values in the file; ``None`` where they are compressed."""

    @property
    def row_bytes(self) -> int:
        """Bytes of one entry along the first axis."""
        return int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize

    @property
    def size(self) -> int:
        """Bytes of its values."""
        return self.row_bytes * self.shape[0] if self.shape else self.dtype.itemsize

    @property
    def by_row(self) -> bool:
        """Whether a row can be read without the others."""
        return self.offset is not None and not self.fortran

    @property
    def where(self) -> str:
        """File and name, for messages."""
        return f"'{self.name}' of {self.path}"

    def read(self) -> Array:
        """Return the whole array.

        Raises:
            DatasetError: it is too large, or its file is damaged.
        """
        refuse_large([self])
        size = self.size
        try:
            with (
                open_regular(self.path, follow=True) as file,
                zipfile.ZipFile(file) as archive,
                archive.open(f"{self.name}.npy") as member,
            ):
                member.read(self.header)
                content = member.read(size)
        except _FAULTS as error:
            raise _damaged(self.path, error) from error
        if len(content) != size:
            raise DatasetError(f"{self.path} is damaged: {self.where} ends early; make the file again")
        values = np.frombuffer(content, dtype=self.dtype)
        return values.reshape(self.shape, order="F" if self.fortran else "C")


@dataclass(eq=False)
class Rows:
    """The entries of an array along its first axis, read when they are asked for."""

    member: Member

    def __len__(self) -> int:
        """Return the number of rows."""
        return self.member.shape[0]

    @cached_property
    def _whole(self) -> Array | None:
        return None if self.member.by_row else self.member.read()

    @cached_property
    def _file(self) -> OffsetFile:
        try:
            return OffsetFile(self.member.path)
        except OSError as error:
            raise _damaged(self.member.path, error) from error

    def __getitem__(self, index: int) -> Array:
        """Return one row.

        Raises:
            DatasetError: the file is damaged.
        """
        if self._whole is not None:
            return np.asarray(self._whole[index])
        member = self.member
        assert member.offset is not None
        content = self._file.read(member.offset + index * member.row_bytes, member.row_bytes)
        if len(content) != member.row_bytes:
            raise DatasetError(f"{member.path} is damaged: {member.where} ends early; make the file again")
        return np.frombuffer(content, dtype=member.dtype).reshape(member.shape[1:])

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without what was opened."""
        return {"member": self.member}


_FAULTS = (
    *(OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError),
    *(lzma.LZMAError, tokenize.TokenError, struct.error, MemoryError),
)
"""Errors of zipfile and numpy on damaged, encrypted or strange files."""


def members(path: Path) -> Mapping[str, Member]:
    """Return the arrays of a file by name; object arrays, which are pickled code, are refused.

    Raises:
        DatasetError: the file is missing, damaged, or no ``.npz``.
    """
    if not path.is_file():
        raise DatasetError(f"there is no file '{path}'{suggest_path(path) or '; check the path'}")
    try:
        with open_regular(path, follow=True) as file, zipfile.ZipFile(file) as archive:
            infos = [info for info in archive.infolist() if info.filename.endswith(".npy")]
            if len(infos) > _MOST_ARRAYS:
                raise DatasetError(f"{path} has {len(infos):,} arrays, expected at most {_MOST_ARRAYS:,}")
            found = [_member(path, file, archive, info) for info in infos]
    except _FAULTS as error:
        raise _damaged(path, error) from error
    return {member.name: member for member in found}


def refuse_large(whole: Iterable[Member]) -> None:
    """Refuse arrays that are read whole and together do not fit into half of the machine's memory.

    Raises:
        DatasetError: they do not.
    """
    found = list(whole)
    size, most = sum(each.size for each in found), _largest_whole()
    if size <= most:
        return
    names = [f"'{each.name}'" for each in found]
    listed = ", ".join(names[:4]) + (", …" if len(names) > 4 else "")
    raise DatasetError(
        f"{listed} of {found[0].path} {'take' if len(found) > 1 else 'takes'} {size:,} bytes, expected at most "
        f"{most:,} (half of this machine's memory) of what is read whole; write the file with numpy.savez instead of "
        "savez_compressed, arrays in C order, so that images and tensors are read row by row"
    )


def _member(path: Path, file: BinaryIO, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Member:
    name = info.filename.removesuffix(".npy")
    with archive.open(info) as opened:
        head = io.BytesIO(opened.read(_HEADER))
    version = npy.read_magic(head)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, fortran, dtype = read(head)
    if dtype.hasobject:
        raise DatasetError(
            f"'{name}' of {path} is an array of Python objects, which can run code when it is read; "
            "save it with a numeric or string type"
        )
    size = int(np.prod(shape, dtype=object)) * dtype.itemsize
    if head.tell() + size != info.file_size or min(shape, default=0) < 0:
        raise DatasetError(
            f"'{name}' of {path} is damaged: its shape {shape} takes {size:,} bytes, found "
            f"{info.file_size - head.tell():,}; make the file again"
        )
    offset = None
    if info.compress_type == zipfile.ZIP_STORED:
        file.seek(info.header_offset)
        signature, named, extra = _LOCAL.unpack(file.read(_LOCAL.size))
        if signature != b"PK\3\4":
            raise zipfile.BadZipFile("a member has no header")
        offset = info.header_offset + _LOCAL.size + named + extra + head.tell()
    return Member(path, name, shape, dtype, fortran, head.tell(), offset)


def _largest_whole() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _damaged(path: Path, error: Exception) -> DatasetError:
    reason = why_unread(error) if isinstance(error, OSError) else first_line(error)
    return DatasetError(f"{path} cannot be read as an .npz file: {reason}; make the file again")

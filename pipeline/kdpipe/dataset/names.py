"""Names of many samples in a few arrays instead of a Python string each.

A tuple of a million keys takes 100 MB and is copied into every worker process. Here the text of all names is one
buffer, which processes can share, and a string is made of a part of it when it is asked for.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, overload

import numpy as np
import numpy.typing as npt

_ERRORS = "surrogatepass"
"""Any string can be encoded, also a file name that is not valid UTF-8."""


def nfc(name: str) -> str:
    """Return a name in Unicode form NFC, in which names are compared: file systems write one in different forms."""
    return unicodedata.normalize("NFC", name)


class Names(Sequence[str]):
    """A sequence of strings that compares equal to a tuple of them; a slice of it is a tuple."""

    __slots__ = ("_starts", "_stops", "_text")

    def __init__(
        self, text: npt.NDArray[np.uint8], starts: npt.NDArray[np.int64], stops: npt.NDArray[np.int64]
    ) -> None:
        """Name parts of ``text``, UTF-8 as uint8 ``(bytes,)``: from ``starts`` to ``stops``, each ``(n,)``."""
        self._text, self._starts, self._stops = text, starts, stops

    @classmethod
    def of(cls, names: Iterable[str]) -> Names:
        """Return the strings as names; names themselves stay as they are."""
        if isinstance(names, Names):
            return names
        return cls.of_bytes([name.encode("utf-8", _ERRORS) for name in names])

    @classmethod
    def of_bytes(cls, encoded: Sequence[bytes]) -> Names:
        """Return names from their UTF-8."""
        lengths = np.fromiter(map(len, encoded), dtype=np.int64, count=len(encoded))
        ends = np.cumsum(lengths)
        return cls(np.frombuffer(b"".join(encoded), dtype=np.uint8), ends - lengths, ends)

    @classmethod
    def below(cls, folders: Sequence[tuple[str, Sequence[str]]]) -> Names:
        """Return the paths of names below their folders, one folder after the other."""
        heads = [f"{folder}/" for folder, _ in folders]
        text = "".join([head.join(["", *names]) for head, (_, names) in zip(heads, folders, strict=True)])
        if not text.isascii():
            return cls.of([head + name for head, (_, names) in zip(heads, folders, strict=True) for name in names])
        counts = [len(names) for _, names in folders]
        lengths = np.fromiter(map(len, chain.from_iterable(names for _, names in folders)), np.int64, sum(counts))
        ends = np.cumsum(lengths + np.repeat(list(map(len, heads)), counts))
        return cls(np.frombuffer(text.encode(), dtype=np.uint8), np.concatenate([[0], ends])[:-1], ends)

    def encoded(self) -> Iterator[bytes]:
        """Yield the UTF-8 of each name."""
        for first in range(0, len(self), _BLOCK):
            starts, stops = self._starts[first : first + _BLOCK], self._stops[first : first + _BLOCK]
            begin = int(starts.min())
            text = self._text[begin : int(stops.max())].tobytes() if len(self._text) else b""
            yield from map(text.__getitem__, map(slice, (starts - begin).tolist(), (stops - begin).tolist()))

    def first_invalid(self) -> str | None:
        """Return the first name that is not valid Unicode, which a file's name need not be; ``None`` for none."""
        if not len(self._text) or self._text.max() < 128:
            return None
        for name in self.encoded():
            try:
                name.decode()
            except UnicodeDecodeError:
                return name.decode("utf-8", _ERRORS)
        return None

    def take(self, indices: npt.NDArray[np.int64]) -> Names:
        """Return the names at ``indices`` ``(k,)``, which share the text."""
        return Names(self._text, self._starts[indices], self._stops[indices])

    def __len__(self) -> int:
        """Return the number of names."""
        return len(self._starts)

    def __iter__(self) -> Iterator[str]:
        """Yield each name."""
        return (name.decode("utf-8", _ERRORS) for name in self.encoded())

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[str, ...]: ...
    def __getitem__(self, index: int | slice) -> str | tuple[str, ...]:
        """Return one name, or several as a tuple."""
        if isinstance(index, slice):
            return tuple(Names(self._text, self._starts[index], self._stops[index]))
        return self._text[self._starts[index] : self._stops[index]].tobytes().decode("utf-8", _ERRORS)

    def __add__(self, others: Iterable[str]) -> tuple[str, ...]:
        """Return these names and those of another sequence as a tuple."""
        return (*self, *others)

    def __eq__(self, other: object) -> bool:
        """Return whether another sequence, though not a string, has the same names in the same order."""
        if isinstance(other, str) or not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(own == its for own, its in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        """Return the number of names and the first of them."""
        return f"Names({len(self):,}: {', '.join(self[:3])}{', …' if len(self) > 3 else ''})"

    def __reduce__(self) -> Any:
        """Pickle the arrays; of a part of many names, without the text of the others."""
        used = int((self._stops - self._starts).sum())
        names = self if used > len(self._text) // 2 else Names.of_bytes(list(self.encoded()))
        return Names, (names._text, names._starts, names._stops)


_BLOCK = 65_536
"""Names whose places are made Python integers at a time."""

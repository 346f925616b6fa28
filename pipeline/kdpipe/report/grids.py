"""Tables of the page: cells, columns, rows."""

from __future__ import annotations

from dataclasses import dataclass

from kdpipe.report.figures import Column


@dataclass(frozen=True)
class Cell:
    """One cell of a table."""

    text: str
    sort: float | str | None = None
    """Value that the table is sorted by; None for none."""
    note: str = ""
    """A second line in small print."""
    numeric: bool = False
    mark: str = ""
    """Explanation of a mark behind the text; empty for none."""
    bar: float | None = None
    """Length of a bar beside the text, 0..1."""
    style: str = ""


@dataclass(frozen=True)
class Table:
    """A table of the page; the first cell of each row is its heading."""

    id: str
    caption: str
    headings: tuple[Column, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]
    """The style of each row, and its cells."""

    @property
    def groups(self) -> list[tuple[str, int]]:
        """Headings above several columns with the number of these; empty where no column has one."""
        found: list[tuple[str, int]] = []
        for column in self.headings:
            title, count = found.pop() if found and found[-1][0] == column.group else (column.group, 0)
            found.append((title, count + 1))
        return found if any(title for title, _ in found) else []


def headings(*titles: str) -> tuple[Column, ...]:
    """Return plain columns by their titles; a star marks those of numbers."""
    return tuple(
        Column(title, title.removeprefix("*"), lambda _row: None, numeric=title.startswith("*")) for title in titles
    )

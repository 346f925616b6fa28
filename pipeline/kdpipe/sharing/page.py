"""The catalog as one HTML page, ``index.html``: style and script are in it, and it loads nothing.

The page is complete without scripts. All text is escaped by the template.
"""

from __future__ import annotations

from dataclasses import dataclass

import kdpipe
from kdpipe.page import render
from kdpipe.printable import printable
from kdpipe.sharing.catalog import Catalog, Row, newest_first


@dataclass(frozen=True)
class Cell:
    """A cell of the table."""

    text: str
    value: str
    """The key that it is sorted by; empty where it is unknown."""


COLUMNS = (
    *(("Store", False), ("Teacher", False), ("Top-1", True), ("Classes", True), ("Images", True), ("Views", True)),
    *(("Recipe", False), ("Encoding", False), ("KL at T=1", True), ("MB", True), ("License", False), ("Signer", False)),
    *(("Published", False),),
)
"""Titles, and whether the column holds numbers."""


def page(found: Catalog) -> str:
    """Return the page of a catalog."""
    return render(
        "kdpipe.sharing",
        "catalog.html",
        title="Shared logit stores",
        version=kdpipe.__version__,
        styles=["catalog.css"],
        scripts=["sort.js", "catalog.js"],
        rows=[(row, cells(row)) for row in newest_first(found.versions)],
        columns=COLUMNS,
        stores=len({row.name for row in found.versions}),
    )


def cells(row: Row) -> list[Cell]:
    """Return the cells of a row after the first, which names the store."""
    samples, lost = sum(row.samples.values()), (row.kl or {}).get("1")
    by_split = " + ".join(f"{count:,} {split}" for split, count in sorted(row.samples.items(), reverse=True))
    return [
        _text(row.teacher.name),
        _number(row.teacher.top1, "{:.2%}"),
        _number(row.classes.count, "{:,}"),
        Cell(printable(by_split), str(samples)),
        _number(row.views, "{:,}"),
        _text(row.recipe),
        _text(_encoding(row)),
        _number(lost, "{:.1e}"),
        _number(row.size / 1e6, "{:,.1f}"),
        _text(row.license),
        _text("unsigned" if row.signer is None else row.signer),
        _text(row.created[:10]),
    ]


def _encoding(row: Row) -> str:
    """Return a row's encoding, and what was withheld of the store that it was derived from."""
    less = [each for each in row.withheld if each != "encoding"]
    derived = "" if row.derived_from is None else ", derived"
    return f"{row.encoding}{derived}" + (f", without {' and '.join(less)}" if less else "")


def _text(text: str) -> Cell:
    return Cell(printable(text), printable(text))


def _number(value: float | None, form: str) -> Cell:
    return Cell("", "") if value is None else Cell(form.format(value), repr(value))

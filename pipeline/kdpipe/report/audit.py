"""The result of an audit as files: a table of the samples in CSV, and a page of thumbnails to look through."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

import kdpipe
from kdpipe import directories
from kdpipe.dataset import Dataset
from kdpipe.page import render
from kdpipe.pairing.audit import Audit
from kdpipe.printable import cell, printable
from kdpipe.progress import Progress, silent

PAGE, TABLE = "audit.html", "audit.csv"
KIND = directories.Kind("audit", (PAGE, TABLE))

COLUMNS = (
    "rank",
    "sample",
    "label",
    "predicted",
    "score",
    "label_probability",
    "predicted_probability",
    "views_against",
)
_SIDE = 112
"""Longest side of a thumbnail in pixels; smaller images are shown enlarged."""
_QUALITY = 85
_SMALL = 64
"""Longest side up to which a thumbnail is lossless."""


@dataclass(frozen=True)
class Suspect:
    """One sample of the page."""

    rank: int
    sample: str
    label: str
    predicted: str
    probability: str
    """The teacher's probability of ``predicted`` in the plain view, in percent."""
    against: int
    image: str
    """A ``data:`` address; empty for tensors."""


def table(audit: Audit, dataset: Dataset, *, count: int) -> str:
    """Return the first ``count`` samples as CSV, with the columns ``COLUMNS``."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    for place in range(min(count, len(audit.indices))):
        index, predicted = int(audit.indices[place]), int(audit.predicted[place])
        writer.writerow(
            [
                place + 1,
                cell(dataset.keys[index]),
                cell(dataset.classes[dataset.labels[index]]),
                cell(dataset.classes[predicted]),
                f"{audit.scores[place]:.4f}",
                f"{audit.of_label[place]:.3g}",
                f"{audit.of_predicted[place]:.3g}",
                int(audit.against[place]),
            ]
        )
    return file.getvalue()


def page(audit: Audit, dataset: Dataset, *, store: str, count: int, progress: Progress = silent) -> str:
    """Return the page of the first ``count`` samples; it loads nothing, and all text in it is escaped.

    Raises:
        DatasetError: an image cannot be read.
    """
    shown = min(count, len(audit.indices))
    return render(
        "kdpipe.report",
        "audit.html",
        title=f"Audit of {printable(dataset.spec)}",
        version=kdpipe.__version__,
        styles=["audit.css"],
        images=True,
        suspects=list(_suspects(audit, dataset, shown, progress)),
        audit=audit,
        dataset=printable(dataset.spec),
        split=dataset.split,
        store=printable(store),
    )


def write(out: Path, *, page: str, table: str) -> None:
    """Write both into the directory ``out``, which is held; see ``kdpipe.directories``."""
    directories.publish(out, {PAGE: page.encode(), TABLE: table.encode()}, KIND)


def _suspects(audit: Audit, dataset: Dataset, count: int, progress: Progress) -> Iterator[Suspect]:
    with progress("drawing", total=count) as report:
        for place in range(count):
            index, predicted = int(audit.indices[place]), int(audit.predicted[place])
            yield Suspect(
                rank=place + 1,
                sample=printable(dataset.keys[index]),
                label=printable(dataset.classes[dataset.labels[index]]),
                predicted=printable(dataset.classes[predicted]),
                probability=f"{audit.of_predicted[place]:.1%}",
                against=int(audit.against[place]),
                image="" if dataset.form is not None else thumbnail(dataset.image(index).numpy()),
            )
            report(1)


def thumbnail(pixels: npt.NDArray[np.uint8]) -> str:
    """Return an image, uint8 ``(3, H, W)``, as a ``data:`` address; its longest side becomes 112 pixels at most."""
    image = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    image.thumbnail((_SIDE, _SIDE), Image.Resampling.BICUBIC)
    kind = "png" if max(image.size) <= _SMALL else "jpeg"
    file = io.BytesIO()
    image.save(file, kind, quality=_QUALITY)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"

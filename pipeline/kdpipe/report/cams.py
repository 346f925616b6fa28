"""The Grad-CAM maps of a benchmark as one PNG: a row per image, with the teacher and the students side by side."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from kdpipe.benchmark.cam import Explanations
from kdpipe.benchmark.results import BenchmarkResult
from kdpipe.printable import printable

MOST_STUDENTS = 6
"""Students that are drawn."""
MOST_IMAGES = 16
"""Images that are drawn."""
_SIDE, _GAP, _HEADING = 128, 6, 20
_LONGEST = 17
"""Characters of a heading."""
_INK = (40, 40, 40)


def cams_png(result: BenchmarkResult) -> bytes | None:
    """Return the picture; None without explanations."""
    found = result.cams
    if found is None:
        return None
    columns = {"image": None, "teacher": found.teacher, **dict(list(found.students.items())[:MOST_STUDENTS])}
    rows = min(len(found.images), MOST_IMAGES)
    size = (_GAP + len(columns) * (_SIDE + _GAP), _HEADING + rows * (_SIDE + _HEADING))
    canvas = Image.new("RGB", size, "white")
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=12)
    for place, (name, explained) in enumerate(columns.items()):
        left = _GAP + place * (_SIDE + _GAP)
        pen.text((left, 3), _short(name), fill=_INK, font=font)
        for row in range(rows):
            top = _HEADING + row * (_SIDE + _HEADING)
            label = found.labels[row] if explained is None else explained.predicted[row]
            picture = _enlarged(found.images[row].transpose(1, 2, 0))
            if explained is not None:
                picture = _warmed(picture, explained.maps[row])
            canvas.paste(Image.fromarray(picture), (left, top))
            pen.text((left, top + _SIDE + 2), _class_name(result, int(label)), fill=_INK, font=font)
    file = io.BytesIO()
    canvas.save(file, "png")
    return file.getvalue()


def cams_text(found: Explanations) -> str:
    """Return the caption of the picture."""
    hidden = len(found.students) - MOST_STUDENTS
    count = len(found.images)
    text = (
        f"Grad-CAM on {min(count, MOST_IMAGES)} of {count} test images: the image with its label, then the teacher "
        "and each student with the class that it predicts. Warm places raise the score of the class that the teacher "
        "predicts."
    )
    return text + (f" {hidden} more students are not drawn." if hidden > 0 else "")


def _class_name(result: BenchmarkResult, index: int) -> str:
    if index < 0 or result.test is None:
        return ""
    return _short(result.test.classes[index])


def _short(text: str) -> str:
    """Return text that the font can draw."""
    plain = printable(text).encode("ascii", "replace").decode()
    return plain if len(plain) <= _LONGEST else plain[: _LONGEST - 3] + "..."


def _enlarged(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(image).resize((_SIDE, _SIDE), Image.Resampling.NEAREST))


def _warmed(image: NDArray[np.uint8], heat: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return a gray image with warm colors where a map is large."""
    warmth = np.asarray(Image.fromarray(heat).resize((_SIDE, _SIDE), Image.Resampling.BILINEAR))[..., None]
    gray = image.mean(axis=2, keepdims=True)
    color = np.concatenate([np.full_like(warmth, 255), 220 * (1 - warmth), np.zeros_like(warmth)], axis=2)
    blended = gray * (1 - 0.75 * warmth) + color * 0.75 * warmth
    return np.asarray(blended.clip(0, 255).astype(np.uint8))

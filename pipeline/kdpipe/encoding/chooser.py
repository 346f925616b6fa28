"""The smallest encoding within a budget of KL, measured on a pilot of real logits."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numcodecs.blosc
import numpy as np
import numpy.typing as npt
import torch

from kdpipe.encoding.base import LZ4, Compression, Encoded, Encoding
from kdpipe.encoding.fidelity import kl
from kdpipe.encoding.kinds.klt import KLT, MOST_CLASSES, SQUARE
from kdpipe.encoding.registry import get_encoding
from kdpipe.errors import ParamsError

CANDIDATES = (
    *("fp32", "fp16", *(f"fp16r{bits}" for bits in range(9, 1, -1))),
    *(f"sqrtp{bits}@{temperature}" for bits in range(8, 3, -1) for temperature in (1, 2, 4, 8, 16)),
    *(f"tailp{bits}@{temperature}" for bits in range(8, 1, -1) for temperature in (1, 2, 4, 8, 16, 32)),
)
"""The encodings that are measured by default."""
WIDE = tuple(f"klt{step:g}" for step in (0.1, 0.2, 0.25, 0.28, 0.32, 0.36, 0.4, 0.45, 0.5, 0.6, 0.8, 1))
"""Those that are measured besides for 64 classes or more: with few classes, there is little to gain by a rotation."""
WIDEST = tuple(f"klt{step:g}" for step in (0.25, 0.4, 0.6, 1))
"""Those of them for more than 2,048 classes, where fitting each takes seconds."""

_WIDE = 64
_FREE_BYTES = 65_536
"""Descriptions below this size are not counted: there is as much in a manifest without one."""
_MARGIN = 1.2
"""A pilot differs from the dataset: its mean KL must be below the budget by this factor."""
_STEP = 1.25
"""Ratio of neighboring temperatures between those asked for, to find the interval of the largest mean KL.

Mean KL changes with the temperature on the scale of a factor of 2 or more, since a softmax at T and at 1.25 T differ
little; a test compares the largest with that at 300 temperatures.
"""
_NARROWINGS = 6
"""Each narrows the interval of the largest mean KL to 0.62 of its width: from 1.25^2 to 1.025."""
_CHUNK_BYTES = 2 * 1024**2
_HELD_OUT = 1_024
"""Most rows of the pilot that encodings are measured on."""
_FITTED_ROWS = 8
"""Rows of the pilot for each class, for a covariance: half as many cost 1 % more bytes with 1,000 classes."""
_SPANNING_ROWS = 4_096
"""Rows of the pilot for more than 2,048 classes, of which half must span up to 1,000 directions."""


@dataclass(frozen=True)
class Measured:
    """One row of the chooser's table."""

    name: str
    bytes_per_sample: float
    """Bytes of the compressed codes and row maxima, and the share of a large description."""
    kl: tuple[float, ...]
    """Mean KL at each of the wanted temperatures."""
    within: bool
    """Whether the encoding serves these temperatures and stays within the budget where it was measured."""
    largest: float | None = None
    """Largest mean KL from the lowest to the highest of the temperatures. Measured in the order of size, up to the
    choice; ``None`` for the others.
    """


@dataclass(frozen=True)
class Choice:
    """The chosen encoding, and the table that it was chosen from."""

    encoding: Encoding
    """The winner, calibrated on the whole pilot."""
    temperatures: tuple[float, ...]
    table: tuple[Measured, ...]
    """Every candidate, in the order given."""


def choose_encoding(
    pilot: torch.Tensor,
    *,
    max_kl: float,
    temperatures: Sequence[float],
    candidates: Sequence[str] | None = None,
    rows: int | None = None,
) -> Choice:
    """Measure every candidate on float32 logits ``(n, classes)`` and return the smallest within ``max_kl``.

    Candidates are calibrated on the pilot's even rows and measured on its odd rows, 1,024 at most. Draw rows at random,
    since folders are sorted by class. The mean KL must be at most ``max_kl / 1.2`` at every temperature, from the
    lowest to the highest of ``temperatures``. ``rows`` are those of the store, which share the bytes of a large
    description; without them, it is not counted.

    Raises:
        ParamsError: no candidate is within the budget (the message names the nearest), or an argument is out of range.
    """
    if len(pilot) < 2:
        raise ParamsError(f"a pilot of {len(pilot)} rows is too small to choose an encoding: give at least 2.")
    if not (max_kl > 0 and math.isfinite(max_kl)):
        raise ParamsError(f"max_kl must be a positive number, found {max_kl}.")
    if not temperatures or not all(value > 0 and math.isfinite(value) for value in temperatures):
        raise ParamsError(f"temperatures must be positive numbers, found {list(temperatures)}.")
    encodings = [get_encoding(name) for name in (usual(pilot.shape[1]) if candidates is None else candidates)]
    if not encodings:
        raise ParamsError("there are no encodings to choose from: give at least one candidate.")
    fitting, held_out = pilot[::2], pilot[1::2][:_HELD_OUT]
    limit = max_kl / _MARGIN
    table = [_measure(each.calibrate(fitting), held_out, temperatures, limit, rows=rows) for each in encodings]
    small = sorted((row.bytes_per_sample, max(row.kl), place) for place, row in enumerate(table) if row.within)
    for *_, place in small:
        table[place] = _over_the_span(table[place], encodings[place].calibrate(fitting), held_out, temperatures, limit)
        if table[place].within:
            return Choice(encodings[place].calibrate(pilot), tuple(temperatures), tuple(table))
    raise ParamsError(_none_within(table, encodings, max_kl, temperatures, fitting, held_out))


def usual(classes: int) -> tuple[str, ...]:
    """Return the names of the encodings that are measured by default for so many classes."""
    if not _WIDE <= classes <= MOST_CLASSES:
        return CANDIDATES
    return (*CANDIDATES, *(WIDE if classes <= SQUARE else WIDEST))


def pilot_rows(names: Sequence[str], *, classes: int, least: int) -> int:
    """Return the rows of a pilot for these encodings: more for many classes where a covariance is estimated."""
    if not any(isinstance(get_encoding(each), KLT) for each in names):
        return least
    return max(least, _FITTED_ROWS * classes if classes <= SQUARE else _SPANNING_ROWS)


def _measure(
    encoding: Encoding, logits: torch.Tensor, temperatures: Sequence[float], limit: float, *, rows: int | None
) -> Measured:
    encoded = encoding.encode(logits)
    decoded = encoding.decode(*encoded.tensors(logits.device), logits.shape[1])
    losses = tuple(float(kl(logits, decoded, temperature).mean()) for temperature in temperatures)
    return Measured(
        encoding.name,
        stored_bytes(encoded, encoding.compression) / len(logits) + _described_bytes(encoding) / (rows or math.inf),
        losses,
        _serves(encoding, temperatures) and max(losses) <= limit,
    )


def _over_the_span(
    row: Measured, encoding: Encoding, logits: torch.Tensor, temperatures: Sequence[float], limit: float
) -> Measured:
    decoded = encoding.decode(*encoding.encode(logits).tensors(logits.device), logits.shape[1])
    largest = largest_kl(logits, decoded, temperatures)
    return replace(row, within=row.within and largest <= limit, largest=largest)


def largest_kl(reference: torch.Tensor, decoded: torch.Tensor, temperatures: Sequence[float]) -> float:
    """Return the largest mean KL of logits ``(n, classes)`` from the lowest to the highest of the temperatures.

    It is measured at the temperatures and at geometric steps of at most 1.25 between them; a golden-section search then
    narrows down the largest.
    """

    def mean(place: float) -> float:
        return float(kl(reference, decoded, math.exp(place)).mean())

    low, high = math.log(min(temperatures)), math.log(max(temperatures))
    steps = math.ceil((high - low) / math.log(_STEP))
    places = sorted({low, high, *map(math.log, temperatures), *np.linspace(low, high, steps + 1).tolist()})
    losses = [mean(place) for place in places]
    top = int(np.argmax(losses))
    largest, left, right = losses[top], places[max(top - 1, 0)], places[min(top + 1, len(places) - 1)]
    golden = (math.sqrt(5) - 1) / 2
    inner = [right - golden * (right - left), left + golden * (right - left)]
    found = [mean(place) for place in inner] if right > left else [largest]
    for _ in range(_NARROWINGS if right > left else 0):
        if found[0] >= found[1]:
            right, inner, found = inner[1], [0.0, inner[0]], [0.0, found[0]]
            inner[0] = right - golden * (right - left)
            found[0] = mean(inner[0])
        else:
            left, inner, found = inner[0], [inner[1], 0.0], [found[1], 0.0]
            inner[1] = left + golden * (right - left)
            found[1] = mean(inner[1])
        largest = max(largest, *found)
    return max(largest, *found)


def stored_bytes(encoded: Encoded, compression: Compression) -> int:
    """Return the size of codes and row maxima compressed as a store does."""
    return compressed_bytes(encoded.codes, compression) + compressed_bytes(encoded.row_max[:, None])


def _described_bytes(encoding: Encoding) -> int:
    size = len(json.dumps(encoding.describe()))
    return size if size > _FREE_BYTES else 0


def compressed_bytes(codes: npt.NDArray[Any], compression: Compression = LZ4) -> int:
    """Return the size of codes ``(n, width)`` compressed as a store does, in chunks of about 2 MB."""
    numcodecs.blosc.use_threads = False
    shuffle = getattr(numcodecs.blosc, compression.shuffle.upper())
    blosc = numcodecs.blosc.Blosc(
        cname=compression.cname, clevel=compression.level, shuffle=shuffle, blocksize=compression.block
    )
    rows = max(1, _CHUNK_BYTES // (codes.shape[1] * codes.itemsize))
    blocks = (codes[start : start + rows] for start in range(0, len(codes), rows))
    return sum(
        len(blosc.encode(np.ascontiguousarray(block.T if compression.transposed else block))) for block in blocks
    )


def _serves(encoding: Encoding, temperatures: Sequence[float]) -> bool:
    return encoding.max_temperature is None or max(temperatures) <= encoding.max_temperature


def _none_within(
    table: Sequence[Measured],
    encodings: Sequence[Encoding],
    max_kl: float,
    temperatures: Sequence[float],
    fitting: torch.Tensor,
    held_out: torch.Tensor,
) -> str:
    wanted = " to ".join(f"{temperature:g}" for temperature in sorted({min(temperatures), max(temperatures)}))
    serving = [(row, each) for row, each in zip(table, encodings, strict=True) if _serves(each, temperatures)]
    if not serving:
        return f"no encoding among {', '.join(row.name for row in table)} serves temperatures {wanted}. Use fp16."
    best, encoding = min(serving, key=lambda pair: max(pair[0].kl))
    best = _over_the_span(best, encoding.calibrate(fitting), held_out, temperatures, math.inf)
    assert best.largest is not None
    return (
        f"no encoding keeps the KL below {max_kl:g} / {_MARGIN} at temperatures {wanted}: the best is {best.name} "
        f"with {best.largest:.3g}. Allow --max-kl {_MARGIN * best.largest * 1.01:.2g} or more."
    )

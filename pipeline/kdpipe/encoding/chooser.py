"""The smallest encoding within a budget of KL, measured on a pilot of real logits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numcodecs.blosc
import numpy as np
import numpy.typing as npt
import torch

from kdpipe.encoding.base import LZ4, Compression, Encoded, Encoding
from kdpipe.encoding.fidelity import kl
from kdpipe.encoding.registry import get_encoding
from kdpipe.errors import ParamsError

CANDIDATES = (
    *("fp32", "fp16", *(f"fp16r{bits}" for bits in range(9, 1, -1))),
    *(f"sqrtp{bits}@{temperature}" for bits in range(8, 3, -1) for temperature in (1, 2, 4, 8, 16)),
    *(f"tailp{bits}@{temperature}" for bits in range(8, 1, -1) for temperature in (1, 2, 4, 8, 16, 32)),
)
"""The encodings that are measured by default."""

_MARGIN = 1.2
"""A pilot differs from the dataset: its mean KL must be below the budget by this factor."""
_CHUNK_BYTES = 2 * 1024**2


@dataclass(frozen=True)
class Measured:
    """One row of the chooser's table."""

    name: str
    bytes_per_sample: float
    """Bytes of the compressed codes and row maxima."""
    kl: tuple[float, ...]
    """Mean KL at each of the wanted temperatures."""
    within: bool
    """Whether the encoding serves these temperatures and stays within the budget."""


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
) -> Choice:
    """Measure every candidate on float32 logits ``(n, classes)`` and return the smallest within ``max_kl``.

    Candidates are calibrated on the pilot's even rows and measured on its odd rows. Draw rows at random, since folders
    are sorted by class. The mean KL must be at most ``max_kl / 1.2`` at every temperature.

    Raises:
        ParamsError: no candidate is within the budget (the message names the nearest), or an argument is out of range.
    """
    if len(pilot) < 2:
        raise ParamsError(f"a pilot of {len(pilot)} rows is too small to choose an encoding: give at least 2.")
    if not (max_kl > 0 and math.isfinite(max_kl)):
        raise ParamsError(f"max_kl must be a positive number, found {max_kl}.")
    if not temperatures or not all(value > 0 and math.isfinite(value) for value in temperatures):
        raise ParamsError(f"temperatures must be positive numbers, found {list(temperatures)}.")
    encodings = [get_encoding(name) for name in (CANDIDATES if candidates is None else candidates)]
    if not encodings:
        raise ParamsError("there are no encodings to choose from: give at least one candidate.")
    fitting, held_out = pilot[::2], pilot[1::2]
    table = tuple(_measure(each.calibrate(fitting), held_out, temperatures, max_kl / _MARGIN) for each in encodings)
    within = [(row.bytes_per_sample, max(row.kl), place) for place, row in enumerate(table) if row.within]
    if not within:
        raise ParamsError(_none_within(table, encodings, max_kl, temperatures))
    return Choice(encodings[min(within)[2]].calibrate(pilot), tuple(temperatures), table)


def _measure(encoding: Encoding, logits: torch.Tensor, temperatures: Sequence[float], limit: float) -> Measured:
    encoded = encoding.encode(logits)
    decoded = encoding.decode(
        torch.from_numpy(encoded.codes).to(logits.device),
        torch.from_numpy(encoded.row_max).to(logits.device),
        logits.shape[1],
    )
    losses = tuple(float(kl(logits, decoded, temperature).mean()) for temperature in temperatures)
    return Measured(
        encoding.name,
        stored_bytes(encoded, encoding.compression) / len(logits),
        losses,
        _serves(encoding, temperatures) and max(losses) <= limit,
    )


def stored_bytes(encoded: Encoded, compression: Compression) -> int:
    """Return the size of codes and row maxima compressed as a store does."""
    return compressed_bytes(encoded.codes, compression) + compressed_bytes(encoded.row_max[:, None])


def compressed_bytes(codes: npt.NDArray[Any], compression: Compression = LZ4) -> int:
    """Return the size of codes ``(n, width)`` compressed as a store does, in chunks of about 2 MB."""
    numcodecs.blosc.use_threads = False
    shuffle = {"bitshuffle": numcodecs.blosc.BITSHUFFLE, "noshuffle": numcodecs.blosc.NOSHUFFLE}[compression.shuffle]
    blosc = numcodecs.blosc.Blosc(cname=compression.cname, clevel=compression.level, shuffle=shuffle)
    rows = max(1, _CHUNK_BYTES // (codes.shape[1] * codes.itemsize))
    blocks = (np.ascontiguousarray(codes[start : start + rows]) for start in range(0, len(codes), rows))
    return sum(len(blosc.encode(block)) for block in blocks)


def _serves(encoding: Encoding, temperatures: Sequence[float]) -> bool:
    return encoding.max_temperature is None or max(temperatures) <= encoding.max_temperature


def _none_within(
    table: Sequence[Measured], encodings: Sequence[Encoding], max_kl: float, temperatures: Sequence[float]
) -> str:
    wanted = ", ".join(f"{temperature:g}" for temperature in temperatures)
    serving = [row for row, each in zip(table, encodings, strict=True) if _serves(each, temperatures)]
    if not serving:
        return f"no encoding among {', '.join(row.name for row in table)} serves temperatures {wanted}. Use fp16."
    best = min(serving, key=lambda row: max(row.kl))
    return (
        f"no encoding keeps the KL below {max_kl:g} / {_MARGIN} at temperatures {wanted}: the best is {best.name} "
        f"with {max(best.kl):.3g}. Allow --max-kl {_MARGIN * max(best.kl) * 1.01:.2g} or more."
    )

"""Loss of encoding: the KL of decoded logits per row, and figures of a whole store that add up exactly."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from pydantic import JsonValue

from kdpipe.errors import CorruptStoreError

if TYPE_CHECKING:
    import torch

TEMPERATURES = (1.0, 2.0, 4.0)
"""Temperatures at which every store is measured."""

_BLOCK_ROWS = 4096
"""Rows that an accelerator compares at once."""
_BLOCK_VALUES = 32_767
"""Logits that a thread compares at once: they stay in its cache, and torch does not divide so few among threads."""
_MOST_THREADS = 16

_UNIT = 2.0**60
"""KL is summed in whole multiples of 1 / _UNIT: sums of integers do not depend on their order."""
_PER_DECADE = 50
_MAX_DIGITS = 64
"""2^63 rows of a KL of 1e25 in units of 2^-60 have so many."""
_EDGES = 10.0 ** (np.arange(-16 * _PER_DECADE, 4 * _PER_DECADE + 1) / _PER_DECADE)
"""Upper edges of the histogram's bins, from 1e-16 to 1e4; the last bin also counts larger values."""


def kl(reference: torch.Tensor, decoded: torch.Tensor, temperature: float) -> torch.Tensor:
    r"""Return :math:`KL(p_T \| q_T) = \sum p_T (\log p_T - \log q_T)` of each row, float64 ``(n,)``.

    ``reference`` and ``decoded`` are logits ``(n, classes)``; :math:`p_T = \mathrm{softmax}(z / T)`. Unlike the
    distillation loss, it is not multiplied by :math:`T^2`.
    """
    return _kl(reference.double(), decoded.double(), temperature)


def _kl(reference: torch.Tensor, decoded: torch.Tensor, temperature: float) -> torch.Tensor:
    p = (reference / temperature).log_softmax(dim=1)
    q = (decoded / temperature).log_softmax(dim=1)
    difference = p - q
    return p.exp_().mul_(difference).sum(dim=1).clamp_(min=0)


@dataclass(frozen=True)
class Fidelity:
    """Loss of encoding over some rows. Addition is exact: any grouping and order of rows gives equal figures."""

    temperatures: tuple[float, ...]
    rows: int
    agreeing: int
    """Rows whose top class is the same; the first one of equal logits."""
    sums: tuple[int, ...]
    """Sum of KL at each temperature, in units of 2^-60."""
    histograms: tuple[tuple[tuple[int, int], ...], ...]
    """At each temperature: ``(bin, rows)`` of the bins that are not empty, in rising order."""

    @classmethod
    def none(cls, temperatures: tuple[float, ...] = TEMPERATURES) -> Fidelity:
        """Return the figures of no rows, to start a sum."""
        return cls(temperatures, 0, 0, (0,) * len(temperatures), ((),) * len(temperatures))

    @classmethod
    def of(
        cls, reference: torch.Tensor, decoded: torch.Tensor, temperatures: tuple[float, ...] = TEMPERATURES
    ) -> Fidelity:
        """Compare the teacher's float32 logits ``(n, classes)`` with the decoded ones, in float64.

        Rows are compared in blocks, on a CPU by as many threads as torch has; the figures depend on neither.
        """
        blocks = _blocks(*reference.shape, on_cpu=reference.device.type == "cpu")
        compare = partial(_compared, reference, decoded, temperatures)
        threads = min(_threads(), len(blocks), _MOST_THREADS)
        if threads < 2 or reference.device.type != "cpu":
            compared = list(map(compare, blocks))
        else:
            with ThreadPoolExecutor(threads, thread_name_prefix="kdpipe-fidelity") as pool:
                compared = list(pool.map(compare, blocks))
        if not compared:
            return cls.none(temperatures)
        sums, histograms = [], []
        for values in np.concatenate([values for values, _ in compared], axis=1):
            sums.append(sum(map(int, np.rint(values * _UNIT).tolist())))
            bins = np.minimum(np.searchsorted(_EDGES, values), len(_EDGES) - 1)
            places, counts = np.unique(bins, return_counts=True)
            histograms.append(tuple(zip(places.tolist(), counts.tolist(), strict=True)))
        agreeing = sum(agreeing for _, agreeing in compared)
        return cls(temperatures, len(reference), agreeing, tuple(sums), tuple(histograms))

    def __add__(self, other: Fidelity) -> Fidelity:
        """Return the figures of both sets of rows; raises ``ValueError`` for different temperatures."""
        if self.temperatures != other.temperatures:
            raise ValueError(f"measured at temperatures {self.temperatures} and {other.temperatures}")
        return Fidelity(
            self.temperatures,
            self.rows + other.rows,
            self.agreeing + other.agreeing,
            tuple(mine + its for mine, its in zip(self.sums, other.sums, strict=True)),
            tuple(
                tuple(sorted((Counter(dict(mine)) + Counter(dict(its))).items()))
                for mine, its in zip(self.histograms, other.histograms, strict=True)
            ),
        )

    def mean(self, temperature: float) -> float:
        """Return the mean KL at one of the temperatures; raises ``ValueError`` if there are no rows."""
        if not self.rows:
            raise ValueError("there are no rows to sum up")
        return self.sums[self.temperatures.index(temperature)] / (self.rows * int(_UNIT))

    def summary(self) -> dict[str, JsonValue]:
        """Return the figures: mean and p99 of KL by temperature, and top-1 agreement.

        The p99 is the upper edge of its bin, at most 4.8 % above the exact one and never below 1e-16.

        Raises:
            ValueError: there are no rows.
        """
        if not self.rows:
            raise ValueError("there are no rows to sum up")
        figures: dict[str, JsonValue] = {"rows": self.rows, "top1_agreement": self.agreeing / self.rows}
        for temperature, histogram in zip(self.temperatures, self.histograms, strict=True):
            figures[f"kl_t{temperature:g}_mean"] = self.mean(temperature)
            figures[f"kl_t{temperature:g}_p99"] = _quantile(histogram, -(-99 * self.rows // 100))
        return figures

    def to_json(self) -> dict[str, JsonValue]:
        """Return plain JSON values: sums in decimal, since they exceed 64 bits, and bins as ``bin:rows``."""
        return {
            "temperatures": list(self.temperatures),
            "rows": self.rows,
            "agreeing": self.agreeing,
            "sums": [str(total) for total in self.sums],
            "histograms": [" ".join(f"{place}:{count}" for place, count in each) for each in self.histograms],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Fidelity:
        """Return the figures that ``to_json`` wrote.

        Raises:
            CorruptStoreError: ``to_json`` returns no such value.
        """
        try:
            found = cls(
                tuple(value["temperatures"]),
                value["rows"],
                value["agreeing"],
                tuple(_number(total) for total in value["sums"]),
                tuple(tuple(_bin(pair) for pair in each.split()) for each in value["histograms"]),
            )
            fits = found.to_json() == value and found._consistent()
        except (AttributeError, KeyError, TypeError, ValueError):
            fits = False
        if not fits:
            raise CorruptStoreError("the fidelity figures are damaged.")
        return found

    def _consistent(self) -> bool:
        numbers = [self.rows, self.agreeing, *(number for h in self.histograms for pair in h for number in pair)]
        return (
            all(type(value) is float and 0 < value < math.inf for value in self.temperatures)
            and all(type(number) is int and number >= 0 for number in numbers)
            and self.agreeing <= self.rows < 2**63
            and len(self.sums) == len(self.histograms) == len(self.temperatures)
            and all(total >= 0 for total in self.sums)
            and all(sum(count for _, count in h) == self.rows for h in self.histograms)
            and all(place < len(_EDGES) and count for h in self.histograms for place, count in h)
            and all(list(h) == sorted(dict(h).items()) for h in self.histograms)
        )


def _blocks(rows: int, classes: int, *, on_cpu: bool) -> list[slice]:
    """Return the rows of each block; no block of many is a single long row, whose sum torch would divide."""
    size = _BLOCK_ROWS
    if on_cpu:
        size = min(size, max(1 if classes <= _BLOCK_VALUES else 2, _BLOCK_VALUES // classes))
    starts = list(range(0, rows, size))
    if len(starts) > 1 and rows - starts[-1] < min(size, 2):
        del starts[-1]
    return [slice(start, stop) for start, stop in itertools.pairwise([*starts, rows])]


def _threads() -> int:
    import torch

    return torch.get_num_threads()


def _compared(
    reference: torch.Tensor, decoded: torch.Tensor, temperatures: tuple[float, ...], rows: slice
) -> tuple[npt.NDArray[np.float64], int]:
    """Return the KL of rows at each temperature, ``(temperatures, rows)``, and how many agree in the top class."""
    mine, its = reference[rows], decoded[rows]
    agreeing = int((mine.argmax(dim=1) == its.argmax(dim=1)).sum())
    mine, its = mine.double(), its.double()
    return np.stack([_kl(mine, its, temperature).cpu().numpy() for temperature in temperatures]), agreeing


def _bin(pair: str) -> tuple[int, int]:
    place, count = pair.split(":")
    return _number(place), _number(count)


def _number(digits: str) -> int:
    """Read a whole number of the size that figures have: any longer one would cost time and overflow a float."""
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _quantile(histogram: tuple[tuple[int, int], ...], rank: int) -> float:
    """Return the upper edge of the bin that holds the value of this rank, counted from one."""
    places, counts = np.array(histogram).T
    return float(_EDGES[places[np.searchsorted(counts.cumsum(), rank)]])

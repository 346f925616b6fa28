r"""``peaks:STEP,FLOOR``: the logits that stand out from their row, for stores of a few dozen bytes a row.

A logit that exceeds its row's mean by the floor or more gets a level of the step's width,

.. math:: q = \lfloor (z - \bar z - floor) / step \rfloor + 1,

and all others get level 0, whose value is the row's own: it keeps their mass at temperature 2. Where few classes stand
out, nearly all codes are 0 and take next to nothing. Unlike the levels of ``tailp``, those do not depend on the row's
maximum: where the teacher is sure of a class, the next ones are kept, too, and they count at higher temperatures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import JsonValue

from kdpipe.encoding.base import ENCODINGS, GRID, Compression, Encoded, centered, in_bfloat16, in_digits
from kdpipe.errors import CorruptStoreError, ParamsError

_LEVELS = 256
_TEMPERATURE = 2.0
"""Temperature at which level 0 keeps its mass."""
_STEPS = 8
"""Steps of the value of level 0 per unit of the temperature."""
_ZERO = 128
"""Code of a value of 0."""

_DECODE = (
    "levels = codes[:, :-1]; rest = float32(rest_step) * (float32(codes[:, -1:]) - 128); "
    "logits = where(levels == 0, rest, float32(table)[levels]); logits = logits - max(logits) + row_max"
)


Step = Annotated[float, in_digits(0.1, 10, digits=4)]
"""Width of a level, in units of a logit."""
Floor = Annotated[float, in_digits(0, 100, digits=4)]
"""Least logit above the row's mean that has a level."""


@dataclass(frozen=True)
class Peaks:
    """``codes = [level of each class, 128 + 4 * value of the row's level 0]`` in bytes, values relative to the mean.

    A decoded logit above level 0 lies in the same level as the logit, as long as that is below 255. A row without a
    class of level 0 ends with 0.
    """

    step: float
    floor: float
    table: tuple[float, ...] = ()
    """Values of the levels, each a multiple of 1 / 1024; that of level 0 is not used. Empty: the levels' middles."""

    @property
    def name(self) -> str:
        """Such as ``peaks1@4``."""
        return f"peaks{self.step:g}@{self.floor:g}"

    @property
    def dtype(self) -> str:
        """One byte."""
        return "uint8"

    @property
    def compression(self) -> Compression:
        """Zstd without a shuffle, with a thorough search: most of a row are zeros, and their runs are to be matched."""
        return Compression("zstd", "noshuffle", level=9)

    @property
    def max_temperature(self) -> float:
        """Twice that of the mass of level 0, as for ``tailp``."""
        return 2 * _TEMPERATURE

    @property
    def full(self) -> bool:
        """True: there is a code for every class."""
        return True

    @property
    def _bounds(self) -> tuple[int, int]:
        """Step and floor as multiples of the grid, so that levels are equal on every device."""
        return max(1, round(self.step * GRID)), round(self.floor * GRID)

    def width(self, classes: int) -> int:
        """Return the number of classes and one for the value of level 0."""
        if classes < 2:
            raise ParamsError(f"peaks needs 2 classes or more, found {classes}.")
        return classes + 1

    def calibrate(self, logits: torch.Tensor) -> Peaks:
        """Fit each level's value to a pilot: at temperature 2 it has the mean mass of the level's logits."""
        values = centered(logits.detach().cpu())
        levels = self._levels(values).flatten().numpy()
        mass = np.bincount(levels, (values / GRID / _TEMPERATURE).exp().flatten().numpy(), minlength=_LEVELS)
        count = np.bincount(levels, minlength=_LEVELS)
        fitted = _TEMPERATURE * np.log(mass / np.maximum(count, 1), out=np.zeros(_LEVELS), where=mass > 0)
        step, floor = self._bounds
        lower = floor + step * (np.arange(_LEVELS) - 1)
        inside = np.clip(np.rint(fitted * GRID), lower, lower + step - 1)
        table = np.where((count > 0) & (mass < np.inf), inside, np.array(self._middles()) * GRID) / GRID
        found = [0.0, *table[1:].tolist()]
        return replace(self, table=() if found == self._middles() else tuple(found))

    def _middles(self) -> list[float]:
        step, floor = self._bounds
        return [0.0, *((floor + step * level + step // 2) / GRID for level in range(_LEVELS - 1))]

    def _levels(self, values: torch.Tensor) -> torch.Tensor:
        """Return the levels of centered logits ``(n, classes)``, int64."""
        step, floor = self._bounds
        return values.sub(floor).div_(step).floor_().add_(1).clamp_(0, _LEVELS - 1).long()

    def encode(self, logits: torch.Tensor) -> Encoded:
        """Encode finite float32 ``(n, classes)``."""
        values = centered(logits)
        levels = self._levels(values)
        others = levels == 0
        highest = values.masked_fill(~others, -torch.inf).amax(dim=1, keepdim=True).nan_to_num_(neginf=0)
        below = (values - highest).div_(GRID * _TEMPERATURE).masked_fill_(~others, -torch.inf)
        count = others.sum(dim=1)
        rest = (below.exp_().sum(dim=1) / count.clamp(min=1)).log_() + highest[:, 0] / (GRID * _TEMPERATURE)
        codes = (rest * _STEPS).round_().add_(_ZERO).clamp_(1, 255).masked_fill_(count == 0, 0)
        joined = torch.cat([levels.to(torch.uint8), codes.to(torch.uint8)[:, None]], dim=1)
        return Encoded(joined.cpu().numpy(), in_bfloat16(logits.amax(dim=1)))

    def decode(self, codes: torch.Tensor, row_max: torch.Tensor, classes: int) -> torch.Tensor:
        """Decode to float32 ``(n, classes)``."""
        table = torch.tensor(self.table or self._middles(), device=codes.device)
        levels = codes[:, :classes]
        rest = codes[:, classes:].to(torch.float32).sub_(_ZERO).mul_(_TEMPERATURE / _STEPS)
        logits = torch.where(levels == 0, rest, table[levels.to(torch.int32)])
        return logits.sub_(logits.amax(dim=1, keepdim=True)).add_(row_max[:, None])

    def invalid(self, codes: torch.Tensor, classes: int) -> torch.Tensor:
        """Return which rows have a value of level 0 without a class in it, or the reverse."""
        return (codes[:, :classes].amin(dim=1) == 0) != (codes[:, classes] > 0)

    def describe(self) -> dict[str, JsonValue]:
        """Return step, floor, table, the step of level 0 and the formula."""
        step, floor = self._bounds
        return {
            "name": self.name,
            "dtype": self.dtype,
            "width": step / GRID,
            "floor": floor / GRID,
            "table": list(self.table or self._middles()),
            "rest_step": _TEMPERATURE / _STEPS,
            "decode": _DECODE,
        }

    def restored(self, description: Mapping[str, Any]) -> Peaks:
        """Return the encoding with the table of a description.

        Raises:
            CorruptStoreError: it is no list of 256 values, each in its level.
        """
        table = description.get("table")
        middles = self._middles()
        if table == middles:
            return self
        half = self._bounds[0] / GRID
        if (
            not isinstance(table, list)
            or len(table) != _LEVELS
            or not all(
                type(value) is float and abs(value - its) < half for value, its in zip(table, middles, strict=True)
            )
        ):
            raise CorruptStoreError(f"the table of encoding '{self.name}' does not fit its levels.")
        return replace(self, table=tuple(table))


@ENCODINGS.register("peaks")
def peaks(step: Step, floor: Floor) -> Peaks:
    """Levels of a step above a floor over the row's mean, and one value for the rest; serves temperatures up to 4."""
    return Peaks(step, floor)

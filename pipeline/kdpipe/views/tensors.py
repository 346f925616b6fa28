"""Views of tensors: spans masked out, and noise, as functions of (recipe, seed, id, view) like those of images.

An operation is called with ``Items`` and the draws, and returns the changed first array: ids or features ``(n, tokens,
...)``. The others, such as the mask of padding, stay as they are. All choices are integers and every sum is rounded
once, so that views are the same on any device.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from statistics import NormalDist
from typing import Annotated

import numpy as np
import numpy.typing as npt
import torch

from kdpipe.dataset.forms import MASK, Form
from kdpipe.errors import RecipeError
from kdpipe.registry import Range, between
from kdpipe.views.philox import Draws
from kdpipe.views.recipe import Recipe, claim, operation

Bools = npt.NDArray[np.bool_]
Several = Annotated[int, between(1, 16)]
Places = Annotated[int, between(1, 1_000_000)]
Deviation = Annotated[float, between(0.0001, 10_000)]
Value = Annotated[float, Range("-1000000 to 1000000", lambda value: abs(value) <= 1_000_000)]

_LEVELS = 2**16


class Stream(IntEnum):
    """Streams of spans, bands and noise."""

    SPAN = 256
    """Of the first span's length; its start has the next number, and each further span the next two."""
    BAND = 320
    NOISE = 384


claim(Stream, *range(Stream.SPAN + 1, Stream.SPAN + 32), *range(Stream.BAND + 1, Stream.BAND + 32))


@dataclass(frozen=True)
class Items:
    """The tensors of a batch of items, by name."""

    form: Form
    tensors: dict[str, torch.Tensor]

    @property
    def first(self) -> torch.Tensor:
        """The array that views change, ``(n, *shape)``."""
        return self.tensors[self.form.first.name]

    def present(self) -> Bools:
        """Return which places along the first axis hold no padding, ``(n, length)``."""
        shape, mask = self.first.shape[:2], self.tensors.get(MASK)
        if mask is None or mask.shape != shape:
            return np.ones(tuple(shape), dtype=bool)
        found: Bools = (mask != 0).cpu().numpy()
        return found


@operation("spans", "tensor", source="Park et al. 2019 (SpecAugment)")
def spans(items: Items, draws: Draws, count: Several, longest: Places, value: Value = 0) -> torch.Tensor:
    """Replace COUNT spans of up to LONGEST tokens or frames by a value: 0, or the id of the mask token.

    Park et al., "SpecAugment: A Simple Data Augmentation Method for Automatic Speech Recognition" (2019), section 2:
    the length of each span is uniform in 0..LONGEST, its start in what it fits in. Spans may overlap. Where the items
    have an ``attention_mask``, spans lie in what it marks, and padding is left alone.
    """
    chosen = _marked(items.present(), draws, Stream.SPAN, count=count, longest=longest)
    return _filled(items.first, torch.from_numpy(chosen), axis=1, value=value)


@operation("bands", "tensor", source="Park et al. 2019 (SpecAugment)")
def bands(items: Items, draws: Draws, count: Several, longest: Places, value: Value = 0) -> torch.Tensor:
    """Replace COUNT bands of up to LONGEST channels (the second axis) by a value, as ``spans`` does with frames."""
    everywhere = np.ones((items.first.shape[0], items.first.shape[2]), dtype=bool)
    chosen = _marked(everywhere, draws, Stream.BAND, count=count, longest=longest)
    return _filled(items.first, torch.from_numpy(chosen), axis=2, value=value)


@operation("noise", "tensor")
def noise(items: Items, draws: Draws, std: Deviation) -> torch.Tensor:
    """Add Gaussian noise of a standard deviation, in the units of the items.

    The noise has 65,536 levels: the quantiles of the normal distribution at the middles of as many equal shares.
    """
    tensor = items.first
    numbers = tensor[0].numel()
    words = draws.blocks(Stream.NOISE, -(-numbers // 8))
    drawn = np.ascontiguousarray(words.astype("<u4")).view("<u2")[:, :numbers]
    change = torch.from_numpy(normal_levels()[drawn] * np.float32(std)).view(tensor.shape)
    return tensor + change.to(tensor.device)


@lru_cache(maxsize=1)
def normal_levels() -> npt.NDArray[np.float32]:
    """Return the quantiles of the normal distribution at ``(k + 1/2) / 65536``, ascending and symmetric, read-only.

    Rounded to multiples of 2^-18, far coarser than the differences between C libraries.
    """
    upper = [NormalDist().inv_cdf(0.5 + (k + 0.5) / _LEVELS) for k in range(_LEVELS // 2)]
    half = np.rint(np.array(upper) * 2**18) / 2**18
    table = np.concatenate([-half[::-1], half]).astype(np.float32)
    table.flags.writeable = False
    return table


def _marked(present: Bools, draws: Draws, stream: int, *, count: int, longest: int) -> Bools:
    """Return which of the present places lie in a span, ``(n, length)``."""
    lengths = present.sum(axis=1)
    rank = np.cumsum(present, axis=1) - 1
    chosen = np.zeros_like(present)
    for number in range(count):
        width = np.minimum(draws.integers(stream + 2 * number, longest + 1), lengths)
        start = draws.integers(stream + 2 * number + 1, lengths - width + 1)
        chosen |= (start[:, None] <= rank) & (rank < (start + width)[:, None])
    return chosen & present


def _filled(tensor: torch.Tensor, chosen: torch.Tensor, *, axis: int, value: float) -> torch.Tensor:
    shape = [size if place in (0, axis) else 1 for place, size in enumerate(tensor.shape)]
    marked = chosen.to(tensor.device).view(shape)
    return torch.where(marked, torch.tensor(value, dtype=tensor.dtype, device=tensor.device), tensor)


def changed(packed: torch.Tensor, form: Form, recipe: Recipe, draws: Draws) -> torch.Tensor:
    """Return a view of packed items, uint8 ``(n, 3, 1, width)``."""
    tensors = form.split(packed)
    for step in recipe.of("tensor"):
        tensors[form.first.name] = step(Items(form, tensors), draws)
    return form.join(tensors)


def refuse_unfit(recipe: Recipe, form: Form | None) -> None:
    """Refuse a recipe of images for tensors, and of tensors for images.

    Raises:
        RecipeError: it is one, or changes tensors in a way that does not fit their type or shape.
    """
    steps, of_tensors = recipe.steps, recipe.of("tensor")
    if form is None:
        if of_tensors:
            raise RecipeError(f"'{of_tensors[0].name}' changes tensors, the dataset has images: leave it out.")
        return
    others = [step.name for step in steps if step.operation.phase != "tensor"]
    if others:
        raise RecipeError(
            f"'{others[0]}' changes images, the dataset has tensors ({form}): expected --recipe none, or one of spans, "
            "bands and noise."
        )
    first = form.first
    for step in of_tensors:
        dimensions = {"spans": 1, "bands": 2}.get(step.name, 0)
        if len(first.shape) < dimensions:
            raise RecipeError(f"'{step.name}' needs tensors of {dimensions} or more dimensions, found {first}.")
        if step.name == "noise" and first.dtype != "float32":
            raise RecipeError(f"'noise' is for floats, found {first}.")
        value = step.values[-1] if dimensions else 0
        if first.dtype == "int64" and value != int(value):
            raise RecipeError(f"'{step.name}' replaces {first} by {value:g}, expected a whole number.")

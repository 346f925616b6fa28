"""The signals that a store keeps beside its logits: what its manifest may say of them, and their arrays' names."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import AfterValidator, Field

from kdpipe.models.signals import Signal

PENULTIMATE = "features:penultimate"
"""The signal that has an entry of its own in the manifest, ``features``, and an array of that name."""

Shape = tuple[int, ...]
"""Of a signal for one sample: ``(channels,)`` of features, ``(H, W)`` of an attention map."""


def array_name(name: str) -> str:
    """Return the array that holds the signal ``name``, such as ``attention-layer3-0`` for ``attention:layer3.0``."""
    # Names of layers have no hyphens, so no two signals share an array.
    return "features" if name == PENULTIMATE else name.replace(":", "-").replace(".", "-")


def _named(name: str) -> str:
    if name == PENULTIMATE or str(Signal.parse(name)) != name:
        raise ValueError("the penultimate features have an entry of their own")
    return name


def _small(shape: Shape) -> Shape:
    if math.prod(shape) >= 2**20:
        raise ValueError("a signal has fewer than 2^20 values per sample")
    return shape


def _of_their_kind(signals: dict[str, Shape]) -> dict[str, Shape]:
    for name, shape in signals.items():
        if len(shape) != (1 if name.startswith("features:") else 2):
            raise ValueError(f"features have one dimension and attention maps two, {name} has {len(shape)}")
    return signals


Signals = Annotated[
    dict[
        Annotated[str, Field(max_length=128), AfterValidator(_named)],
        Annotated[
            tuple[Annotated[int, Field(gt=0, lt=2**20)], ...],
            Field(strict=False, min_length=1, max_length=2),
            AfterValidator(_small),
        ],
    ],
    Field(max_length=64),
    AfterValidator(_of_their_kind),
]
"""Shapes by name, but for the penultimate features."""

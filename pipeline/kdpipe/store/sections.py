"""Sections of a manifest: teacher, recipe, fingerprint, splits, signals, choice of encoding, rendering, files."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, model_validator

Digest = str
"""BLAKE3, 32 hexadecimal digits (128 bits)."""


PENULTIMATE = "features:penultimate"
"""The signal that has its own entry ``features`` in the manifest, and an array of that name."""

_SIGNAL = re.compile(r"(features|attention):(?!penultimate\Z)\w+(\.\w+)*", re.ASCII)
"""Names of signals in format 1; a layer has the name of a module of the teacher."""

Shape = tuple[int, ...]
"""Shape of a signal for one sample: ``(channels,)`` of features, ``(H, W)`` of an attention map."""


def array_name(name: str) -> str:
    """Return the array that holds the signal ``name``, such as ``attention-layer3-0`` for ``attention:layer3.0``."""
    # Names of layers have no hyphens, so no two signals share an array.
    return "features" if name == PENULTIMATE else name.replace(":", "-").replace(".", "-")


def _named(name: str) -> str:
    if name == PENULTIMATE:
        raise ValueError(f"{PENULTIMATE} belongs in the entry 'features', not in 'signals'")
    if not _SIGNAL.fullmatch(name):
        raise ValueError(f"'{name}' is no signal, expected features:LAYER or attention:LAYER")
    return name


def _small(shape: Shape) -> Shape:
    if math.prod(shape) >= 2**20:
        raise ValueError("a signal must have fewer than 2^20 values per sample")
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
"""Shapes by name, without the penultimate features."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Teacher(_Strict):
    """The teacher of the logits."""

    name: str
    digest: Digest
    preset: dict[str, JsonValue]
    parameters: int


def _increasing(table: tuple[int, ...]) -> tuple[int, ...]:
    if list(table) != sorted(table):
        raise ValueError("thresholds must not decrease")
    return table


Table = Annotated[
    tuple[Annotated[int, Field(ge=0, le=2**32)], ...],
    Field(strict=False, min_length=256, max_length=256),
    AfterValidator(_increasing),
]


class Recipe(_Strict):
    """The recipe of the augmented views."""

    name: str
    version: str
    seed: int = Field(ge=0, lt=2**32)
    thresholds: dict[str, Table] = {}
    """The table from which each mixing operation draws lambda; see ``kdpipe.views.mixing``."""


class Fingerprint(_Strict):
    """All ingredients of the codes: equal fingerprints give equal stores."""

    teacher: Teacher
    dataset: dict[str, Digest]
    recipe: Recipe
    encoding: str
    precision: str
    batch_size: int = Field(gt=0)
    device: str

    def differences(self, asked: Fingerprint) -> list[str]:
        """Return a line for each part in which ``asked`` differs: ``part: the store has X, asked for Y``."""
        mine, other = _flatten(self.model_dump()), _flatten(asked.model_dump())
        return [
            f"{key}: the store has {_shorten(mine.get(key))}, asked for {_shorten(other.get(key))}"
            for key in sorted(mine.keys() | other.keys())
            if mine.get(key) != other.get(key)
        ]


class Split(_Strict):
    """Size of a split, and its cut into chunks and shards."""

    samples: int = Field(gt=0, lt=2**40)
    planes: int = Field(gt=0, lt=2**20)
    chunk_rows: int = Field(gt=0)
    shard_rows: int = Field(gt=0)
    probes: int = Field(ge=0, le=4096)

    @model_validator(mode="after")
    def _chunks_fill_shards(self) -> Self:
        if self.shard_rows % self.chunk_rows:
            raise ValueError("shard_rows must be a multiple of chunk_rows")
        return self

    @property
    def shards(self) -> int:
        """Number of shards in all planes."""
        return self.planes * -(-self.samples // self.shard_rows)


class Candidate(_Strict):
    """The figures of one encoding on the pilot."""

    name: str
    bytes_per_sample: float
    kl: tuple[float, ...] = Field(strict=False)
    """Mean KL at each of the budget's temperatures."""
    within: bool


class Choice(_Strict):
    """The budget of the choice of encoding, and the table of candidates."""

    max_kl: float
    temperatures: tuple[float, ...] = Field(strict=False)
    table: tuple[Candidate, ...] = Field(strict=False)


class Rendering(_Strict):
    """Origin of the teacher's pixels, to explain replay probes that differ."""

    decoder: str
    """Library that decoded the image files, with its version."""
    trial: dict[str, str]
    """Hash of the result of the resize and of each operation on synthetic images; see ``kdpipe.views.trial``."""
    sources: dict[str, Annotated[tuple[str, ...], Field(strict=False)]]
    """64-bit hashes of the probes' decoded source images, by split."""

    def differing(self, trial: Mapping[str, str]) -> list[str]:
        """Return the names whose result differs in ``trial``; if the resize does, that name alone."""
        names = [name for name in trial if self.trial.get(name) != trial[name]]
        return ["resize"] if "resize" in names else names


def rendering_differences(found: Rendering | None, wanted: Rendering | None) -> list[str]:
    """Return a line for each cause of other pixels in ``wanted``; the decoder's name alone does not count."""
    if found is None or wanted is None:
        return []
    differing = [
        f"{split} images: decoded to other pixels by {found.decoder} than by {wanted.decoder} here"
        for split, hashes in wanted.sources.items()
        if found.sources.get(split) != hashes
    ]
    return differing + [f"{name}: gives other pixels here" for name in found.differing(wanted.trial)]


class File(_Strict):
    """One file of the store, by its path relative to the store."""

    size: int = Field(ge=0)
    digest: Digest


def _flatten(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, entry in value.items():
        if isinstance(entry, dict):
            flat.update(_flatten(entry, f"{prefix}{key}."))
        else:
            flat[prefix + key] = entry
    return flat


def _shorten(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    is_digest = len(text) == 32 and all(character in "0123456789abcdef" for character in text)
    return text[:8] + "…" if is_digest else text

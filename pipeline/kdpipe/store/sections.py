"""Sections of a manifest: teacher, recipe, fingerprint, splits, signals, choice of encoding, rendering, files."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from kdpipe.errors import StoreError
from kdpipe.models.inputs import InputsRecord
from kdpipe.store.tree import FILE

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
"""BLAKE3, 32 hexadecimal digits (128 bits)."""
Size = Annotated[int, Field(ge=0, lt=2**63)]
"""Bytes of a file."""
FileName = Annotated[str, Field(max_length=512, pattern=rf"^(?:{FILE})$")]
"""Path of a file relative to the store."""
_Name = Annotated[str, Field(max_length=128)]
_Finite = Annotated[float, Field(allow_inf_nan=False)]
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Loss = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
"""64 bits in hexadecimal digits."""


MAX_GROUPS = 20_000
"""Segments of all splits: there are names for this many."""

PENULTIMATE = "features:penultimate"
"""The signal that has its own entry ``features`` in the manifest, and an array of that name."""

_SIGNAL = re.compile(r"(features|attention|hidden|heads):(?!penultimate\Z)\w+(\.\w+)*", re.ASCII)
"""Names of signals in format 1; a layer has the name of a module of the teacher."""

RowOrder = Literal["shuffled"]
"""A pseudo-random order of a segment's rows, so that any part of a plane is a fair sample of it."""
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
        raise ValueError(f"'{name}' is no signal, expected features:, attention:, hidden: or heads:LAYER")
    return name


def _small(shape: Shape) -> Shape:
    if math.prod(shape) >= 2**20:
        raise ValueError("a signal must have fewer than 2^20 values per sample")
    return shape


def _of_their_kind(signals: dict[str, Shape]) -> dict[str, Shape]:
    for name, shape in signals.items():
        if len(shape) != {"features": 1, "heads": 3}.get(name.partition(":")[0], 2):
            raise ValueError(f"features have one dimension, maps two and heads three, {name} has {len(shape)}")
    return signals


Signals = Annotated[
    dict[
        Annotated[str, Field(max_length=128), AfterValidator(_named)],
        Annotated[
            tuple[Annotated[int, Field(gt=0, lt=2**20)], ...],
            Field(strict=False, min_length=1, max_length=3),
            AfterValidator(_small),
        ],
    ],
    Field(max_length=64),
    AfterValidator(_of_their_kind),
]
"""Shapes by name, without the penultimate features."""


@contextmanager
def recorded() -> Iterator[None]:
    """Report values that no manifest can hold, before a store is made of them.

    Raises:
        StoreError: a section of the manifest cannot be made in the block.
    """
    try:
        yield
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise StoreError(f"{error.title} cannot be recorded in a store: {place}: {first['msg']}.") from None


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class _Interface(_Strict):
    """The entries of a teacher's interface; see ``kdpipe.models.interface``."""

    layout: Literal["nchw", "nhwc"] | None = None
    output: str | None = Field(None, max_length=1024)
    outputs: Literal["logits", "probabilities"] = "logits"
    floor: _Positive | None = None


class _Preset(_Interface):
    """The entries of a preset; see ``kdpipe.models.preset``."""

    size: int = Field(ge=1, le=4096)
    resize: int = Field(ge=1, le=16_384)
    interpolation: Literal["nearest", "bilinear", "bicubic"]
    mean: tuple[_Finite, _Finite, _Finite] = Field(strict=False)
    std: tuple[_Positive, _Positive, _Positive] = Field(strict=False)


class _Tensors(InputsRecord, _Interface):
    """The entries of the preset of a network of tensors."""


class _TensorEnsemble(_Tensors):
    """The preset of a teacher ensemble of tensors."""

    members: Annotated[tuple[_Tensors, ...], Field(strict=False, max_length=256)] = ()


class _Ensemble(_Preset):
    """The preset of a teacher ensemble: the first teacher's, and all of them."""

    members: Annotated[tuple[_Preset, ...], Field(strict=False, max_length=256)] = ()


def _usable(preset: dict[str, JsonValue]) -> dict[str, JsonValue]:
    """Check a preset, and return it as it was recorded."""
    try:
        (_TensorEnsemble if "inputs" in preset else _Ensemble).model_validate(preset)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    return preset


_Outputs = Annotated[
    tuple[Annotated[int, Field(ge=0, lt=2**31)], ...], Field(strict=False, min_length=1, max_length=2**20)
]
_ClassMap = Annotated[tuple[_Outputs, ...], Field(strict=False, min_length=1, max_length=2**20)]


class Teacher(_Strict):
    """The teacher of the logits."""

    name: str = Field(max_length=16_384)
    digest: Digest
    preset: Annotated[dict[str, JsonValue], AfterValidator(_usable)]
    parameters: int = Field(ge=0, lt=2**53)
    class_maps: Annotated[tuple[_ClassMap, ...], Field(strict=False, max_length=256)] = ()
    """The outputs that each class of the store is made of, of each teacher of the mean; absent where all are as many
    and in the same order. The logit of several outputs is the log-sum-exp of theirs."""


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

    name: str = Field(max_length=1024)
    version: str = Field(max_length=1024)
    seed: int = Field(ge=0, lt=2**32)
    thresholds: Annotated[dict[_Name, Table], Field(max_length=64)] = {}
    """The table from which each mixing operation draws lambda; see ``kdpipe.views.mixing``."""


class Fingerprint(_Strict):
    """All ingredients of the codes: equal fingerprints give equal stores."""

    teacher: Teacher
    dataset: dict[_Name, Digest] = Field(max_length=MAX_GROUPS)
    recipe: Recipe
    encoding: _Name
    precision: _Name
    batch_size: int = Field(gt=0, lt=2**31)
    device: _Name
    memory_format: Literal["channels_last"] | None = None
    """Memory format of the teacher's computation; ``None`` for torch's default."""

    def differences(self, asked: Fingerprint) -> list[str]:
        """Return a line for each part in which ``asked`` differs: ``part: the store has X, asked for Y``."""
        mine, other = _flatten(self.model_dump()), _flatten(asked.model_dump())
        return [
            f"{key}: the store has {_shorten(mine.get(key))}, asked for {_shorten(other.get(key))}"
            for key in sorted(mine.keys() | other.keys())
            if mine.get(key) != other.get(key)
        ]


class Split(_Strict):
    """Size of a split's segment, and its cut into chunks and shards."""

    samples: int = Field(gt=0, lt=2**40)
    planes: int = Field(gt=0, lt=2**20)
    chunk_rows: int = Field(gt=0, lt=2**40)
    shard_rows: int = Field(gt=0, lt=2**40)
    probes: int = Field(ge=0, le=4096)
    replaces: int = Field(0, ge=0, lt=2**40)
    """Rows of earlier segments whose samples have a newer row in this one; absent if there are none."""
    pixel_digests: bool = False
    """Whether there are digests of the decoded images; absent if there are none."""

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

    name: _Name
    bytes_per_sample: float = Field(ge=0, le=1e12)
    kl: tuple[Annotated[float, Field(ge=0, allow_inf_nan=False)], ...] = Field(strict=False, max_length=64)
    """Mean KL at each of the budget's temperatures."""
    within: bool


class Choice(_Strict):
    """The budget of the choice of encoding, and the table of candidates."""

    max_kl: _Positive
    temperatures: tuple[_Positive, ...] = Field(strict=False, min_length=1, max_length=64)
    table: tuple[Candidate, ...] = Field(strict=False, max_length=4096)

    @model_validator(mode="after")
    def _measured_at_each(self) -> Self:
        if any(len(candidate.kl) != len(self.temperatures) for candidate in self.table):
            raise ValueError("a candidate has another number of KL than there are temperatures")
        return self


class Rendering(_Strict):
    """Origin of the teacher's pixels, to explain replay probes that differ."""

    decoder: str = Field(max_length=256)
    """Library that decoded the image files, with its version."""
    trial: dict[_Name, _Hash] = Field(max_length=256)
    """Hash of the result of the resize and of each operation on synthetic images; see ``kdpipe.views.trial``."""
    sources: dict[_Name, Annotated[tuple[_Hash, ...], Field(strict=False, max_length=4096)]] = Field(
        max_length=MAX_GROUPS
    )
    """64-bit hashes of the probes' decoded source images, by split and segment."""

    def differing(self, trial: Mapping[str, str]) -> list[str]:
        """Return the names whose result differs in ``trial``; if the resize does, that name alone."""
        names = [name for name in trial if self.trial.get(name) != trial[name]]
        return ["resize"] if "resize" in names else names


def rendering_differences(found: Rendering | None, wanted: Rendering | None, *, unread: bool = False) -> list[str]:
    """Return a line for each cause of other pixels in ``wanted``; the decoder's name alone does not count.

    In an ``unread`` store, images may change until they are read: then all of the compared ones must differ.
    """
    if found is None or wanted is None:
        return []
    differing = [
        f"{split} images: decoded to other pixels by {found.decoder} than by {wanted.decoder} here"
        for split, hashes in wanted.sources.items()
        if (known := found.sources.get(split)) != hashes
        and not (unread and known is not None and any(map(str.__eq__, known, hashes)))
    ]
    return differing + [f"{name}: gives other pixels here" for name in found.differing(wanted.trial)]


Withheld = Literal["views", "splits", "encoding", "signals", "labels", "names"]
"""A part of a store that another one, derived from it, lacks."""


class DerivedFrom(_Strict):
    """The store that this one was derived from without a teacher, and the parts that were withheld."""

    digest: Digest
    encoding: _Name
    """That store's encoding."""
    withheld: Annotated[tuple[Withheld, ...], Field(strict=False, min_length=1, max_length=16)]
    """``encoding``: its logits were encoded again, and ``fidelity`` is measured against that store."""
    kl: Annotated[dict[Annotated[str, Field(max_length=32)], _Loss], Field(max_length=64)] = {}
    """Mean KL of the rows against that store by temperature; empty where the codes are copies."""
    source_kl: Annotated[dict[Annotated[str, Field(max_length=32)], _Loss], Field(max_length=64)] = {}
    """That store's own mean KL against its teacher's logits; empty where it is not known."""

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        if len(set(self.withheld)) < len(self.withheld):
            raise ValueError("something is withheld twice")
        return self


class File(_Strict):
    """One file of the store, by its path relative to the store."""

    size: Size
    digest: Digest


MAX_NUMBER = 2.0**63
_MAX_VALUES = 100_000


def modest(value: dict[str, JsonValue]) -> dict[str, JsonValue]:
    """Return a section without a model if its numbers are below 2^63 and it has at most 100,000 values."""
    waiting: list[JsonValue] = [value]
    count = 0
    while waiting:
        each = waiting.pop()
        count += 1
        if isinstance(each, dict):
            waiting += each.values()
        elif isinstance(each, list):
            waiting += each
        elif isinstance(each, int | float) and not abs(each) < MAX_NUMBER:
            raise ValueError("it has a number beyond 2^63")
        elif isinstance(each, str) and len(each) > _MAX_VALUES:
            raise ValueError(f"it has a text of {len(each):,} characters")
        if count > _MAX_VALUES:
            raise ValueError(f"it has more than {_MAX_VALUES:,} values")
    return value


Modest = Annotated[dict[str, JsonValue], AfterValidator(modest)]
"""A section of any values, within bounds."""


def _flatten(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, entry in value.items():
        if isinstance(entry, dict):
            flat.update(_flatten(entry, f"{prefix}{key}."))
        else:
            flat[prefix + key] = entry
    return flat


_LONG = 200
"""Characters of a value that is printed."""


def _shorten(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    is_digest = len(text) == 32 and all(character in "0123456789abcdef" for character in text)
    return text[:8] + "…" if is_digest else text if len(text) <= _LONG else text[:_LONG] + "…"

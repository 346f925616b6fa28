"""The files of a run directory that kdpipe reads back, as strict models, and comparisons of what they record."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from kdpipe.errors import RunError
from kdpipe.models.inputs import InputsRecord
from kdpipe.reading import MEGABYTE, parse_json, read_bytes, validated

_RUN_BYTES = 16 * MEGABYTE
"""A limit for ``run.json``, which names all classes."""
_HISTORY_BYTES = 64 * MEGABYTE

LOGS = ("dvclive", "tensorboard", "wandb")
"""Programs that a run may log to, each in the folder of this name."""
_MAY_CHANGE = ("resume", "overwrite", "checkpoint_every", "workers", "quantize", "calibration", "max_drop", *LOGS)
"""Settings that may be others when a run is resumed."""
_SETTLED = ("channels_last",)
"""Settings that follow from the network where they are not given: a resumed run keeps what it recorded."""
_ADDED = {"views_per_sample": 1, "classes": "store", "outputs": "logits"}
"""Settings that records of older versions lack, with the default of each that is neither ``None`` nor ``False``."""

Text = Annotated[str, Field(max_length=4096)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{16,64}$")]
Count = Annotated[int, Field(ge=0, le=10**12)]
SeedNumber = Annotated[int, Field(ge=0, lt=2**32)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Finite = Annotated[float, Field(ge=0, le=1e300, allow_inf_nan=False)]
Pixels = Annotated[int, Field(ge=1, le=16_384)]
Channel = Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)]
Spread = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class RecipeRecord(_Strict):
    """The recipe of the training images."""

    name: Text
    version: Text
    seed: SeedNumber


class PresetRecord(_Strict):
    """The preprocessing of a model."""

    size: Pixels
    resize: Pixels
    interpolation: Literal["nearest", "bilinear", "bicubic"]
    mean: Annotated[list[Channel], Field(min_length=3, max_length=3)]
    std: Annotated[list[Spread], Field(min_length=3, max_length=3)]


class Parameters(BaseModel):
    """The settings of a training; those that are read back have bounds."""

    model_config = ConfigDict(extra="allow", strict=True)
    __pydantic_extra__: dict[str, JsonValue] = Field(init=False)

    seed: SeedNumber | None = None
    data_seed: SeedNumber | None = None
    data: Text | None = None
    limit_train: Count | None = None
    labels_per_class: Count | None = None
    epochs: Annotated[int, Field(ge=0, le=10**9)] | None = None
    batch_size: Annotated[int, Field(ge=1, le=10**9)] | None = None
    optimizer: Text | None = None


class DataRecord(_Strict):
    """The dataset of a training, with the fingerprint of each split."""

    spec: Text | None = None
    name: Text | None = None
    train: Text | None = None
    validation: Text | None = None
    test: Text | None = None


class StoreRecord(_Strict):
    """A store that a student learned from."""

    path: Text
    digest: Text
    weight: Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)]


class Named(_Strict):
    """A model by name and digest."""

    name: Text
    digest: Text


class Parent(Named):
    """The run that a compressed one was made from; its digest is that of ``model.safetensors``."""

    model: Text
    epochs: Count | None = None
    """Epochs that it was trained for, with those of its own parents."""


class TeacherRecord(Named):
    """A teacher of a run."""

    class_map: Text | None = None
    """Digest of the outputs that each class is made of, of a live teacher of other classes."""


class Lineage(_Strict):
    """Everything that a run was made from."""

    dataset: DataRecord | None = None
    sample_weights: Text | None = None
    stores: Annotated[list[StoreRecord], Field(max_length=10_000)] | None = None
    teachers: Annotated[list[TeacherRecord], Field(max_length=10_000)] | None = None
    init_weights: Named | None = None
    parent: Parent | None = None
    class_map: Annotated[dict[Text, Text], Field(max_length=1_000_000)] | None = None
    """The run's class of each class of the data by name, where they have other names or another order."""


class RunRecord(_Strict):
    """``run.json`` of a run that was started."""

    parameters: Parameters
    lineage: Lineage
    format: Literal[1] = 1
    stage: Literal["train-teacher", "train-student", "compress"] | None = None
    distill: Literal["cache", "live", "none"] | None = None
    loss: Text | None = None
    recipe: RecipeRecord | None = None
    views: Count | None = None
    seeds: Annotated[dict[Text, SeedNumber], Field(max_length=10)] | None = None
    device: Text | None = None
    model: Text | None = None
    num_parameters: Count | None = None
    preset: PresetRecord | InputsRecord | None = None
    preset_source: Text | None = None
    classes: Annotated[list[Text], Field(min_length=1, max_length=1_000_000)] | None = None
    samples: Count | None = None
    left_out: Count | None = None
    labels: Annotated[dict[Text, Digest], Field(max_length=10)] | None = None
    content: Annotated[dict[Text, Digest], Field(max_length=10)] | None = None
    """Digest of the contents of each split, whatever the names and the order of its samples."""
    versions: Annotated[dict[Text, Text | None], Field(max_length=100)] | None = None
    git_revision: Text | None = None
    weights: Annotated[dict[Text, Digest], Field(max_length=10)] | None = None


class SeededParameters(Parameters):
    """The settings of a training, with its seed."""

    seed: SeedNumber


class FinishedRecord(RunRecord):
    """``run.json`` with all that a benchmark needs."""

    parameters: SeededParameters
    model: Text
    preset: PresetRecord | InputsRecord
    classes: Annotated[list[Text], Field(min_length=1, max_length=1_000_000)]
    distill: Literal["cache", "live", "none"] = "none"
    loss: Text = "ce"


class Scores(_Strict):
    """Accuracy on one split; ``None`` without labels."""

    top1: Share | None
    top5: Share | None = None
    loss: Finite | None = None


class Chosen(_Strict):
    """The accuracies of the weights of one epoch."""

    epoch: Count
    validation: Scores
    test: Scores


class Metrics(_Strict):
    """``metrics.json`` of a finished run."""

    test: Scores
    last: Chosen | None = None
    best_on_validation: Chosen | None = None
    int8: Scores | None = None
    epochs: Count | None = None
    seconds: Finite | None = None
    images_per_second: Finite | None = None
    weights: Annotated[dict[Text, Digest], Field(max_length=10)] | None = None


class Summary(BaseModel):
    """``metrics.json`` of seed runs: the seeds that it counts."""

    model_config = ConfigDict(extra="allow", strict=True)

    seeds: Annotated[list[SeedNumber], Field(max_length=10_000)]


class Failure(_Strict):
    """``failure.json``: the error that ended a student."""

    message: Annotated[str, Field(max_length=100_000)]


def read(path: Path, model: type[BaseModel], *, limit: int = MEGABYTE) -> dict[str, Any]:
    """Return the content of a JSON file that fits the model.

    Raises:
        RunError: the file is missing or damaged, or was made by something else.
    """
    if not path.exists():
        raise RunError(f"{path} does not exist: {path.parent} is not a finished run of kdpipe.")
    content: Any = parse_json(read_bytes(path, limit=limit, error=RunError), of=path, error=RunError)
    validated(content, model, of=path, error=RunError)
    return dict(content)


def read_run(path: Path, model: type[RunRecord] = RunRecord) -> dict[str, Any]:
    """Return the content of ``run.json``; raises ``RunError`` as ``read`` does."""
    return read(path, model, limit=_RUN_BYTES)


def difference(before: Any, now: Any) -> str | None:
    """Return the first setting that differs between two sections of ``run.json``; ``None`` where they agree.

    Settings that may change on resumption are passed over. Records of older versions lack the settings that were added
    since, whose defaults are ``None``, ``False`` or in ``_ADDED``.
    """
    old, new = json.loads(json.dumps(before)), json.loads(json.dumps(now))
    if not isinstance(new, dict):
        return None if old == new else f"{old} then, {new} now"
    old = old or {}
    for key in {**old, **new}:
        if key in _SETTLED and new.get(key) is None:
            continue
        if key not in old and (new[key] is False or (key in _ADDED and new[key] == _ADDED[key])):
            continue
        if key not in _MAY_CHANGE and old.get(key) != new.get(key):
            return f"{key}: {old.get(key)} then, {new.get(key)} now"
    return None


def flat(value: Any, separator: str = ".", *, name: str = "") -> dict[str, Any]:
    """Return the leaves of nested JSON values by their names, joined by ``separator``; ``name`` is that of ``value``.

    The name of an item of a list is its number, from 0. Empty lists and mappings have no leaves.
    """
    if not isinstance(value, Mapping | list):
        return {name: value}
    parts = value.items() if isinstance(value, Mapping) else enumerate(value)
    return {
        key: leaf
        for part, inner in parts
        for key, leaf in flat(inner, separator, name=f"{name}{separator}{part}" if name else str(part)).items()
    }


def epochs_of(record: Mapping[str, Any]) -> int | None:
    """Return the epochs of a run and of all that it was compressed from; ``None`` where those of one are unknown."""
    own: int | None = record.get("parameters", {}).get("epochs")
    parent = record.get("lineage", {}).get("parent")
    if parent is None or own is None:
        return own
    return None if parent.get("epochs") is None else own + int(parent["epochs"])


def counted_seeds(path: Path) -> list[int]:
    """Return the seeds in a ``metrics.json`` of seed runs; empty if it is of something else.

    Raises:
        RunError: the file is damaged.
    """
    content: Any = parse_json(read_bytes(path, error=RunError), of=path, error=RunError)
    if not isinstance(content, dict) or not isinstance(content.get("seeds"), list):
        return []
    return validated(content, Summary, of=path, error=RunError).seeds


def read_history(path: Path) -> list[dict[str, float]]:
    """Return the rows of ``history.csv``.

    Raises:
        RunError: it is no table of finite numbers.
    """
    content = read_bytes(path, limit=_HISTORY_BYTES, error=RunError)
    rows: list[dict[str, float]] = []
    try:
        for row in csv.DictReader(io.StringIO(content.decode(), newline=""), strict=True):
            rows.append({key: _number(value) for key, value in row.items()})
    except (ValueError, TypeError, csv.Error) as error:
        raise RunError(f"{path} is damaged: line {len(rows) + 2} is not a row of numbers ({error}).") from None
    return rows


def _number(text: str) -> float:
    value = float(text[:100])
    if not math.isfinite(value):
        raise ValueError(f"{text[:100]} is not finite")
    return value

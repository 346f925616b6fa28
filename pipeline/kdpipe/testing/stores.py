"""Small stores of random logits, for tests of code that builds or reads stores.

    manifest = small_store(tmp_path / "small.zarr")
    store = kdpipe.open_store(tmp_path / "small.zarr")
    assert store.plane(1).shape == (TRAIN, CLASSES)

The logits are those of ``random_logits``. ``small_plan`` and ``dataset_plan`` make other stores; ``start_store`` leaves
one unfinished.
"""

from __future__ import annotations

import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from kdpipe.dataset import Dataset
from kdpipe.models import Preset
from kdpipe.pairing.probes import probe_hashes, probe_rows, rendering
from kdpipe.store.manifest import Manifest
from kdpipe.store.plan import Limits, Plan, Shard, SplitPlan
from kdpipe.store.sections import Fingerprint, Recipe, Teacher
from kdpipe.store.writer import Builder, build
from kdpipe.views import Geometry, Renderer
from kdpipe.views import Recipe as ViewRecipe

CLASSES = 5
TRAIN, TEST, VIEWS = 20, 6, 1
SHARDS = 7
"""Shards of the default store: three for each of the two planes of ``train``, and one of ``test``."""

LIMITS = Limits(shard_rows=8, chunk_bytes=4 * CLASSES * 2)
"""Shards of at most 8 rows in chunks of 4 (as fp16), so that small stores have several of each."""

PRESET = Preset(size=32, resize=32, interpolation="bilinear", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def random_logits(split: str, view: int, *, samples: int, classes: int = CLASSES) -> npt.NDArray[np.float32]:
    """Return the logits of a plane, ``(samples, classes)``; equal arguments give equal logits."""
    random = np.random.default_rng([zlib.crc32(split.encode()), view, classes])
    return (8 * random.standard_normal((samples, classes))).astype(np.float32)


def small_plan(
    *,
    train: int = TRAIN,
    test: int = TEST,
    views: int = VIEWS,
    classes: int = CLASSES,
    limits: Limits = LIMITS,
    **ingredients: Any,
) -> Plan:
    """Return the plan of a store with random ids, labels and probes.

    Args:
        train: samples of the split ``train``.
        test: samples of the split ``test``.
        views: augmented views of ``train``.
        classes: number of classes.
        limits: sizes of chunks and shards.
        ingredients: fields of the fingerprint that differ from the default, such as ``encoding``.
    """
    fields: dict[str, Any] = {
        "teacher": Teacher(name="teacher", digest="ab" * 16, preset=PRESET.describe(), parameters=1234),
        "dataset": {"train": "01" * 16, "test": "23" * 16},
        "recipe": Recipe(name="crop-flip", version="crop-flip/1", seed=3),
        "encoding": "fp16",
        "precision": "fp32",
        "batch_size": 4,
        "device": "cpu",
    }
    return Plan(
        fingerprint=Fingerprint(**{**fields, **ingredients}),
        teacher_probe=(0.25, -1.5, 3.0),
        dataset="random",
        classes=tuple(f"class {index}" for index in range(classes)),
        splits={
            "train": _random_split("train", samples=train, planes=1 + views),
            "test": _random_split("test", samples=test, planes=1),
        },
        limits=limits,
    )


def _random_split(split: str, *, samples: int, planes: int) -> SplitPlan:
    random = np.random.default_rng([zlib.crc32(split.encode()), samples])
    probes = np.sort(random.permutation(samples)[:3]).astype(np.int64)
    return SplitPlan(
        sample_ids=random.integers(0, 256, (samples, 16), dtype=np.uint8),
        content_digests=random.integers(0, 256, (samples, 16), dtype=np.uint8),
        labels=random.integers(-1, CLASSES, samples, dtype=np.int32),
        planes=planes,
        probe_rows=probes,
        probe_hashes=random.integers(0, 2**64, (planes, len(probes)), dtype=np.uint64),
    )


def dataset_plan(dataset: Dataset, *, preset: Preset, views: int, recipe: str | ViewRecipe = "crop-flip") -> Plan:
    """Return the plan of a store for a split of a dataset, with its ids, labels and probes; the logits are random."""
    template = small_plan()
    parsed = recipe if isinstance(recipe, ViewRecipe) else ViewRecipe.parse(recipe)
    geometry, seed, rows = Geometry.of(preset), template.fingerprint.recipe.seed, probe_rows(dataset)
    renderer = Renderer(dataset, parsed, seed=seed, geometry=geometry)
    split = SplitPlan(
        sample_ids=dataset.sample_ids,
        content_digests=dataset.content_digests,
        labels=dataset.labels,
        planes=1 + views,
        probe_rows=rows,
        probe_hashes=probe_hashes(renderer, rows, planes=1 + views),
    )
    ingredients = {
        "teacher": template.fingerprint.teacher.model_copy(update={"preset": preset.describe()}),
        "dataset": {dataset.split: dataset.fingerprint},
        "recipe": Recipe(name=str(parsed), version=parsed.version, seed=seed, thresholds=parsed.thresholds),
    }
    return replace(
        template,
        fingerprint=template.fingerprint.model_copy(update=ingredients),
        rendering=rendering(parsed, geometry, {dataset.split: dataset}, {dataset.split: rows}),
        dataset=dataset.name,
        classes=dataset.classes,
        splits={dataset.split: split},
    )


def all_shards(builder: Builder) -> list[Shard]:
    """Return the shards of all planes."""
    splits = builder.manifest.splits
    return [
        shard
        for split in sorted(splits)
        for view in range(splits[split].planes)
        for shard in builder.shards(split, view)
    ]


def shard_logits(builder: Builder, shard: Shard) -> torch.Tensor:
    """Return the random logits of a shard."""
    manifest = builder.manifest
    samples, classes = manifest.splits[shard.split].samples, len(manifest.classes)
    plane = random_logits(shard.split, shard.view, samples=samples, classes=classes)
    return torch.from_numpy(plane[shard.start : shard.stop])


def fill(builder: Builder, *, at_most: int | None = None) -> int:
    """Write the unfinished shards, or ``at_most`` so many, and return how many were written."""
    waiting = [shard for shard in all_shards(builder) if not builder.is_done(shard)][:at_most]
    for shard in waiting:
        builder.submit(shard, shard_logits(builder, shard))
    builder.drain()
    return len(waiting)


def small_store(path: Path, plan: Plan | None = None, *, overwrite: bool = False) -> Manifest:
    """Build or finish the store at ``path``, by default that of ``small_plan``, seal it and return its manifest."""
    with build(path, plan or small_plan(), overwrite=overwrite) as builder:
        if builder.sealed:
            return builder.manifest
        fill(builder)
        return builder.seal({"made": "for a test"})


def start_store(path: Path, plan: Plan | None = None, *, shards: int) -> None:
    """Leave an unsealed store with some finished shards at ``path``."""
    with build(path, plan or small_plan()) as builder:
        fill(builder, at_most=shards)


def contents(store: Path) -> dict[str, bytes]:
    """Return the bytes of every file of a store, by its path in the store."""
    return {
        path.relative_to(store).as_posix(): path.read_bytes() for path in sorted(store.rglob("*")) if path.is_file()
    }

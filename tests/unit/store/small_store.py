"""Small stores of random logits: what the tests of the store build, resume, damage and read."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
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
"""Of the two planes of ``train``, three each, and one of ``test``; see ``small_layout``."""

PRESET = Preset(size=32, resize=32, interpolation="bilinear", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


@contextmanager
def small_layout(*, shard_rows: int = 8, chunk_rows: int = 4, split_rows: int = 4_096) -> Iterator[None]:
    """Cut planes into shards of 8 rows and chunks of 4, so that small stores have several of each."""
    small = Limits(shard_rows=shard_rows, chunk_bytes=chunk_rows * CLASSES * 2, split_rows=split_rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kdpipe.store.plan.LIMITS", small)
        yield


def plane_logits(split: str, view: int, *, samples: int, classes: int = CLASSES) -> npt.NDArray[np.float32]:
    """Return the same random logits ``(samples, classes)`` for the same arguments."""
    random = np.random.default_rng([zlib.crc32(split.encode()), view, classes])
    return (8 * random.standard_normal((samples, classes))).astype(np.float32)


def split_plan(split: str, *, samples: int, planes: int) -> SplitPlan:
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


def make_plan(
    *, train: int = TRAIN, test: int = TEST, views: int = VIEWS, classes: int = CLASSES, **changes: Any
) -> Plan:
    """Return a plan; ``changes`` replace fields of the fingerprint."""
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
        fingerprint=Fingerprint(**{**fields, **changes}),
        teacher_probe=(0.25, -1.5, 3.0),
        dataset="random",
        classes=tuple(f"class {index}" for index in range(classes)),
        splits={
            "train": split_plan("train", samples=train, planes=1 + views),
            "test": split_plan("test", samples=test, planes=1),
        },
    )


def plan_of(dataset: Dataset, *, preset: Preset, views: int, recipe: str | ViewRecipe = "crop-flip") -> Plan:
    """Return the plan of a store for a dataset's split; its logits are random all the same."""
    template = make_plan()
    teacher = template.fingerprint.teacher.model_copy(update={"preset": preset.describe()})
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
    return dataclasses.replace(
        template,
        fingerprint=template.fingerprint.model_copy(
            update={
                "teacher": teacher,
                "dataset": {dataset.split: dataset.fingerprint},
                "recipe": Recipe(name=str(parsed), version=parsed.version, seed=seed, thresholds=parsed.thresholds),
            }
        ),
        rendering=rendering(parsed, geometry, {dataset.split: dataset}, {dataset.split: rows}),
        dataset=dataset.name,
        classes=dataset.classes,
        splits={dataset.split: split},
    )


def all_shards(builder: Builder) -> list[Shard]:
    splits = builder.manifest.splits
    return [
        shard
        for split in sorted(splits)
        for view in range(splits[split].planes)
        for shard in builder.shards(split, view)
    ]


def shard_logits(builder: Builder, shard: Shard) -> torch.Tensor:
    manifest = builder.manifest
    samples, classes = manifest.splits[shard.split].samples, len(manifest.classes)
    plane = plane_logits(shard.split, shard.view, samples=samples, classes=classes)
    return torch.from_numpy(plane[shard.start : shard.stop])


def fill(builder: Builder, *, at_most: int | None = None) -> int:
    """Submit the shards that are not done, ``at_most`` so many, and return how many there were."""
    waiting = [shard for shard in all_shards(builder) if not builder.is_done(shard)][:at_most]
    for shard in waiting:
        builder.submit(shard, shard_logits(builder, shard))
    builder.drain()
    return len(waiting)


def make(path: Path, plan: Plan | None = None, *, overwrite: bool = False) -> Manifest:
    """Build or finish the store at ``path``, seal it and return its manifest."""
    with build(path, plan or make_plan(), overwrite=overwrite) as builder:
        if builder.sealed:
            return builder.manifest
        fill(builder)
        return builder.seal({"made": "for a test"})


def start(path: Path, plan: Plan | None = None, *, shards: int) -> None:
    """Leave an unsealed store with some shards done."""
    with build(path, plan or make_plan()) as builder:
        fill(builder, at_most=shards)


def contents(store: Path) -> dict[str, bytes]:
    """Return the bytes of every file by its path in the store."""
    return {
        path.relative_to(store).as_posix(): path.read_bytes() for path in sorted(store.rglob("*")) if path.is_file()
    }

"""Stores over random histories of a dataset: each growth computes what it must, and serves what it should."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdpipe import dataset, open_store
from kdpipe.dataset import Dataset
from kdpipe.encoding.registry import get_encoding
from kdpipe.models import Preset
from kdpipe.pairing.growth import Standing
from kdpipe.pairing.join import join_checked
from kdpipe.pairing.probes import replay
from kdpipe.store import manifest
from kdpipe.store.growing import grow
from kdpipe.store.sections import Teacher
from kdpipe.store.verify import verify_files
from kdpipe.store.writer import Builder, build
from kdpipe.teacher.cache import plan
from kdpipe.testing import stores
from kdpipe.views import Geometry, Recipe, Renderer

SIDE, VIEWS, SEED = 8, 2, 5
PRESET = Preset(size=SIDE, resize=SIDE, interpolation="bilinear", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
KEYS = 7

version: dict[int, int] = {}
"""The images of the dataset now: the content of each, by the number in its key."""


class Images(list[tuple[torch.Tensor, int]]):
    classes = ("a", "b")

    def __init__(self) -> None:
        super().__init__((pixels(content), number % 2) for number, content in version.items())
        self.keys = [f"image {number}" for number in version]


def pixels(content: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(content).integers(0, 256, (3, SIDE, SIDE), dtype=np.uint8))


def build_images(split: str) -> Images:
    assert split == "train"
    return Images()


@dataclass(frozen=True)
class Sums:
    """A teacher whose logits are integers that depend on every pixel."""

    preset = PRESET
    device = torch.device("cpu")
    precision = "fp32"
    memory_format = None
    signals: Mapping[str, tuple[int, ...]] = None  # type: ignore[assignment]
    identity = Teacher(name="sums", digest="ab" * 16, preset=PRESET.describe(), parameters=0)

    def probe(self) -> list[float]:
        return []

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        weights = torch.arange(1, 3 * SIDE * SIDE + 1)
        flat = images.flatten(1).long()
        return torch.stack([(flat * weights).sum(1) % 1009, (flat * weights**2).sum(1) % 1013], dim=1).float()


TEACHER = Sums(signals={})


@pytest.fixture(autouse=True, scope="module")
def quickly(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        patch.setenv("KDPIPE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def computed(builder: Builder, images: Mapping[str, Dataset], recipe: Recipe) -> None:
    for shard in stores.all_shards(builder):
        renderer = Renderer(images[shard.split], recipe, seed=SEED, geometry=Geometry.of(PRESET))
        builder.submit(shard, TEACHER(renderer(np.arange(shard.start, shard.stop), shard.view)))
    builder.seal({})


histories = st.lists(
    st.dictionaries(st.integers(0, KEYS - 1), st.integers(0, 2), min_size=1, max_size=KEYS), min_size=2, max_size=5
)


@given(history=histories, recipe=st.sampled_from(["crop-flip", "mixup:0.4", "crop-flip+cutmix:1"]))
@settings(max_examples=12, deadline=None)
def test_a_store_that_grows_with_its_data(history: list[dict[int, int]], recipe: str) -> None:
    drawn = Recipe.parse(recipe)
    arguments = {"recipe": drawn, "seed": SEED, "views": VIEWS, "encoding": get_encoding("fp32"), "batch_size": 2}
    newest: dict[int, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder, "a.zarr")
        for images in history:
            version.clear()
            # Contents are told apart by key: an image that two samples share may be either's.
            version.update({number: 10 * number + content for number, content in images.items()})
            data = dataset.load(f"{__name__}:build_images", "train")
            if not store.exists():
                with build(store, plan(TEACHER, {"train": data}, **arguments)) as builder:
                    computed(builder, {"train": data}, drawn)
                newest = dict(version)
            else:
                standing = Standing.of(open_store(store), data)
                changed = {number for number in version if newest.get(number, version[number]) != version[number]}
                new = version.keys() - newest.keys()
                assert standing.new == len(new)
                assert int(standing.changed.sum()) == len(changed)
                assert standing.removed == len(newest.keys() - version.keys())
                assert drawn.mixes or not standing.unmixed.any()
                before = stores.contents(store)
                fresh = standing.fresh
                assert (fresh is None) == (not new and not changed and not standing.unmixed.any())
                if fresh is not None:
                    group = f"train.{len(standing.store.segments)}"
                    part = plan(TEACHER, {group: fresh}, **arguments, replaces={group: standing.replaces})
                    with grow(store, part, onto=manifest.read(store)) as builder:
                        computed(builder, {group: fresh}, drawn)
                after = stores.contents(store)
                assert all(after[name] == content for name, content in before.items() if name != "zarr.json")
                newest |= version
            check(store, data, samples=len(newest))


def check(store: Path, data: Dataset, *, samples: int) -> None:
    """Each sample has the logits of the pixels that a student sees."""
    assert verify_files(store) == []
    opened = open_store(store)
    assert opened.num_samples == samples
    rows, renderer = join_checked(opened, data), replay(opened, data)
    for view in range(VIEWS + 1):
        expected = TEACHER(renderer(np.arange(len(data)), view)).numpy()
        assert np.array_equal(opened.logits(rows, view), expected)

"""Several teachers averaged into one store."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from kdpipe import dataset, models, open_store
from kdpipe.models import Preset
from kdpipe.store.manifest import read
from tests.conftest import LIMITS, Built, Outcome

Kdpipe = Callable[..., Outcome]

COMMON = ("cache-teacher", *LIMITS, "--device", "cpu", "--encoding", "fp32", "--views", 1)


def save_teacher(path: Path, *, size: int = 32, classes: tuple[str, ...] | None = None) -> Path:
    """Write a resnet14 of random weights that takes another normalization than the dataset's."""
    preset = Preset(size, size, "bilinear", (0.3, 0.3, 0.3), (0.5, 0.5, 0.5))
    torch.manual_seed(5)
    module = models.create("resnet14", 10)
    named = classes or dataset.load("digits", "test", 60).classes
    models.save_weights(path, module, architecture="resnet14", preset=preset, classes=named)
    return path


@pytest.fixture
def other(tmp_path: Path) -> Path:
    return save_teacher(tmp_path / "other.safetensors")


def _both(built: Built, other: Path) -> tuple[object, ...]:
    return ("--teacher", "resnet8", "--weights", built.weights, "--teacher", "resnet14", "--weights", other)


def test_the_store_holds_the_mean_of_the_teachers_logits(
    built: Built, other: Path, kdpipe: Kdpipe, tmp_path: Path
) -> None:
    first, second, mean = (tmp_path / f"{name}.zarr" for name in ("first", "second", "mean"))
    assert kdpipe(*COMMON, "--teacher", "resnet8", "--weights", built.weights, "--out", first).code == 0
    assert kdpipe(*COMMON, "--teacher", "resnet14", "--weights", other, "--out", second).code == 0
    assert kdpipe(*COMMON, *_both(built, other), "--average", "--out", mean).code == 0
    for split, view in (("test", 0), ("train", 0), ("train", 1)):
        logits = [open_store(path, split=split).plane(view) for path in (first, second)]
        assert np.abs(logits[0] - logits[1]).max() > 0.1
        expected = (logits[0].astype(np.float64) + logits[1]) / 2
        assert np.abs(open_store(mean, split=split).plane(view) - expected).max() < 1e-5

    stated = [open_store(path).manifest.fingerprint.teacher for path in (first, second, mean)]
    assert stated[2].name == "average(resnet8, resnet14)"
    assert stated[2].parameters == stated[0].parameters + stated[1].parameters
    assert len({teacher.digest for teacher in stated}) == 3
    probes = [open_store(path).manifest.teacher_probe for path in (first, second, mean)]
    assert probes[2] == pytest.approx([(a + b) / 2 for a, b in zip(*probes[:2], strict=True)], rel=1e-2, abs=1e-3)

    again = kdpipe(*COMMON, *_both(built, other), "--average", "--out", mean)
    assert "nothing to do" in again.err
    swapped = kdpipe(*COMMON, *_both(built, other)[4:], *_both(built, other)[:4], "--average", "--out", mean)
    assert swapped.code == 1
    assert "average(resnet8, resnet14), asked for average(resnet14, resnet8)" in swapped.last_line
    student = ("train-student", *LIMITS, "--student", "resnet8", "--epochs", 1, "--device", "cpu")
    assert kdpipe(*student, "--store", mean, "--out", tmp_path / "run").code == 0


def test_an_interrupted_average_ends_as_an_uninterrupted_one(
    built: Built, other: Path, kdpipe: Kdpipe, tmp_path: Path
) -> None:
    digests = []
    for name, runs in {"straight": ((),), "resumed": (("--min-top1", 1), ())}.items():
        out = tmp_path / f"{name}.zarr"
        for extra in runs:
            kdpipe(*COMMON, *_both(built, other), "--average", "--out", out, *extra)
            if extra:
                assert json.loads(kdpipe("inspect", out, "--json").out)["shards_done"] == 1
        digests.append(open_store(out).digest)
    assert digests[0] == digests[1]


def test_another_normalization_of_a_teacher_is_another_ensemble(
    built: Built, other: Path, kdpipe: Kdpipe, tmp_path: Path
) -> None:
    command = (*COMMON, *_both(built, other), "--average", "--out", tmp_path / "mean.zarr")
    assert kdpipe(*command).code == 0
    changed = bytearray(other.read_bytes())
    place = changed.index(b'"mean":"0.3,0.3,0.3"')
    changed[place : place + 20] = b'"mean":"0.4,0.4,0.4"'
    other.write_bytes(changed)
    refused = kdpipe(*command)
    assert refused.code == 1
    assert "teacher.preset.members" in refused.last_line


def test_teachers_must_take_the_same_pixels(built: Built, kdpipe: Kdpipe, tmp_path: Path) -> None:
    small = save_teacher(tmp_path / "small.safetensors", size=24)
    refused = kdpipe(*COMMON, *_both(built, small), "--average", "--out", tmp_path / "mean.zarr")
    assert refused.code == 1
    for part in ("resnet8 takes 32 px", "resnet14 24 px", "--input-size"):
        assert part in refused.last_line
    assert not (tmp_path / "mean.zarr").exists()


def test_a_teacher_of_another_order_is_mapped_by_its_class_names(built: Built, kdpipe: Kdpipe, tmp_path: Path) -> None:
    classes = dataset.load("digits", "test", 60).classes
    reversed_names = save_teacher(tmp_path / "reversed.safetensors", classes=classes[::-1])
    mapped = kdpipe(*COMMON, *_both(built, reversed_names), "--average", "--out", tmp_path / "mean.zarr")
    assert mapped.code == 0, mapped.err
    assert "from the 10 of resnet14: 10 by name." in mapped.err
    same, backwards = read(tmp_path / "mean.zarr").fingerprint.teacher.class_maps
    assert same == tuple((index,) for index in range(10))
    assert backwards == same[::-1]

"""Recipes from the command line to the student: cached, live, mixed, by key, and what is refused."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from kdpipe import attach
from kdpipe.dataset import load
from kdpipe.store.reader import open_store
from tests.conftest import LIMITS, Built, Outcome, refused, run_command

RECIPE = "rrc-flip:0.25+color+erase+mixup:0.4+cutmix:1"
SMALL = ("--student", "resnet8", "--device", "cpu", "--epochs", 2)


@pytest.fixture(scope="module")
def store(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of two views that mix samples, in float32."""
    path = tmp_path_factory.mktemp("recipes") / "mixed.zarr"
    made = run_command(
        *(None, "cache-teacher", *LIMITS, "--teacher", "resnet8", "--weights", built.weights, "--device", "cpu"),
        *("--recipe", RECIPE, "--views", 2, "--encoding", "fp32", "--out", path),
    )
    assert made.code == 0
    return path


def history(run: Path) -> list[dict[str, float]]:
    with (run / "history.csv").open() as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def test_cached_labels_of_mixed_images_train_as_a_live_teacher_does(
    store: Path, built: Built, tmp_path: Path, kdpipe: Callable[..., Outcome]
) -> None:
    common = ("train-student", *LIMITS, *SMALL, "--store", store, "--lr", 1e-3)
    live = ("--distill", "live", "--teacher", "resnet8", "--weights", built.weights)
    assert kdpipe(*common, "--out", tmp_path / "cache").code == 0
    assert kdpipe(*common, *live, "--out", tmp_path / "live").code == 0
    for cached, alive in zip(history(tmp_path / "cache"), history(tmp_path / "live"), strict=True):
        assert cached["view"] == alive["view"]
        assert cached["ce"] == pytest.approx(alive["ce"], rel=1e-4)
        assert cached["kd"] == pytest.approx(alive["kd"], rel=1e-3)
    recorded = json.loads((tmp_path / "cache" / "run.json").read_text())["recipe"]
    assert recorded["name"] == RECIPE
    assert recorded["version"] == "rrc-flip/1+color/1+erase/1+mixup/1+cutmix/1"


def test_hard_labels_are_mixed_with_the_share_of_the_image(store: Path) -> None:
    """The labels that a trainer of one's own gets: each class's share, one for the plain view."""
    dataset = load("digits", "train", 200)
    plain = attach(open_store(store), dataset, view=0)
    assert plain[3][1] == dataset.labels[3]
    mixed = attach(open_store(store), dataset, view=1)
    shares = torch.stack([item[1] for item in mixed[:]])
    assert shares.shape == (200, 10)
    assert torch.allclose(shares.sum(dim=1), torch.ones(200))
    assert ((shares > 0).sum(dim=1) <= 2).all()
    own = shares[torch.arange(200), torch.from_numpy(dataset.labels.astype("int64"))]
    assert 0.3 < own.mean() < 0.8
    assert (own < 1).float().mean() > 0.5
    F.cross_entropy(torch.zeros(200, 10), shares)


def test_a_part_of_the_samples_is_refused_with_the_number_of_missing_partners(
    store: Path, tmp_path: Path, kdpipe: Callable[..., Outcome]
) -> None:
    fewer = ("--data", "digits", "--limit-train", 100, "--limit-test", 60)
    outcome = kdpipe("train-student", *fewer, *SMALL, "--store", store, "--out", tmp_path / "run")
    refused(outcome, "of the 200 samples", "mixes into the 100 that it has")
    assert not (tmp_path / "run").exists()
    alone = kdpipe("train-student", *fewer, *SMALL, "--store", store, "--distill", "none", "--out", tmp_path / "none")
    assert alone.code == 0


def test_verify_and_inspect_know_the_recipe(store: Path, kdpipe: Callable[..., Outcome]) -> None:
    assert kdpipe("verify", store, "--data", "digits").code == 0
    shown = json.loads(kdpipe("inspect", store, "--json").out)
    assert shown["recipe"] == {"name": RECIPE, "version": "rrc-flip/1+color/1+erase/1+mixup/1+cutmix/1", "seed": 0}


def test_stores_of_other_samples_are_not_averaged_when_they_mix(
    store: Path, built: Built, tmp_path: Path, kdpipe: Callable[..., Outcome]
) -> None:
    fewer = ("--data", "digits", "--limit-train", 150, "--limit-test", 60, "--device", "cpu")
    assert (
        kdpipe(
            *("cache-teacher", *fewer, "--teacher", "resnet8", "--weights", built.weights),
            *("--recipe", RECIPE, "--views", 2, "--out", tmp_path / "fewer.zarr"),
        ).code
        == 0
    )
    outcome = kdpipe(
        *("train-student", *LIMITS, *SMALL, "--store", store, "--store", tmp_path / "fewer.zarr"),
        *("--out", tmp_path / "run"),
    )
    refused(outcome, "finds partners in a store's own samples")


@pytest.mark.parametrize("size", [20, 40])
def test_a_student_of_another_input_size_sees_the_same_boxes(
    store: Path, size: int, tmp_path: Path, kdpipe: Callable[..., Outcome]
) -> None:
    trained = kdpipe(
        *("train-student", *LIMITS, *SMALL, "--store", store, "--input-size", size, "--out", tmp_path / "run")
    )
    assert trained.code == 0
    assert json.loads((tmp_path / "run" / "run.json").read_text())["preset"]["size"] == size


FUNCTION = """
import os
import numpy as np

class Data(list):
    classes = ["dark", "bright"]

def build(split):
    order = range(40) if os.environ.get("ORDER") != "reversed" else range(39, -1, -1)
    data = Data()
    for index in order:
        levels = np.random.default_rng([index, split == "test"]).integers(0, 128, (16, 16, 3))
        data.append(((levels + 127 * (index % 2)).astype(np.uint8), index % 2))
    data.keys = [f"{split}/{index}" for index in order]
    return data
"""


def test_partners_are_those_of_the_store_in_whatever_order_the_dataset_is(
    tmp_path: Path, kdpipe: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cached logits equal those of a live teacher, whose student has another input size and so other pixels."""
    (tmp_path / "ordered.py").write_text(FUNCTION)
    monkeypatch.syspath_prepend(tmp_path)
    data = ("--data", "ordered:build", "--device", "cpu")
    teacher = ("--teacher", "resnet8", "--weights", tmp_path / "teacher" / "model.safetensors")
    assert kdpipe("train-teacher", *data, "--model", "resnet8", "--epochs", 2, "--out", tmp_path / "teacher").code == 0
    store = tmp_path / "ordered.zarr"
    recipe = ("--recipe", "rrc-flip+mixup:1", "--encoding", "fp32", "--views", 1)
    assert kdpipe("cache-teacher", *data, *teacher, *recipe, "--out", store).code == 0
    monkeypatch.setenv("ORDER", "reversed")
    common = ("train-student", *data, "--student", "resnet8", "--input-size", 24, "--epochs", 1, "--store", store)
    assert kdpipe(*common, "--out", tmp_path / "cache").code == 0
    assert kdpipe(*common, "--distill", "live", *teacher, "--out", tmp_path / "live").code == 0
    cached, live = history(tmp_path / "cache")[0], history(tmp_path / "live")[0]
    assert cached["ce"] == pytest.approx(live["ce"], rel=1e-4)
    assert cached["kd"] == pytest.approx(live["kd"], rel=1e-3)


BY_KEY = "rrc:scale_min=0.25+flip+mixup:alpha=0.2"


@pytest.mark.parametrize("in_a_file", [False, True])
def test_values_by_key_are_recorded_in_the_canonical_form(
    in_a_file: bool, tmp_path: Path, kdpipe: Callable[..., Outcome]
) -> None:
    (tmp_path / "params.yaml").write_text(f"train_student:\n  recipe: {BY_KEY}\n")
    flags = ("--params", tmp_path / "params.yaml") if in_a_file else ("--recipe", BY_KEY)
    common = ("train-student", *LIMITS, "--student", "resnet8", "--epochs", 1)
    assert kdpipe(*common, "--out", tmp_path / "run", *flags).code == 0
    recorded = json.loads((tmp_path / "run" / "run.json").read_text())["recipe"]
    assert recorded["name"] == "rrc:0.25+flip+mixup:0.2"
    assert recorded["version"] == "rrc/1+flip/1+mixup/1"


@pytest.mark.parametrize("written", ["[rrc: 0.25, flip]", "{rrc: 0.25}", "\n    - rrc\n    - flip"])
def test_a_recipe_in_yaml_is_refused(written: str, tmp_path: Path, kdpipe: Callable[..., Outcome]) -> None:
    (tmp_path / "params.yaml").write_text(f"train_student:\n  recipe: {written}\n")
    command = ("train-student", *LIMITS, "--student", "resnet8", "--out", tmp_path / "run")
    refused(kdpipe(*command, "--params", tmp_path / "params.yaml"), "write RECIPE as text")


@pytest.mark.parametrize(
    ("recipe", "complaint"),
    [
        ("rrcflip", "did you mean 'rrc-flip'?"),
        ("rrc-flip+colour", "did you mean 'color'?"),
        ("mixup", "write mixup:ALPHA"),
        ("mixup:0.2+crop-flip", "Write 'crop-flip+mixup:0.2'"),
        ("randaug:2,40", "expected a whole number, 0 to 30"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(
    recipe: str, complaint: str, built: Built, tmp_path: Path, kdpipe: Callable[..., Outcome]
) -> None:
    teacher = ("--teacher", "resnet8", "--weights", built.weights, "--out", tmp_path / "a.zarr")
    refused(kdpipe("cache-teacher", *LIMITS, *teacher, "--recipe", recipe), complaint)
    refused(kdpipe("train-student", *LIMITS, *SMALL, "--recipe", recipe, "--out", tmp_path / "run"), complaint)
    assert list(tmp_path.iterdir()) == []

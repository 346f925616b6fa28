"""Teachers that are refused before anything is written, and how a teacher's images are prepared."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from kdpipe import models
from kdpipe.store.manifest import read
from tests.conftest import LIMITS, Built, Outcome, refused

Kdpipe = Callable[..., Outcome]

HERE = "tests.integration.test_unfit_teachers"
CACHE = ("cache-teacher", *LIMITS, "--views", 1, "--device", "cpu")
OF_DATA = ("--statistics", "data")


class Through(nn.Module):
    """A linear network whose output, or whose input, a function changes."""

    def __init__(
        self,
        classes: int,
        *,
        before: Callable[[torch.Tensor], torch.Tensor] = lambda x: x,
        after: Callable[[torch.Tensor], torch.Tensor] = lambda x: x,
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(classes, 3 * 32 * 32, generator=generator) / 10)
        self.before, self.after = before, after

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.after(F.linear(self.before(x).flatten(1), self.weight))


def dropping(classes: int) -> nn.Module:
    return Through(classes, before=lambda x: F.dropout(x, 0.1, training=True))


def normalizing(classes: int) -> nn.Module:
    return Through(classes, before=lambda x: F.batch_norm(x, None, None, training=True))


def softmax(classes: int) -> nn.Module:
    return Through(classes, after=lambda x: x.softmax(1))


def sigmoid(classes: int) -> nn.Module:
    return Through(classes, after=torch.sigmoid)


def plain(classes: int) -> nn.Module:
    return Through(classes)


def log_softmax(classes: int) -> nn.Module:
    return Through(classes, after=lambda x: x.log_softmax(1))


def positive(classes: int) -> nn.Module:
    """Logits that happen to be positive and small."""
    return Through(classes, after=lambda x: x.abs() / 10)


def constant(classes: int) -> nn.Module:
    """Logits within 0..1 that sum to more than 1."""
    return Through(classes, after=lambda x: 0.3 + 0 * x)


def half(classes: int) -> nn.Module:
    return Through(classes).half()


def double(classes: int) -> nn.Module:
    return Through(classes).double()


def overflowing(classes: int) -> nn.Module:
    return Through(classes, after=lambda x: x / 0)


UNFIT = {
    "overflowing": "returns logits that are not finite",
    "dropping": "returns other logits when the same images are passed again",
    "normalizing": "returns other logits for an image in another batch",
    "softmax": "returns probabilities",
    "sigmoid": "returns values in 0..1, as a sigmoid does",
}


@pytest.mark.parametrize("name", UNFIT)
def test_a_teacher_that_gives_no_logits_of_the_image_is_refused(name: str, kdpipe: Kdpipe, tmp_path: Path) -> None:
    refused(kdpipe(*CACHE, "--teacher", f"{HERE}:{name}", *OF_DATA, "--out", tmp_path / "x.zarr"), UNFIT[name])
    live = ("train-student", *LIMITS, "--student", "resnet8", "--epochs", 1, "--device", "cpu")
    refused(kdpipe(*live, "--teacher", f"{HERE}:{name}", *OF_DATA, "--out", tmp_path / "run"), UNFIT[name])
    assert list(tmp_path.iterdir()) == []


def test_each_teacher_of_a_mean_is_checked(kdpipe: Kdpipe, tmp_path: Path) -> None:
    both = (*("--teacher", f"{HERE}:softmax", "--teacher", f"{HERE}:plain"), "--average", *OF_DATA)
    refused(kdpipe(*CACHE, *both, "--out", tmp_path / "x.zarr"), "softmax returns probabilities")
    given = kdpipe(*CACHE, *both, "--outputs", "probabilities", "--out", tmp_path / "x.zarr")
    refused(given, "plain returns no probabilities: its rows do not sum to 1")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["plain", "log_softmax", "positive", "constant"])
def test_logits_that_happen_to_be_near_are_taken(name: str, kdpipe: Kdpipe, tmp_path: Path) -> None:
    assert kdpipe(*CACHE, "--teacher", f"{HERE}:{name}", *OF_DATA, "--out", tmp_path / "x.zarr").code == 0


@pytest.mark.parametrize(("name", "dtype"), [("half", "float16"), ("double", "float64")])
def test_a_teacher_of_another_precision_is_converted(name: str, dtype: str, kdpipe: Kdpipe, tmp_path: Path) -> None:
    outcome = kdpipe(*CACHE, "--teacher", f"{HERE}:{name}", *OF_DATA, "--out", tmp_path / "x.zarr")
    assert outcome.code == 0
    assert len([line for line in outcome.err.splitlines() if f"has weights in {dtype}" in line]) == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_no_number_is_named(value: float, built: Built, kdpipe: Kdpipe, tmp_path: Path) -> None:
    state = load_file(built.weights)
    key = next(key for key in state if key.endswith("weight"))
    state[key].view(-1)[3] = value
    save_file(state, tmp_path / "w.safetensors", {"mean": "0.5,0.5,0.5", "std": "0.5,0.5,0.5"})
    outcome = kdpipe(
        *CACHE, "--teacher", "resnet8", "--weights", tmp_path / "w.safetensors", "--out", tmp_path / "x.zarr"
    )
    refused(outcome, f"w.safetensors: the weights are damaged: {key} holds NaN or infinity")
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]


@pytest.fixture
def bare(built: Built, tmp_path: Path) -> Path:
    """Weights without mean and std."""
    (tmp_path / "w").mkdir()
    save_file(load_file(built.weights), tmp_path / "w" / "w.safetensors")
    return tmp_path / "w" / "w.safetensors"


def test_weights_without_statistics_do_not_take_those_of_the_images_at_hand(
    bare: Path, kdpipe: Kdpipe, tmp_path: Path
) -> None:
    teacher = ("--teacher", "resnet8", "--weights", bare)
    refused(kdpipe(*CACHE, *teacher, "--out", tmp_path / "x.zarr"), "give its --mean and --std, or --statistics data")
    given = kdpipe(*CACHE, *teacher, "--mean", "0.5,0.5,0.5", "--std", "0.2,0.2,0.2", "--out", tmp_path / "x.zarr")
    assert given.code == 0
    assert "resnet8 takes images of 32 px; mean and std: --mean and --std." in given.err


def test_the_statistics_of_the_data_are_recorded_once(kdpipe: Kdpipe, tmp_path: Path, pictures: Path) -> None:
    """Other images at hand are another dataset then, not another teacher."""
    teacher = ("--teacher", f"{HERE}:plain", "--input-size", 32, *OF_DATA)
    shared = (
        "cache-teacher",
        "--data",
        f"folder:{pictures}",
        *teacher,
        "--device",
        "cpu",
        "--out",
        tmp_path / "x.zarr",
    )
    first = kdpipe(*shared, "--views", 0)
    assert first.code == 0
    assert f"mean and std: the statistics of folder:{pictures}." in first.err
    recorded = read(tmp_path / "x.zarr").fingerprint.teacher.preset
    fewer = kdpipe(*shared, "--views", 0, "--limit-train", 4)
    assert fewer.code == 0
    assert "is sealed and has all of these samples" in fewer.err
    again = kdpipe(*shared, "--views", 1)
    assert again.code == 0
    assert f"mean and std: those that {tmp_path / 'x.zarr'} records." in again.err
    assert read(tmp_path / "x.zarr").fingerprint.teacher.preset == recorded


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Photographs of different sizes."""
    folder = tmp_path / "pictures"
    for number in range(12):
        path = folder / ("train", "test")[number % 2] / ("a", "b")[number // 2 % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40 + number, 50), (20 * number, 100, 50)).save(path)
    return folder


def test_a_size_that_nothing_says_must_be_given(kdpipe: Kdpipe, pictures: Path, tmp_path: Path) -> None:
    data = ("--data", f"folder:{pictures}", "--device", "cpu")
    cache = ("cache-teacher", *data, "--teacher", f"{HERE}:plain", *OF_DATA, "--views", 0, "--out", tmp_path / "x.zarr")
    refused(kdpipe(*cache), "nothing says which size of images", "--input-size")
    assert "takes images of 32 px" in kdpipe(*cache, "--input-size", 32).err
    train = ("train-student", *data, "--student", f"{HERE}:plain", "--epochs", 1, "--out", tmp_path / "run")
    refused(kdpipe(*train), "nothing says which size of images", "--input-size")
    zoo = kdpipe("train-student", *data, "--student", "resnet8", "--epochs", 1, "--out", tmp_path / "zoo")
    assert zoo.code == 0
    assert "resnet8 takes images of 32 px: those of" in zoo.err


def test_a_torchvision_file_has_the_published_preset(tmp_path: Path) -> None:
    torch.manual_seed(0)
    weights = tmp_path / "w.pth"
    torch.save(models.create("torchvision:squeezenet1_1", 10).state_dict(), weights)
    model = models.load(
        "torchvision:squeezenet1_1", num_classes=10, weights=weights, fallback_statistics=None, fallback_size=None
    )
    assert model.preset == models.Preset(224, 256, "bilinear", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert model.preset_source == "torchvision IMAGENET1K_V1"


def test_a_pickle_as_weights_runs_no_code(kdpipe: Kdpipe, tmp_path: Path) -> None:
    weights, marker = tmp_path / "w.pth", tmp_path / "ran"
    torch.save({"state_dict": Marking(marker)}, weights)
    outcome = kdpipe(*CACHE, "--teacher", "resnet8", "--weights", weights, "--out", tmp_path / "x.zarr")
    refused(outcome, "w.pth", "could run code; save the state_dict() alone")
    assert not marker.exists()


class Marking:
    """Creates a directory when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        import os

        return os.mkdir, (str(self.marker),)

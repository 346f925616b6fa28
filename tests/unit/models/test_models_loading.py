"""A loaded model has weights, a digest, and a preset from the first source that records one."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torchvision import models as vision

from kdpipe import models
from kdpipe.errors import ModelError, ParamsError

PRESET = models.Preset(32, 36, "bicubic", (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616))
DATASET = ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def unasked() -> Any:
    raise AssertionError("the dataset's statistics are not needed")


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.manual_seed(5)
    path = tmp_path / "w.safetensors"
    network = models.create("resnet8", 3)
    models.save_weights(path, network, architecture="resnet8", preset=PRESET, classes=["a", "b", "c"])
    return path


def test_weights_bring_preset_and_classes(saved: Path) -> None:
    model = models.load("resnet8", num_classes=3, weights=saved, fallback_statistics=unasked)
    assert model.preset == PRESET
    assert model.preset_source == "weights"
    assert model.classes == ("a", "b", "c")
    assert model.parameters == models.count_parameters(model.module)
    assert not any(part.training for part in model.module.modules())


def test_flags_win_and_resize_follows_size(saved: Path) -> None:
    model = models.load(
        "resnet8",
        num_classes=3,
        weights=str(saved),
        mean=(0.5, 0.5, 0.5),
        std=[0.25, 0.25, 0.25],
        size=64,
        interpolation="bilinear",
        fallback_statistics=unasked,
    )
    assert model.preset == models.Preset(64, 72, "bilinear", (0.5,) * 3, (0.25,) * 3)
    assert model.preset_source == "flags"


def test_a_size_flag_leaves_the_statistics_of_the_weights(saved: Path) -> None:
    model = models.load("resnet8", num_classes=3, weights=saved, size=32, fallback_statistics=unasked)
    assert model.preset == PRESET
    assert model.preset_source == "weights"


def test_the_dataset_s_statistics_come_last(tmp_path: Path) -> None:
    torch.save(models.create("resnet8", 3).state_dict(), tmp_path / "w.pt")
    model = models.load(
        "resnet8",
        num_classes=3,
        weights=tmp_path / "w.pt",
        fallback_statistics=lambda: DATASET,
        fallback_size=48,
    )
    assert model.preset == models.Preset(48, 48, "bilinear", *DATASET)
    assert model.preset_source == "dataset"
    assert model.classes is None


@pytest.mark.parametrize(
    "flags",
    [
        {"mean": (0.5, 0.5, 0.5)},
        {"std": (0.5, 0.5, 0.5)},
        {"mean": (0.5,), "std": (0.5, 0.5, 0.5)},
        {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.0, 0.5)},
        {"mean": (0.5, float("nan"), 0.5), "std": (0.5, 0.5, 0.5)},
        {"size": 0},
        {"interpolation": "lanczos"},
    ],
)
def test_unusable_flags_are_refused(flags: dict[str, Any]) -> None:
    with pytest.raises(ParamsError):
        models.load("resnet8", num_classes=3, fallback_statistics=unasked, **flags)


def test_an_unusable_header_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    state = models.create("resnet8", 3).state_dict()
    save_file(state, tmp_path / "w.safetensors", metadata={"mean": "0.5,0.5", "std": "1,1,1"})
    with pytest.raises(ModelError, match="unusable preset: expected three"):
        models.load("resnet8", num_classes=3, weights=tmp_path / "w.safetensors", fallback_statistics=unasked)


def test_the_class_count_of_the_header_counts(saved: Path) -> None:
    with pytest.raises(ModelError, match="the weights have 3 classes, the dataset has 10"):
        models.load("resnet8", num_classes=10, weights=saved, fallback_statistics=unasked)


def test_the_digest_is_of_architecture_and_weights(saved: Path, tmp_path: Path) -> None:
    def digest(weights: Path) -> str:
        return models.load("resnet8", num_classes=3, weights=weights, fallback_statistics=lambda: DATASET).digest

    state = models.load("resnet8", num_classes=3, weights=saved, fallback_statistics=unasked).module.state_dict()
    torch.save({**state, "bn1.num_batches_tracked": torch.tensor(9)}, tmp_path / "same.pt")
    torch.save({**state, "fc.bias": state["fc.bias"] + 1e-6}, tmp_path / "other.pt")
    assert len(digest(saved)) == 32
    assert digest(saved) == digest(saved) == digest(tmp_path / "same.pt")
    assert digest(saved) != digest(tmp_path / "other.pt")


def test_the_probe_is_short_fixed_and_tells_models_apart(saved: Path) -> None:
    model = models.load("resnet8", num_classes=3, weights=saved, fallback_statistics=unasked)
    probed = models.probe(model)
    assert probed == models.probe(model)
    assert len(probed) == 3
    assert len(models.probe(model, num=2)) == 2
    assert probed == [float(f"{value:.4g}") for value in probed]
    with torch.no_grad():
        model.module.get_parameter("conv1.weight").mul_(-1)
    assert probed != models.probe(model)


def test_torchvision_weights_bring_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    state = vision.squeezenet1_1(weights=None).state_dict()
    asked: list[str] = []

    def download(url: str, **_: Any) -> dict[str, torch.Tensor]:
        asked.append(url)
        return state

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", download)
    for weights in ("IMAGENET1K_V1", "DEFAULT"):
        model = models.load("torchvision:squeezenet1_1", num_classes=1000, weights=weights, fallback_statistics=unasked)
        imagenet = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        assert model.preset == models.Preset(224, 256, "bilinear", *imagenet)
        assert model.preset_source == "torchvision IMAGENET1K_V1"
        assert model.classes is not None
        assert model.classes[0] == "tench"
        assert not model.module.training
    assert asked == [vision.SqueezeNet1_1_Weights.DEFAULT.url] * 2


def test_a_failed_download_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(url: str, **_: Any) -> Any:
        raise OSError("Name or service not known\nand more")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", download)
    with pytest.raises(ModelError, match=r"cannot get https://.*: Name or service not known$"):
        models.load("torchvision:squeezenet1_1", num_classes=1000, weights="DEFAULT", fallback_statistics=unasked)


def test_torchvision_classes_are_checked_before_the_download(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", unasked)
    with pytest.raises(ModelError, match="the weights have 1000 classes, the dataset has 10"):
        models.load("torchvision:resnet50", num_classes=10, weights="DEFAULT", fallback_statistics=unasked)


def test_unknown_torchvision_weights_are_listed() -> None:
    with pytest.raises(ModelError, match=r"did you mean 'IMAGENET1K_V2'\? \(published: IMAGENET1K_V1, "):
        models.load("torchvision:resnet50", num_classes=1000, weights="IMAGENET_V2", fallback_statistics=unasked)


def test_torchvision_without_weights_takes_224_pixels() -> None:
    model = models.load("torchvision:squeezenet1_1", num_classes=4, fallback_statistics=lambda: DATASET)
    assert model.preset == models.Preset(224, 256, "bilinear", *DATASET)
    assert model.preset_source == "dataset"


def test_torchvision_weights_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "own.pth"
    network = models.create("torchvision:squeezenet1_1", 4)
    torch.save({"state_dict": network.state_dict()}, path)
    model = models.load(
        "torchvision:squeezenet1_1",
        num_classes=4,
        weights=str(path),
        size=160,
        fallback_statistics=lambda: DATASET,
    )
    assert (model.preset.size, model.preset.resize) == (160, 183)
    assert torch.equal(model.module.state_dict()["features.0.weight"], network.state_dict()["features.0.weight"])


def test_a_network_for_imagenet_takes_images_as_torchvision_s_do() -> None:
    def geometry(**flags: int) -> tuple[int, int]:
        preset = models.load(
            "MobileNetV1", num_classes=4, fallback_statistics=lambda: DATASET, fallback_size=48, **flags
        ).preset
        return preset.size, preset.resize

    assert (geometry(), geometry(size=32)) == ((224, 256), (32, 37))


def test_the_header_of_the_weights_precedes_the_package(tmp_path: Path) -> None:
    path, name = tmp_path / "own.safetensors", "torchvision:squeezenet1_1"
    network = models.create(name, 3)
    models.save_weights(path, network, architecture=name, preset=PRESET, classes=["a", "b", "c"])
    model = models.load(name, num_classes=3, weights=path, fallback_statistics=unasked)
    assert model.preset == PRESET
    assert model.preset_source == "weights"


class Tiny(nn.Module):
    """Stands for a model of timm."""

    def __init__(self, num_classes: int = 4) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.fc = nn.Linear(3, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.fc(x.mean((2, 3)))
        return logits


@pytest.fixture
def timm(monkeypatch: pytest.MonkeyPatch) -> None:
    package, data = ModuleType("timm"), ModuleType("timm.data")
    package.is_model = lambda name: name == "tiny"  # type: ignore[attr-defined]
    package.list_models = lambda: ["tiny"]  # type: ignore[attr-defined]
    package.create_model = lambda name, pretrained, **options: Tiny(**options)  # type: ignore[attr-defined]
    config = {
        "input_size": (3, 160, 160),
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "interpolation": "bicubic",
        "crop_pct": 0.95,
    }
    data.resolve_data_config = lambda args, model: config  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "timm", package)
    monkeypatch.setitem(sys.modules, "timm.data", data)


@pytest.mark.usefixtures("timm")
@pytest.mark.parametrize("weights", [None, "DEFAULT"])
def test_timm_brings_its_configuration(weights: str | None) -> None:
    model = models.load("timm:tiny", num_classes=4, weights=weights, fallback_statistics=unasked)
    assert model.preset == models.Preset(160, 168, "bicubic", (0.5,) * 3, (0.5,) * 3)
    assert model.preset_source == "timm"


@pytest.mark.usefixtures("timm")
def test_timm_weights_with_other_classes_are_refused() -> None:
    with pytest.raises(ModelError, match="the weights have 4 classes, the dataset has 10"):
        models.load("timm:tiny", num_classes=10, weights="DEFAULT", fallback_statistics=unasked)


@pytest.mark.parametrize(
    ("built", "said"),
    [
        (lambda n: Tiny(n + 1), "the model has 5 outputs, the dataset has 4 classes"),
        (lambda n: nn.Flatten(0), "for two samples, expected"),
        (lambda n: nn.Linear(7, n), "does not take images of 3x32x32"),
        (lambda n: nn.Unflatten(0, (1, 2)), "for two samples, expected"),
    ],
)
def test_own_code_is_tried_on_two_images(monkeypatch: pytest.MonkeyPatch, built: Any, said: str) -> None:
    monkeypatch.setitem(sys.modules, "own_code", SimpleNamespace(build=built))  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=said):
        models.load("own_code:build", num_classes=4, fallback_statistics=lambda: DATASET)


def test_own_code_that_fits_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "own_code", SimpleNamespace(build=Tiny))  # type: ignore[arg-type]
    model = models.load("own_code:build", num_classes=4, fallback_statistics=lambda: DATASET)
    assert len(models.probe(model)) == 4

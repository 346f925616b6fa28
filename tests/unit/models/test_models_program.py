"""Programs of torch.export are teachers without code."""

import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from kdpipe import models
from kdpipe.errors import ModelError

DATASET = ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def export(path: Path, module: nn.Module, image: torch.Tensor, **dynamic: Any) -> str:
    program = torch.export.export(module.eval(), (image,), **dynamic)
    torch.export.save(program, path)
    return f"file:{path}"


FREE_BATCH = {"dynamic_shapes": ({0: torch.export.Dim.DYNAMIC},)}


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return models.create("resnet8", 4).eval()


@pytest.fixture(scope="module")
def name(tmp_path_factory: pytest.TempPathFactory, network: nn.Module) -> str:
    return export(tmp_path_factory.mktemp("program") / "m.pt2", network, torch.zeros(2, 3, 32, 32), **FREE_BATCH)


def load(name: str, **options: Any) -> models.Model:
    options = {"num_classes": 4, "fallback_statistics": lambda: DATASET, "fallback_size": 48, **options}
    return models.load(name, **options)


def test_a_program_is_loaded_with_its_own_size(name: str, network: nn.Module) -> None:
    model = load(name)
    assert model.preset == models.Preset(32, 32, "bilinear", *DATASET)
    assert model.preset_source == "dataset"
    assert model.parameters == models.count_parameters(network)
    assert models.macs(model.module, 32) == models.macs(network, 32)
    images = torch.randn(5, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model.module(images), network(images))


def test_switching_modes_is_harmless(name: str) -> None:
    model = load(name)
    before = models.probe(model)
    model.module.train()
    assert not model.module.training
    assert models.probe(model) == before == models.probe(load(name))
    model.module.eval()


def test_the_digest_is_of_the_file(name: str, tmp_path: Path, network: nn.Module) -> None:
    copy = tmp_path / "elsewhere.pt2"
    copy.write_bytes(Path(name.removeprefix("file:")).read_bytes())
    assert load(name).digest == load(f"file:{copy}").digest
    torch.manual_seed(1)
    other = export(tmp_path / "other.pt2", models.create("resnet8", 4), torch.zeros(2, 3, 32, 32), **FREE_BATCH)
    assert load(name).digest != load(other).digest


def test_a_program_for_any_size_gets_the_fallback(tmp_path: Path) -> None:
    free = torch.export.Dim.DYNAMIC
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    name = export(tmp_path / "m.pt2", module, torch.zeros(2, 3, 16, 16), dynamic_shapes=({0: free, 2: free, 3: free},))
    assert load(name).preset.size == 48
    assert load(name, size=20).preset.size == 20


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num_classes": 10}, "the model has 4 outputs, the dataset has 10 classes"),
        ({"size": 40}, "does not take images of 3x40x40"),
        ({"weights": "w.pt"}, "carries its own weights; leave out w.pt"),
    ],
)
def test_what_does_not_fit_is_one_line(name: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError) as caught:
        load(name, **options)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_fixed_batch_is_refused(tmp_path: Path) -> None:
    name = export(tmp_path / "m.pt2", nn.Sequential(nn.Flatten(), nn.Linear(48, 4)), torch.zeros(2, 3, 4, 4))
    with pytest.raises(ModelError, match="only takes batches of 2; export it with a dynamic first dimension"):
        load(name)


def test_another_input_is_refused(tmp_path: Path) -> None:
    name = export(tmp_path / "m.pt2", nn.Linear(3, 4), torch.zeros(2, 3), **FREE_BATCH)
    with pytest.raises(ModelError, match="expected a program with one input"):
        load(name)
    gray = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    name = export(tmp_path / "gray.pt2", gray, torch.zeros(2, 1, 8, 8), **FREE_BATCH)
    with pytest.raises(ModelError, match="expected square RGB images, the program takes 1x8x8"):
        load(name)


@pytest.mark.parametrize("content", [None, b"", b"nonsense"])
def test_missing_and_damaged_files_are_one_line(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "m.pt2"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError) as caught:
        load(f"file:{path}")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[]", "expected a JSON object"),
        ('{"mean": 1}', "its entry kdpipe.json is damaged: expected texts"),
        ('{"classes": "[1"}', "its header records unusable classes"),
        ('{"input_size": "99999999999"}', "its header records an unusable preset"),
        ("{" * 200, "it is nested deeper than 64 levels"),
        ('{"classes": "a,b"}', "the weights have 2 classes, the dataset has 4"),
    ],
)
def test_a_description_is_read_with_care(name: str, tmp_path: Path, text: str, said: str) -> None:
    """Of the texts that ``kdpipe export`` adds; others are passed over."""
    copy = tmp_path / "m.pt2"
    copy.write_bytes(Path(name.removeprefix("file:")).read_bytes())
    with zipfile.ZipFile(copy, "a") as archive:
        archive.writestr(f"{archive.namelist()[0].partition('/')[0]}/extra/kdpipe.json", text)
        archive.writestr(f"{archive.namelist()[0].partition('/')[0]}/extra/other.json", "{")
    with pytest.raises(ModelError) as refused:
        load(f"file:{copy}")
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_program_of_pixels_normalizes_them_itself(tmp_path: Path, network: nn.Module) -> None:
    class OfPixels(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.network(images.float() / 255 - 0.5)

    image = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    model = load(export(tmp_path / "m.pt2", OfPixels(), image, **FREE_BATCH))
    pixels = torch.arange(256, dtype=torch.uint8).repeat(48).view(4, 3, 32, 32)
    with torch.no_grad():
        found = model.module(model.preset.normalize(pixels))
        torch.testing.assert_close(found, network(pixels.float() / 255 - 0.5), rtol=0, atol=0)
    assert (model.preset_source, model.remarks) == ("program", ())

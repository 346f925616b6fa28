"""The penultimate features of classifiers, and classifiers without any."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from kdpipe.models import create, evaluating, find_penultimate, load, names

ZOO_DIMS = {
    **{f"resnet{depth}": 64 for depth in (8, 14, 20, 32, 44, 56, 110)},
    **{"resnet8x4": 256, "resnet32x4": 256, "ResNet18": 512, "ResNet50": 2048},
    **{f"wrn_{depth}_{width}": 64 * width for depth in (16, 40) for width in (1, 2)},
    **{f"vgg{depth}": 512 for depth in (8, 11, 13, 16, 19)},
    **{"MobileNetV2": 1280, "ShuffleV1": 960, "ShuffleV2": 1024, "MobileNetV1": 1024},
}
"""Channels of the last stage in the papers' tables."""


@pytest.mark.parametrize("name", names())
def test_the_zoo_s_features_have_the_published_lengths_and_make_the_logits(name: str) -> None:
    module = create(name, 7).eval()
    found = find_penultimate(module, 32)
    assert found is not None
    assert found.dim == ZOO_DIMS[name]
    layer = module.get_submodule(found.layer)
    assert isinstance(layer, nn.Linear)
    assert (layer.in_features, layer.out_features) == (found.dim, 7)


@pytest.mark.parametrize(
    ("name", "layer", "dim"),
    [("resnet18", "fc", 512), ("mobilenet_v3_small", "classifier.3", 1024), ("vgg11_bn", "classifier.6", 4096)],
)
def test_torchvision_s_classifiers(name: str, layer: str, dim: int) -> None:
    found = find_penultimate(create(f"torchvision:{name}", 5), 64)
    assert found is not None
    assert (found.layer, found.dim) == (layer, dim)


class _Head(nn.Module):
    """A small network that ends in one of several ways."""

    def __init__(self, end: str) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 6, 3, 2, 1)
        self.linear, self.second = nn.Linear(6, 4), nn.Linear(6, 4)
        self.conv = nn.Conv2d(6, 4, 1)
        self.end = end

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.body(x)
        pooled = x.mean((2, 3))
        match self.end:
            case "linear, then dropout":
                return torch.dropout(self.linear(pooled), 0.5, self.training)
            case "1x1 convolution of pooled channels":
                return self.conv(pooled[:, :, None, None]).flatten(1)
            case "another layer runs afterwards":
                logits = self.linear(pooled)
                self.second(pooled)
                return logits
            case "convolution, then pooling":
                return self.conv(x).mean((2, 3))
            case "changed in place":
                return self.linear(pooled).abs_()
            case "mean of two heads":
                return (self.linear(pooled) + self.second(pooled)) / 2
            case _:
                return pooled[:, :4]


@pytest.mark.parametrize(
    ("end", "layer"),
    [
        ("linear, then dropout", "linear"),
        ("1x1 convolution of pooled channels", "conv"),
        ("another layer runs afterwards", "linear"),
        ("convolution, then pooling", None),
        ("changed in place", None),
        ("mean of two heads", None),
        ("no layer at all", None),
    ],
)
def test_only_a_layer_whose_output_is_the_logits_counts(end: str, layer: str | None) -> None:
    torch.manual_seed(0)
    found = find_penultimate(_Head(end), 8)
    assert (found and found.layer) == layer
    if found is not None:
        assert found.dim == 6


def test_a_search_leaves_no_trace() -> None:
    module = create("resnet8", 10)
    module.bn1.eval()
    modes = {name: part.training for name, part in module.named_modules()}
    before = {key: value.clone() for key, value in module.state_dict().items()}
    find_penultimate(module, 32)
    assert {name: part.training for name, part in module.named_modules()} == modes
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    assert not any(part._forward_hooks for part in module.modules())


def test_a_program_has_no_penultimate_features(tmp_path: Path) -> None:
    module = create("resnet8", 10).eval()
    program = torch.export.export(module, (torch.zeros(2, 3, 32, 32),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    torch.export.save(program, tmp_path / "teacher.pt2")
    half = (0.5, 0.5, 0.5)
    model = load(f"file:{tmp_path / 'teacher.pt2'}", num_classes=10, fallback_statistics=lambda: (half, half))
    assert model.penultimate is None


def test_evaluation_mode_is_left_as_it_was_found() -> None:
    """A frozen batch norm stays in evaluation mode inside a network that trains, and the reverse."""
    module = create("resnet8", 10).train()
    module.bn1.eval()
    module.layer1[0].eval()
    module.layer1[0].bn2.train()
    modes = {name: part.training for name, part in module.named_modules()}
    assert modes[""]
    assert not modes["bn1"]
    assert modes["layer1.0.bn2"]
    with evaluating(module):
        assert not any(part.training for part in module.modules())
    assert {name: part.training for name, part in module.named_modules()} == modes
    with pytest.raises(RuntimeError, match="stop"), evaluating(module):
        raise RuntimeError("stop")
    assert {name: part.training for name, part in module.named_modules()} == modes

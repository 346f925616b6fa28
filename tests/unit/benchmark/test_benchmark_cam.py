"""Grad-CAM against gradients that the test computes itself, and the overlap of two maps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kdpipe import models
from kdpipe.benchmark.cam import BY_CHANCE, explain, in_frame, last_positions, overlap
from kdpipe.models import Model, Preset
from kdpipe.views import Geometry, Renderer
from tests.students import PRESET, digits


class Network(nn.Module):
    """Two convolutions, of which the last is followed by work in place."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first = nn.Conv2d(3, 4, 3, padding=1, stride=2)
        self.second = nn.Conv2d(4, 5, 3, padding=1)
        self.head = nn.Linear(5, 10)

    def after(self, activations: torch.Tensor) -> torch.Tensor:
        return self.head(F.relu(activations, inplace=True).mean((2, 3)))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.after(self.second(self.first(images).relu()))


def _model(module: nn.Module, preset: Preset = PRESET) -> Model:
    return Model("network", module.eval(), preset, "flags", None, "00")


def _renderer(preset: Preset = PRESET) -> Renderer:
    return Renderer(digits(6, "test"), "none", seed=0, geometry=Geometry.of(preset))


@pytest.mark.parametrize("classes", [None, np.array([0, 1, 2, 3, 4, 5])])
def test_maps_are_those_of_the_paper(classes: np.ndarray | None) -> None:
    network = Network()
    for parameter in network.parameters():
        parameter.requires_grad_(False)  # as in loaded weights
    found = explain(_model(network), _renderer(), classes)
    images = PRESET.normalize(_renderer()(range(6), 0))
    logits = network(images)
    assert (found.predicted == logits.argmax(1).numpy()).all()
    for index, wanted in enumerate(found.predicted if classes is None else classes):
        activations = network.second(network.first(images[index : index + 1]).relu()).requires_grad_()
        (gradient,) = torch.autograd.grad(network.after(activations.clone())[0, wanted], activations)
        weights = [gradient[0, channel].mean() for channel in range(5)]  # equation 1
        raw = F.relu(sum(weight * activations[0, channel] for channel, weight in enumerate(weights)))  # equation 2
        expected = F.interpolate(raw[None, None], size=(64, 64), mode="bilinear", align_corners=False)[0, 0].detach()
        expected = expected / expected.max() if expected.max() > 0 else expected
        assert found.maps[index] == pytest.approx(expected.numpy(), abs=1e-5)
    assert found.layer == "second"


def test_images_are_explained_in_batches_as_alone() -> None:
    network = _model(Network())
    many = Renderer(digits(70, "test"), "none", seed=0, geometry=Geometry.of(PRESET))
    together = explain(network, many)
    assert together.maps.shape == (70, 64, 64)
    for index in (0, 63, 64, 69):
        alone = Renderer(many.dataset.subset([index]), "none", seed=0, geometry=Geometry.of(PRESET))
        found = explain(network, alone, together.predicted[index : index + 1])
        assert found.maps[0] == pytest.approx(together.maps[index], abs=1e-5)


def test_explaining_changes_nothing() -> None:
    network = Network().train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    explain(Model("network", network, PRESET, "flags", None, "00"), _renderer())
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert not network.second._forward_hooks


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_1", "vgg8", "MobileNetV2", "ShuffleV2"])
def test_the_last_layer_with_positions_is_found(name: str) -> None:
    module = models.create(name, 10)
    shapes = models.layers(module, 32)
    found = last_positions(module, 32)
    assert found is not None
    channels, height, width = shapes[found]
    assert (channels > 3, height * width > 1) == (True, True)
    later = list(shapes)[list(shapes).index(found) + 1 :]
    assert all(len(shapes[each]) < 3 or shapes[each][1:] == (1, 1) for each in later)
    assert last_positions(module, 32) == found


def test_networks_without_positions_are_not_explained() -> None:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 10))
    assert explain(_model(flat), _renderer()) is None


def test_overlap_is_that_of_the_largest_fifth() -> None:
    draw = np.random.default_rng(0)
    first = draw.random((3, 64, 64)).astype(np.float32)
    assert overlap(first, first) == 1
    assert overlap(first, 1 - first) == 0
    count = round(0.2 * 64 * 64)
    sets = [set(np.argsort(-each.ravel())[:count]) for each in (first[0], first[1])]
    expected = len(sets[0] & sets[1]) / len(sets[0] | sets[1])
    assert overlap(first[:1], first[1:2]) == pytest.approx(expected)
    many, more = (draw.random((100, 64, 64)).astype(np.float32) for _ in range(2))
    assert overlap(many, more) == pytest.approx(BY_CHANCE, abs=0.005)


def test_an_empty_map_does_not_count() -> None:
    first = np.zeros((2, 64, 64), np.float32)
    first[0, :8] = 1
    assert overlap(first, first) == 1
    assert overlap(first[1:], first[1:]) is None
    narrow = first.copy()
    narrow[0, 4:] = 0
    assert overlap(first, narrow) == pytest.approx(0.5)  # zeros are in no set


def test_maps_are_compared_where_both_networks_look() -> None:
    whole, middle = Geometry(32, 32, "bilinear"), Geometry(32, 64, "bilinear")
    maps = np.zeros((1, 64, 64), np.float32)
    maps[0, 16:48, 16:48] = 1
    inner = in_frame(maps, whole, middle)
    assert (inner == 1).all()
    outer = in_frame(np.ones((1, 64, 64), np.float32), middle, whole)
    assert (outer == maps).all()
    assert in_frame(maps, whole, whole) is maps

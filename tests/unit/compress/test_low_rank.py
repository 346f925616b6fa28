"""Factored layers against numpy's singular values, and how much of a network they leave."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from kdpipe.compress.low_rank import decompose, factored
from kdpipe.errors import ModelError
from kdpipe.models.compressed import full_rank
from tests.unit.compress.test_pruning import counted, network

LAYERS = {
    "plain": nn.Conv2d(6, 10, 3, padding=1, bias=False),
    "strided": nn.Conv2d(6, 10, 3, stride=2, padding=(1, 0), dilation=2),
    "reflected": nn.Conv2d(4, 30, 3, padding=1, padding_mode="reflect"),
    "pointwise": nn.Conv2d(12, 7, 1),
    "linear": nn.Linear(20, 9),
    "wide": nn.Linear(5, 9, bias=False),
}


def _images(layer: nn.Module) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    if isinstance(layer, nn.Conv2d):
        return torch.rand(2, layer.in_channels, 9, 9, generator=generator)
    assert isinstance(layer, nn.Linear)
    return torch.rand(4, layer.in_features, generator=generator)


@pytest.mark.parametrize("name", LAYERS)
def test_at_full_rank_nothing_changes(name: str) -> None:
    layer = LAYERS[name]
    pair = factored(layer, full_rank(layer))  # type: ignore[arg-type]
    with torch.no_grad():
        assert torch.allclose(pair(_images(layer)), layer(_images(layer)), atol=1e-5)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("rank", [1, 3])
def test_at_lower_rank_the_error_is_that_of_the_dropped_singular_values(name: str, rank: int) -> None:
    layer = LAYERS[name]
    pair = factored(layer, rank)  # type: ignore[arg-type]
    weight = layer.weight.detach().double().flatten(1).numpy()  # type: ignore[operator]
    first, second = (part.weight.detach().double().flatten(1).numpy() for part in pair)  # type: ignore[operator]
    assert first.shape[0] == second.shape[1] == rank
    dropped = np.linalg.svd(weight, compute_uv=False)[rank:]
    assert np.linalg.norm(second @ first - weight) == pytest.approx(np.sqrt((dropped**2).sum()), abs=1e-5)


@pytest.mark.parametrize("name", ["resnet14", "wrn_16_2", "MobileNetV2"])
@pytest.mark.parametrize("fraction", [0.2, 0.4])
def test_the_target_is_reached(name: str, fraction: float) -> None:
    whole = network(name)
    left = counted(decompose(whole, size=32, fraction=fraction)) / counted(whole)
    assert 1 - fraction - 0.02 < left <= 1 - fraction


def test_parameters_as_cost() -> None:
    whole = network("resnet8")
    smaller = decompose(whole, size=32, fraction=0.4, by="params")
    sizes = [sum(each.numel() for each in module.parameters()) for module in (smaller, whole)]
    assert 0.58 < sizes[0] / sizes[1] <= 0.6


def test_all_factored_layers_have_the_same_relative_error() -> None:
    """No layer keeps a singular value that the others would have dropped."""
    whole = network("resnet14")
    smaller = decompose(whole, size=32, fraction=0.5)
    kept, needed = [], []
    for name, layer in whole.named_modules():
        pair = dict(smaller.named_modules()).get(name)
        if isinstance(layer, nn.Conv2d | nn.Linear) and isinstance(pair, nn.Sequential):
            squares = np.linalg.svd(layer.weight.detach().double().flatten(1).numpy(), compute_uv=False) ** 2
            share = squares.cumsum() / squares.sum()
            rank = pair[0].weight.shape[0]
            kept.append(share[rank - 1])
            needed.append(0.0 if rank == 1 else share[rank - 2])
    assert len(kept) > 3
    assert max(needed) < min(kept) + 1e-6


def test_depthwise_convolutions_and_what_would_grow_stay() -> None:
    smaller = decompose(network("MobileNetV2"), size=32, fraction=0.3)
    depthwise = [part for part in smaller.modules() if isinstance(part, nn.Conv2d) and part.groups > 1]
    assert len(depthwise) == 17
    assert isinstance(smaller.get_submodule("classifier.0"), nn.Linear), "the layer of the logits"
    left = counted(decompose(network("resnet8"), size=32, fraction=1e-6))
    assert left <= counted(network("resnet8"))


def test_more_than_there_is_cannot_be_removed() -> None:
    with pytest.raises(
        ModelError, match=r"99.9% of the macs of resnet8 cannot be removed by low rank: \d+\.\d% of them"
    ):
        decompose(network("resnet8"), size=32, fraction=0.999, name="resnet8")

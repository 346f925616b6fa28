"""The penalty on the distance from the parent's weights, against its closed form."""

from __future__ import annotations

import pytest
import torch

from kdpipe.compress.pull import TowardParent
from kdpipe.testing.doubles import small_network
from kdpipe.training.batches import Batch
from kdpipe.training.objective import CrossEntropy
from tests.students import PRESET


def test_the_penalty_and_its_gradient() -> None:
    """Of parameters that are all moved by d, it is ``N d^2 / 2``, and its gradient ``weight * d``."""
    network = small_network(10)
    pixels = torch.randint(256, (4, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    batch = Batch((pixels,), torch.tensor([0, 1, 2, -1]), None, None, {})
    plain, pulled = CrossEntropy(PRESET), TowardParent(CrossEntropy(PRESET), network, 0.3)
    _, terms = pulled(network, batch, pixels)
    assert terms["parent"].item() == 0
    assert terms["loss"].item() == terms["ce"].item()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1
    number = sum(parameter.numel() for parameter in network.parameters())
    _, terms = pulled(network, batch, pixels)
    assert terms["parent"].item() == pytest.approx(number * 0.01 / 2, rel=1e-4)
    assert terms["loss"].item() == pytest.approx(terms["ce"].item() + 0.3 * number * 0.01 / 2, rel=1e-4)
    gradients = torch.autograd.grad(terms["loss"], list(network.parameters()))
    without = torch.autograd.grad(plain(network, batch, pixels)[1]["loss"], list(network.parameters()))
    for gradient, other in zip(gradients, without, strict=True):
        assert torch.allclose(gradient - other, torch.full_like(gradient, 0.03), atol=1e-4)

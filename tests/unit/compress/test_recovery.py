"""Objectives of the recovery, against closed forms, numpy and ONNX Runtime's quantizer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from kdpipe.compress.recovery import Ranges, Rounded, TowardParent, rounded_inputs, rounded_weight
from kdpipe.errors import RunError
from kdpipe.export.onnx import onnx_bytes, quantized
from kdpipe.testing.doubles import StopAfter, differences, small_network
from kdpipe.training.batches import Batch
from kdpipe.training.loop import train
from kdpipe.training.objective import CrossEntropy
from kdpipe.training.runs import RunDirectory
from tests.students import ORDER, PRESET, STEPS, renderer, student

CPU = torch.device("cpu")


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


def test_weights_are_rounded_by_output_channel() -> None:
    weight = (
        torch.randn(5, 3, 3, 3, generator=torch.Generator().manual_seed(0))
        * torch.logspace(-3, 1, 5)[:, None, None, None]
    )
    values = weight.double().numpy().reshape(5, -1)
    scale = np.abs(values).max(axis=1, keepdims=True) / 64
    expected = np.clip(np.rint(values / scale), -64, 64) * scale
    assert np.allclose(rounded_weight(weight).numpy().reshape(5, -1), expected, rtol=1e-5, atol=1e-9)
    assert not rounded_weight(torch.zeros(2, 4)).any()


@pytest.mark.parametrize(("low", "high"), [(0.0, 2.0), (-1.0, 3.0), (-5.0, 0.0)])
def test_inputs_are_rounded_to_256_levels_of_which_one_is_zero(low: float, high: float) -> None:
    values = torch.linspace(-6, 6, 1001)
    scale = (high - low) / 255
    zero = round(-low / scale)
    expected = (np.clip(np.rint(values.double().numpy() / scale) + zero, 0, 255) - zero) * scale
    found = rounded_inputs(values, torch.tensor(low), torch.tensor(high))
    assert np.abs(found.numpy() - expected).max() < scale * 1.01, "a tie may fall to either side"
    assert np.mean(np.abs(found.numpy() - expected) > 1e-5) < 0.01
    assert rounded_inputs(torch.zeros(1), torch.tensor(low), torch.tensor(high)).item() == 0


def test_the_backward_pass_takes_rounding_for_the_identity() -> None:
    weight = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
    factors = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    (rounded_weight(weight) * factors).sum().backward()
    assert weight.grad is not None
    assert torch.equal(weight.grad, factors)


def test_the_ranges_are_moving_averages_that_contain_zero() -> None:
    ranges = Ranges(2)
    ranges.add(1, torch.tensor([1.0, 3.0]))
    assert (ranges.low[1].item(), ranges.high[1].item()) == (0, 3)
    ranges.add(1, torch.tensor([-2.0, 5.0]))
    assert (ranges.low[1].item(), ranges.high[1].item()) == pytest.approx((-0.1, 3.1))
    assert (ranges.low[0].item(), ranges.high[0].item()) == (0, 0)


def test_the_weights_of_the_exported_int8_model_are_those_of_the_training() -> None:
    onnx = pytest.importorskip("onnx")
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 6)
    ).eval()
    images = np.random.default_rng(0).integers(0, 256, (8, 3, 16, 16), dtype=np.uint8)
    graph = onnx.load_from_string(quantized(onnx_bytes(network, PRESET), images)).graph
    tensors = {each.name: onnx.numpy_helper.to_array(each) for each in graph.initializer}
    found = []
    for node in graph.node:
        values = tensors.get(node.input[0])
        if node.op_type == "DequantizeLinear" and values is not None and values.dtype == np.int8 and values.ndim > 1:
            axis = next(each.i for each in node.attribute if each.name == "axis")
            shape = [-1 if place == axis else 1 for place in range(values.ndim)]
            written = values.astype(np.float64) * tensors[node.input[1]].reshape(shape)
            found.append(np.moveaxis(written, axis, 0))
    expected = [rounded_weight(network[place].weight.detach()).numpy() for place in (0, 4)]  # type: ignore[arg-type]
    assert len(found) == 2
    for mine, other in zip(sorted(expected, key=np.size), sorted(found, key=np.size), strict=True):
        assert np.allclose(mine.reshape(mine.shape[0], -1), other.reshape(mine.shape[0], -1), rtol=1e-5, atol=1e-7)


def test_only_training_rounds_and_only_until_it_ends() -> None:
    network = small_network()
    pixels = torch.randint(256, (4, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    batch = Batch((pixels,), torch.tensor([0, 1, 2, 3]), None, None, {})
    images = PRESET.normalize(pixels)
    plain = network.eval()(images)
    training = small_network().train()(images)
    objective = Rounded(CrossEntropy(PRESET), network, device=CPU)
    assert torch.equal(network.eval()(images), plain)
    logits, terms = objective(network.train(), batch, pixels)
    assert 0 < (logits - training).abs().max() < 0.5
    assert terms["loss"].item() == pytest.approx(nn.functional.cross_entropy(logits, batch.labels).item())
    assert (objective.ranges.high > 0).all()
    objective.close()
    network.load_state_dict(small_network().state_dict())
    assert torch.equal(network.train()(images), training)
    assert set(network.state_dict()) == set(small_network().state_dict())


def test_a_rounded_training_that_is_stopped_and_resumed_equals_one_that_was_not(tmp_path: Path) -> None:
    images = renderer()

    def run(name: str, *, resume: bool = False, stop_after: int = 0) -> RunDirectory:
        network = small_network()
        objective = Rounded(TowardParent(CrossEntropy(PRESET), network, 0.01), network, device=CPU)
        trained = student(tmp_path / name, network, objective=objective, images=images)
        train(trained, order=ORDER, resume=resume, should_stop=StopAfter(stop_after))
        return trained.run

    whole = run("whole")
    for step in (3, STEPS, STEPS + 2):
        with pytest.raises(RunError, match="stopped at"):
            run(str(step), stop_after=step)
        resumed = run(str(step), resume=True)
        assert not differences(resumed.load_checkpoint(), whole.load_checkpoint())
        assert not differences(resumed.history(), whole.history())

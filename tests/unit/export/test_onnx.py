"""ONNX models against the networks that they were made of."""

from __future__ import annotations

import logging
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from kdpipe import models
from kdpipe.errors import ModelError
from kdpipe.export.onnx import OPSET, Session, metadata_of, onnx_bytes, quantized
from kdpipe.models import Preset
from kdpipe.testing.doubles import small_network

ort = pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")


def preset(size: int = 32) -> Preset:
    return Preset(size, size, "bilinear", (0.49, 0.48, 0.45), (0.25, 0.24, 0.26))


def images(count: int, size: int = 32, *, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 3, size, size), dtype=np.uint8)


def network(name: str, classes: int = 10) -> nn.Module:
    torch.manual_seed(0)
    module = models.create(name, classes)
    with torch.no_grad():  # running statistics other than 0 and 1
        module(preset().normalize(torch.from_numpy(images(64, seed=1))))
    return module


def expected(module: nn.Module, pixels: np.ndarray) -> np.ndarray:
    """Return the logits in float32, normalized by the formula."""
    mean, std = (np.asarray(each, dtype=np.float32).reshape(1, 3, 1, 1) for each in (preset().mean, preset().std))
    normalized = (pixels.astype(np.float32) / np.float32(255) - mean) / std
    with models.evaluating(module), torch.no_grad():
        return module(torch.from_numpy(normalized)).numpy()


@pytest.fixture(scope="module")
def resnet8() -> tuple[nn.Module, bytes]:
    module = network("resnet8")
    return module, onnx_bytes(module, preset(), names=["a\n", "b"], metadata={"licence": "CC0-1.0"})


def agree(module: nn.Module, written: bytes) -> None:
    session, pixels = Session(written, threads=1), images(5)
    for count in (1, 3, 5):
        found = session(pixels[:count])
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected(module, pixels[:count]), atol=1e-4, rtol=0)


def test_logits_are_the_networks(resnet8: tuple[nn.Module, bytes]) -> None:
    agree(*resnet8)


def test_logits_of_an_inverted_residual() -> None:
    torch.manual_seed(0)
    parts = [nn.Conv2d(3, 12, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU6()]
    parts += [nn.Conv2d(12, 12, 3, stride=2, padding=1, groups=12, bias=False), nn.BatchNorm2d(12), nn.Hardswish()]
    parts += [nn.Conv2d(12, 6, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(6, 10)]
    module = nn.Sequential(*parts)
    agree(module, onnx_bytes(module, preset()))


def test_input_output_and_metadata(resnet8: tuple[nn.Module, bytes]) -> None:
    session = ort.InferenceSession(resnet8[1], providers=["CPUExecutionProvider"])
    (given,), (returned,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.type, given.shape) == ("images", "tensor(uint8)", ["batch", 3, 32, 32])
    assert (returned.name, returned.type, returned.shape) == ("logits", "tensor(float)", ["batch", 10])
    assert metadata_of(resnet8[1])["classes"] == '["a\\n", "b"]'
    assert session.get_modelmeta().custom_metadata_map["licence"] == "CC0-1.0"
    model = onnx.load_from_string(resnet8[1])
    onnx.checker.check_model(model, full_check=True)
    assert [(each.domain, each.version) for each in model.opset_import] == [("", OPSET)]


def test_int8_weights_and_near_logits(resnet8: tuple[nn.Module, bytes]) -> None:
    small = quantized(resnet8[1], images(64, seed=2))
    model = onnx.load_from_string(small)
    onnx.checker.check_model(model)
    kernels = [each for each in model.graph.initializer if len(each.dims) == 4]
    assert kernels
    assert {each.data_type for each in kernels} - {onnx.TensorProto.FLOAT} == {onnx.TensorProto.INT8}
    scales = [each for each in model.graph.initializer if each.name.endswith("_scale") and len(each.dims) == 1]
    assert {16, 32, 64} <= {each.dims[0] for each in scales}  # one for each output channel
    assert len(small) < 0.45 * len(resnet8[1])
    assert metadata_of(small) == metadata_of(resnet8[1])
    pixels = images(32, seed=3)
    exact, found = expected(resnet8[0], pixels), Session(small, threads=1)(pixels)
    assert np.abs(found - exact).max() < 0.1 * np.abs(exact).max()


def test_quiet_and_the_network_left_as_it_is(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    module = small_network(10)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        written = onnx_bytes(module, preset())
        quantized(written, images(2))
    logged = [record for record in caplog.records if record.levelno >= logging.INFO]
    assert (*capfd.readouterr(), logged, seen) == ("", "", [], [])
    assert module.training
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    assert onnx_bytes(module, preset()) == written  # one network, one file


class Fixed(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(2, -1)[:, :10]


class Branching(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)[:, :10] if x.sum() > 0 else x.flatten(1)[:, 10:20]


@pytest.mark.parametrize("module", [Fixed(), Branching()])
def test_network_that_cannot_be_written(module: nn.Module) -> None:
    with pytest.raises(ModelError, match="cannot be written as ONNX: ") as refused:
        onnx_bytes(module, preset())
    assert "\n" not in str(refused.value)


def test_refusals(resnet8: tuple[nn.Module, bytes]) -> None:
    with pytest.raises(ModelError, match="int8 needs calibration images, found none"):
        quantized(resnet8[1], images(0))
    with pytest.raises(ModelError, match="ONNX Runtime does not load this model"):
        Session(b"no model", threads=1)

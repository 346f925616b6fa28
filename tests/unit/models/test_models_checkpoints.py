"""Checkpoints of usual trainers as weights: what wraps the state dict, and what is told about it."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from kdpipe import models
from kdpipe.errors import ModelError

State = dict[str, torch.Tensor]
CLASSES = 7
NAMES = ["torchvision:squeezenet1_1", "torchvision:mobilenet_v3_small", "timm:test_resnet.r160_in1k"]
NAMES = [name for name in NAMES if not name.startswith("timm") or find_spec("timm")]


def prefixed(state: State, prefix: str) -> State:
    return {prefix + key: value for key, value in state.items()}


def averaged(state: State) -> State:
    """Return weights that differ from those of the state."""
    return {key: value + 1 if value.is_floating_point() else value for key, value in state.items()}


WRAPPED: dict[str, Callable[[State], Any]] = {
    "state_dict": lambda state: {"state_dict": state, "epoch": 3},
    "model": lambda state: {"model": state, "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}},
    "model_state": lambda state: {"model_state": state},
    "model_state_dict": lambda state: {"model_state_dict": state, "loss": torch.tensor(0.1)},
    "model_ema": lambda state: {"model_ema": state},
    "ema_state_dict": lambda state: {"ema_state_dict": prefixed(state, "module.")},
    "module": lambda state: prefixed(state, "module."),
    "prefix model": lambda state: {"state_dict": prefixed(state, "model.")},
    "compiled": lambda state: {"state_dict": prefixed(state, "model._orig_mod.")},
    "backbone": lambda state: prefixed(state, "backbone."),
    "averaged module": lambda state: {**prefixed(state, "module."), "n_averaged": torch.tensor(5)},
    "lightning": lambda state: {
        "state_dict": {**prefixed(state, "model."), "criterion.weight": torch.ones(CLASSES)},
        "pytorch-lightning_version": "2.6.0",
        "hyper_parameters": {"lr": 0.1},
        "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.9)}},
    },
    "no counters": lambda state: {key: value for key, value in state.items() if "num_batches" not in key},
    "half": lambda state: {key: value.half() if value.is_floating_point() else value for key, value in state.items()},
    "bfloat16": lambda state: {
        key: value.bfloat16() if value.is_floating_point() else value for key, value in state.items()
    },
}


@pytest.fixture(scope="module", params=NAMES)
def network(request: pytest.FixtureRequest) -> tuple[str, State]:
    torch.manual_seed(1)
    return request.param, models.create(request.param, CLASSES).state_dict()


def load(name: str, weights: Path, classes: int = CLASSES) -> models.Model:
    return models.load(name, num_classes=classes, weights=weights, fallback_statistics=None, fallback_size=None)


@pytest.mark.parametrize("wrapper", WRAPPED)
def test_weights_are_found_in_their_wrapper(wrapper: str, network: tuple[str, State], tmp_path: Path) -> None:
    name, state = network
    torch.save(WRAPPED[wrapper](state), tmp_path / "w.pth")
    model = load(name, tmp_path / "w.pth")
    for key, value in model.module.state_dict().items():
        tolerance = 1e-2 if wrapper in ("half", "bfloat16") else 0
        assert value.dtype in (torch.float32, torch.int64)
        assert torch.allclose(value, state[key].to(value.dtype), rtol=tolerance, atol=tolerance)
    assert model.preset_source in ("timm", "torchvision IMAGENET1K_V1")


def test_weights_in_safetensors_need_no_header(network: tuple[str, State], tmp_path: Path) -> None:
    name, state = network
    save_file(prefixed({key: value.contiguous() for key, value in state.items()}, "model."), tmp_path / "w.safetensors")
    assert torch.equal(next(load(name, tmp_path / "w.safetensors").module.parameters()), next(iter(state.values())))


def test_another_head_is_one_line(network: tuple[str, State], tmp_path: Path) -> None:
    name, state = network
    torch.save({"state_dict": prefixed(state, "model.")}, tmp_path / "w.pth")
    with pytest.raises(ModelError, match=r"w\.pth: the weights have 7 classes, the dataset has 10"):
        load(name, tmp_path / "w.pth", 10)


def resnet(classes: int = 3) -> State:
    torch.manual_seed(2)
    return models.create("resnet8", classes).state_dict()


def of_resnet(path: Path) -> models.Model:
    return models.load("resnet8", num_classes=3, weights=path, fallback_statistics=lambda: ((0.5,) * 3, (0.5,) * 3))


@pytest.mark.parametrize("key", ["model_ema", "state_dict_ema", "ema_state_dict"])
def test_of_weights_and_their_average_the_weights_are_taken(key: str, tmp_path: Path) -> None:
    state = resnet()
    torch.save({"model": state, key: averaged(state)}, tmp_path / "w.pt")
    model = of_resnet(tmp_path / "w.pt")
    assert torch.equal(model.module.state_dict()["conv1.weight"], state["conv1.weight"])
    assert [line.partition(": ")[2] for line in model.remarks] == [
        f"its weights 'model' are taken; it also has averaged ones, '{key}': save them alone to use them."
    ]
    torch.save({key: averaged(state)}, tmp_path / "w.pt")
    alone = of_resnet(tmp_path / "w.pt")
    assert torch.equal(alone.module.state_dict()["conv1.weight"], averaged(state)["conv1.weight"])
    assert alone.remarks == (f"{tmp_path / 'w.pt'}: its weights '{key}' are taken.",)


def test_one_of_several_networks_in_a_file_is_not_guessed(tmp_path: Path) -> None:
    state = resnet()
    both = {**prefixed(state, "student."), **prefixed(averaged(state), "teacher.")}
    torch.save({"state_dict": both}, tmp_path / "w.pt")
    with pytest.raises(ModelError, match=r"holds several such networks \(student\., teacher\.\): save the state dict"):
        of_resnet(tmp_path / "w.pt")


def test_classifiers_for_training_only_are_left_out(tmp_path: Path) -> None:
    torch.manual_seed(3)
    state = models.create("torchvision:googlenet", CLASSES).state_dict()
    torch.save({**state, "aux1.fc2.weight": torch.zeros(CLASSES, 8)}, tmp_path / "w.pth")
    model = load("torchvision:googlenet", tmp_path / "w.pth")
    assert torch.equal(model.module.state_dict()["fc.weight"], state["fc.weight"])


class Halved(nn.Module):
    """A network whose parameters have another type."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.head = nn.Linear(3, 4).to(dtype)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(images.mean((2, 3)))
        return logits


def in_half(_classes: int) -> nn.Module:
    return Halved(torch.float16)


def in_bfloat16(_classes: int) -> nn.Module:
    return Halved(torch.bfloat16)


@pytest.mark.parametrize(("name", "dtype"), [("in_half", "float16"), ("in_bfloat16", "bfloat16")])
def test_an_own_network_in_half_precision_is_converted(name: str, dtype: str) -> None:
    model = models.load(
        f"{__name__}:{name}", num_classes=4, fallback_statistics=lambda: ((0.5,) * 3, (0.5,) * 3), fallback_size=8
    )
    assert [f"has weights in {dtype}: they are converted" in line for line in model.remarks] == [True]
    assert model.module(torch.rand(2, 3, 8, 8)).dtype == torch.float32

"""Weights go into files and come back, and files that do not fit are refused in one line."""

import json
import os
import pickle
import re
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from kdpipe import models
from kdpipe.errors import ModelError
from kdpipe.models.weights import fit, read_weights

PRESET = models.Preset(32, 36, "bicubic", (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616))
CLASSES = ("cat", "dog, small", "Wölfin")


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(3)
    return models.create("resnet8", 3).eval()


def fitted(path: Path) -> dict[str, torch.Tensor]:
    module = models.create("resnet8", 3)
    fit(module, read_weights(path), num_classes=3)
    return module.state_dict()


def complaint(path: Path, name: str = "resnet8", *, classes: int = 3) -> str:
    with pytest.raises(ModelError) as caught:
        fit(models.create(name, classes), read_weights(path), num_classes=classes)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def test_safetensors_round_trip(tmp_path: Path, network: nn.Module) -> None:
    path = tmp_path / "new" / "w.safetensors"
    models.save_weights(path, network, architecture="resnet8", preset=PRESET, classes=CLASSES)
    read = read_weights(path)
    assert read.classes == CLASSES
    state = {key: value for key, value in network.state_dict().items() if not key.endswith("num_batches_tracked")}
    assert read.state.keys() == state.keys()
    assert all(torch.equal(read.state[key], state[key]) for key in state)
    assert load_file(path).keys() == state.keys()
    assert not list(path.parent.glob(".*"))


def test_header_holds_everything_as_strings(tmp_path: Path, network: nn.Module) -> None:
    path = tmp_path / "w.safetensors"
    models.save_weights(path, network, architecture="resnet8", preset=PRESET, classes=CLASSES)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    assert json.loads(metadata.pop("classes")) == list(CLASSES)
    assert metadata == {
        "architecture": "resnet8",
        "format": "pt",
        "input_size": "32",
        "interpolation": "bicubic",
        "mean": "0.4914,0.4822,0.4465",
        "resize": "36",
        "std": "0.247,0.2435,0.2616",
    }


def test_saving_is_deterministic_over_processes(tmp_path: Path) -> None:
    program = (
        "import sys, torch\nfrom pathlib import Path\nfrom kdpipe import models\ntorch.manual_seed(0)\n"
        "preset = models.Preset(32, 32, 'bilinear', (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))\n"
        "models.save_weights(Path(sys.argv[1]), models.create('resnet8', 3), architecture='resnet8',"
        " preset=preset, classes=['a', 'b', 'c'])\n"
    )
    running = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path / f"{seed}.safetensors")],
            env={**os.environ, "PYTHONHASHSEED": seed},
        )
        for seed in ("1", "2")
    ]
    assert [process.wait(timeout=60) for process in running] == [0, 0]
    assert (tmp_path / "1.safetensors").read_bytes() == (tmp_path / "2.safetensors").read_bytes()


class Odd(nn.Module):
    """Shared, strided, scalar, half and boolean tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.register_buffer("strided", torch.arange(12.0).view(3, 4).t())
        self.register_buffer("scalar", torch.tensor(7, dtype=torch.int64))
        self.register_buffer("brief", torch.ones(3, dtype=torch.bfloat16))
        self.register_buffer("mask", torch.tensor([True, False, True]))
        self.register_buffer("empty", torch.zeros(0, 3))


def test_odd_tensors_survive(tmp_path: Path) -> None:
    path = tmp_path / "odd.safetensors"
    odd = Odd()
    models.save_weights(path, odd, architecture="odd", preset=PRESET, classes=["a"])
    read = load_file(path)
    for key, value in odd.state_dict().items():
        assert read[key].dtype == value.dtype
        assert torch.equal(read[key], value)
    again = tmp_path / "again.safetensors"
    odd.strided = odd.strided.contiguous()
    models.save_weights(again, odd, architecture="odd", preset=PRESET, classes=["a"])
    assert again.read_bytes() == path.read_bytes()


def test_a_type_without_a_name_is_refused(tmp_path: Path) -> None:
    module = nn.Module()
    module.register_buffer("waves", torch.zeros(2, dtype=torch.complex128))
    with pytest.raises(ModelError, match="complex128"):
        models.save_weights(tmp_path / "w.safetensors", module, architecture="x", preset=PRESET, classes=[])
    assert not list(tmp_path.iterdir())


def wrapped(state: dict[str, torch.Tensor]) -> dict[str, Any]:
    parallel = {f"module.{key}": value for key, value in state.items()}
    return {
        "bare": state,
        "model": {"epoch": 240, "model": state, "best_acc": torch.tensor(73.1), "optimizer": {"state": {}}},
        "state_dict": {"state_dict": parallel},
        "net": {"net": {f"_orig_mod.module.{key}": value for key, value in state.items()}, "acc": 1.0},
        "flags": {
            "model": state,
            "opt": Namespace(lr=0.05),
            "accuracy": np.float32(73.1),
            "best": np.float64(1),
        },
        "no counters": {key: value for key, value in state.items() if "num_batches" not in key},
    }


@pytest.mark.parametrize("shape", ["bare", "model", "state_dict", "net", "flags", "no counters"])
@pytest.mark.parametrize("suffix", ["pt", "pth"])
def test_torch_files_are_unwrapped(tmp_path: Path, network: nn.Module, shape: str, suffix: str) -> None:
    path = tmp_path / f"w.{suffix}"
    torch.save(wrapped(network.state_dict())[shape], path)
    state = fitted(path)
    assert all(torch.equal(state[key], value) for key, value in network.state_dict().items())


def test_counters_come_along_where_they_are_kept(tmp_path: Path, network: nn.Module) -> None:
    state = {**network.state_dict(), "bn1.num_batches_tracked": torch.tensor(41)}
    torch.save(state, tmp_path / "w.pt")
    assert fitted(tmp_path / "w.pt")["bn1.num_batches_tracked"] == 41


def test_other_keys_are_named(tmp_path: Path, network: nn.Module) -> None:
    state = dict(network.state_dict())
    state["head.weight"] = state.pop("fc.weight")
    state["head.bias"] = state.pop("fc.bias")
    torch.save(state, tmp_path / "w.pt")
    message = complaint(tmp_path / "w.pt")
    assert "expected fc.weight, fc.bias, not found; found head.weight, head.bias, not expected" in message


def test_another_depth_names_three_keys_and_the_architecture(tmp_path: Path, network: nn.Module) -> None:
    path = tmp_path / "w.safetensors"
    models.save_weights(path, network, architecture="resnet8", preset=PRESET, classes=CLASSES)
    message = complaint(path, "resnet14")
    assert "(its header names resnet8)" in message
    assert "expected layer1.1.conv1.weight, layer1.1.bn1.weight, layer1.1.bn1.bias and 27 more" in message


def test_another_width_names_shapes(tmp_path: Path, network: nn.Module) -> None:
    state = {**network.state_dict(), "layer1.0.conv1.weight": torch.zeros(16, 16, 1, 1)}
    torch.save(state, tmp_path / "w.pt")
    assert "layer1.0.conv1.weight: expected (16, 16, 3, 3), found (16, 16, 1, 1)" in complaint(tmp_path / "w.pt")


def test_another_number_of_classes_is_said_so(tmp_path: Path) -> None:
    torch.save(models.create("resnet8", 100).state_dict(), tmp_path / "w.pt")
    message = complaint(tmp_path / "w.pt", classes=10)
    assert message.endswith("the weights have 100 classes, the dataset has 10")


class Bomb:
    """Creates a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("writer", ["torch", "legacy", "pickle"])
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path: Path, writer: str) -> None:
    marker, path = tmp_path / "ran", tmp_path / "w.pt"
    content = {"model": {"w": torch.zeros(1)}, "bomb": Bomb(marker)}
    if writer == "pickle":
        path.write_bytes(pickle.dumps({"bomb": Bomb(marker)}, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=writer == "torch")
    assert "could run code" in complaint(path)
    assert not marker.exists()


def test_a_whole_pickled_module_is_refused(tmp_path: Path, network: nn.Module) -> None:
    torch.save(network, tmp_path / "w.pt")
    assert "save the state_dict() alone" in complaint(tmp_path / "w.pt")


@pytest.mark.parametrize("name", ["w.pt", "w.pth", "w.safetensors", "w.onnx"])
@pytest.mark.parametrize("content", [None, b"", b"nonsense", b"\xff" * 64])
def test_missing_and_damaged_files_are_one_line(tmp_path: Path, name: str, content: bytes | None) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    complaint(path)


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_truncated_files_are_one_line(tmp_path: Path, network: nn.Module, suffix: str) -> None:
    path = tmp_path / f"w.{suffix}"
    if suffix == "pt":
        torch.save(network.state_dict(), path)
    else:
        models.save_weights(path, network, architecture="resnet8", preset=PRESET, classes=CLASSES)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    complaint(path)


@pytest.mark.parametrize("content", [{"lr": 0.1}, [1, 2], {}, {"w": torch.zeros(1), "note": "x"}])
def test_torch_files_without_a_state_dict_are_refused(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "w.pt")
    assert "expected a state dict of tensors" in complaint(tmp_path / "w.pt")


def test_classes_may_be_separated_by_commas(tmp_path: Path) -> None:
    save_file({"w": torch.zeros(1)}, tmp_path / "w.safetensors", metadata={"classes": "cat, dog,ship"})
    assert read_weights(tmp_path / "w.safetensors").classes == ("cat", "dog", "ship")


def test_broken_class_metadata_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file({"w": torch.zeros(1)}, path, metadata={"classes": "[broken"})
    with pytest.raises(ModelError, match=r"its header records unusable classes: .* it is not JSON"):
        read_weights(path)


@pytest.mark.parametrize("suffix", ["ckpt", "bin", "pth.tar"])
def test_files_of_other_trainers_are_read(tmp_path: Path, network: nn.Module, suffix: str) -> None:
    """As Lightning writes them: the network under a prefix, beside other tensors and settings."""
    state = {f"model.{key}": value for key, value in network.state_dict().items()}
    content = {"state_dict": {**state, "criterion.weight": torch.ones(3)}, "hyper_parameters": {"lr": 0.1}}
    torch.save(content, tmp_path / f"w.{suffix}")
    found = fitted(tmp_path / f"w.{suffix}")
    assert all(torch.equal(found[key], value) for key, value in network.state_dict().items())


def test_published_keys_of_densenets_fit(tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = models.create("torchvision:densenet121", 10).state_dict()
    old = {re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", key): value for key, value in state.items()}
    assert old.keys() != state.keys()
    torch.save(old, tmp_path / "w.pth")
    model = models.load("torchvision:densenet121", num_classes=10, weights=tmp_path / "w.pth", fallback_statistics=None)
    assert all(torch.equal(model.module.state_dict()[key], value) for key, value in state.items())
    assert model.preset_source == "torchvision IMAGENET1K_V1"

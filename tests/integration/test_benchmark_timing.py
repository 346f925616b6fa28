"""`benchmark` on a loaded machine, with several engines, and beside a teacher: costs belong to networks."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest
from torch import nn

from kdpipe import models
from tests.conftest import LIMITS, Outcome, refused, run_command

Kdpipe = Callable[..., Outcome]

BENCHMARK = ("benchmark", *LIMITS, "--device", "cpu", "--no-cold-starts")
NAMES = ("small", "copy", "middle", "large")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four candidates: a network, a copy of it, and two larger ones."""
    folder = tmp_path_factory.mktemp("runs")
    common = ("train-student", *LIMITS, "--epochs", 1, "--input-size", 16, "--device", "cpu")
    for name, student in (("small", "resnet8"), ("middle", "resnet14"), ("large", "resnet32")):
        assert run_command(None, *common, "--student", student, "--out", folder / name).code == 0
    shutil.copytree(folder / "small", folder / "copy")
    return folder


@pytest.fixture
def loaded() -> Iterator[None]:
    """Keeps two cores busy."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    yield
    for each in busy:
        each.kill()
        each.wait()


def _report(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "metrics.json").read_text())
    return found


def _to_ship(found: dict[str, Any], predictions: Path) -> str:
    """Return the student to ship by its predictions and latencies, with scipy's test and interval."""
    with np.load(predictions) as held:
        right = dict(zip(held["runs"].tolist(), held["logits"].argmax(axis=2) == held["labels"], strict=True))
    lower = {
        name: binomtest(int(each.sum()), each.size).proportion_ci(method="wilson").low for name, each in right.items()
    }
    ms = {name: each["latency_ms"]["batch1"] for name, each in found["students"].items()}
    leader = min(lower, key=lambda name: (-lower[name], ms[name]["p50"]))
    level = []
    for name, each in right.items():
        won, lost = int((right[leader] & ~each).sum()), int((each & ~right[leader]).sum())
        if won + lost == 0 or binomtest(won, won + lost).pvalue >= 0.05:
            level.append(name)
    fastest = min(level, key=lambda name: ms[name]["p50"])
    near = [name for name in level if ms[name]["p50_low"] <= ms[fastest]["p50_high"]]
    best = max(lower[name] for name in near)
    return min((name for name in near if lower[name] == best), key=lambda name: (ms[name]["p50"], name))


@pytest.mark.usefixtures("loaded")
def test_copies_of_a_network_cost_the_same_on_a_loaded_machine(runs: Path, kdpipe: Kdpipe, tmp_path: Path) -> None:
    asked = [argument for name in NAMES for argument in ("--run", runs / name)]
    done = kdpipe(*BENCHMARK, *asked, "--out", tmp_path / "r", "--rounds", 20, "--batch-sizes", 1)
    assert done.code == 0
    found = _report(tmp_path / "r")
    students = found["students"]
    assert students["small"]["latency_ms"] == students["copy"]["latency_ms"]
    assert [each["architecture"] for each in found["timings"]] == ["resnet8", "resnet14", "resnet32"]
    assert {each["rounds"] for each in found["timings"]} == {20}
    assert found["recommended"] == _to_ship(found, tmp_path / "r" / "predictions.npz")
    assert students["small"]["on_front"] == students["copy"]["on_front"]
    copies = {"small", "copy"}
    assert ({found["recommended"], *found["verdict"]["equals"]} & copies) in (copies, set())
    cpu = [each["cpu_ms"] for each in found["timings"]]
    assert cpu == sorted(cpu)
    assert "warning: the machine was busy while the networks were timed" in done.err
    assert found["load"]["others"] > 0.5


def test_raw_rounds_teacher_threads_and_load(runs: Path, kdpipe: Kdpipe, tmp_path: Path) -> None:
    out = tmp_path / "r"
    ways = ("--engines", "eager,onnx", "--precisions", "fp32,int8", "--threads", "1,2", "--batch-sizes", "1,2")
    teacher = ("--teacher", f"run:{runs / 'middle'}")
    done = kdpipe(
        *BENCHMARK, *ways, *teacher, "--run", runs / "small", "--rounds", 6, "--calibration", 32, "--out", out
    )
    assert done.code == 0
    assert "eager has no int8, and is timed without it." in done.err
    found = _report(out)
    keys = ("architecture", "engine", "precision", "threads", "batch_size")
    every = {tuple(each[key] for key in keys): each for each in found["timings"]}
    made = (("eager", "fp32"), ("onnx", "fp32"), ("onnx", "int8"))
    expected = [
        (network, *way, threads, batch)
        for network in ("resnet8", "resnet14")
        for way in made
        for threads in (1, 2)
        for batch in (1, 2)
    ]
    assert sorted(every) == sorted(expected)

    passes: dict[tuple[Any, ...], dict[int, list[int]]] = {}
    with (out / "timings.csv").open(newline="") as stream:
        for row in csv.DictReader(stream):
            key = (*(row[key] for key in keys[:3]), int(row["threads"]), int(row["batch_size"]))
            passes.setdefault(key, {}).setdefault(int(row["round"]), []).append(int(row["wall_ns"]))
    assert passes.keys() == every.keys()
    for key, rounds in passes.items():
        assert list(rounds) == [1, 2, 3, 4, 5, 6]
        assert every[key]["p50_ms"] == pytest.approx(median(map(median, rounds.values())) / 1e6)
        assert every[key]["repeats"] == sum(map(len, rounds.values()))

    (first, second) = (every[network, "eager", "fp32", 1, 1]["p50_ms"] for network in ("resnet14", "resnet8"))
    assert found["students"]["small"]["speed_up"]["batch1"] == pytest.approx(first / second)
    assert found["students"]["small"]["latency_ms"]["batch1"]["p50"] == second
    assert found["teacher"]["name"] == f"run:{runs / 'middle'}"
    sizes = {each["architecture"]: each["format_bytes"] for each in found["costs"]}
    weights = (runs / "small" / "model.safetensors").stat().st_size
    assert sizes["resnet8"]["safetensors"] == weights
    assert sizes["resnet8"]["onnx int8"] < 0.7 * sizes["resnet8"]["onnx"]


def test_parameters_and_macs_are_those_of_independent_code(runs: Path, kdpipe: Kdpipe, tmp_path: Path) -> None:
    """Counted from the shapes that hooks see: outputs times the multiplications for each."""
    assert kdpipe(*BENCHMARK, "--run", runs / "middle", "--rounds", 1, "--out", tmp_path / "r").code == 0
    (cost,) = _report(tmp_path / "r")["costs"]
    network, counted = models.create("resnet14", 10).eval(), []

    def count(layer: Any, inputs: Any, output: Any) -> None:
        window = layer.weight[0].numel()  # channels per group times kernel, or features
        counted.append(output[0].numel() * window)

    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(count)
    import torch

    network(torch.zeros(1, 3, 16, 16))
    assert cost["macs"] == sum(counted)
    assert cost["parameters"] == sum(each.numel() for each in network.parameters())


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (("--engines", "onxx"), ("unknown engine 'onxx'", "did you mean 'onnx'")),
        (("--precisions", "int8"), ("there is nothing to time", "eager has no int8")),
        (("--weights", "w.safetensors"), ("give --teacher",)),
        (("--teacher", "run:x", "--weights", "w.safetensors"), ("brings its own weights",)),
        (("--batch-sizes", "1,0"), ("--batch-sizes",)),
        (("--rounds", "0"), ("--rounds",)),
    ],
)
def test_what_cannot_be_timed_is_refused_before_anything_is_measured(
    runs: Path, flags: tuple[str, ...], parts: tuple[str, ...], kdpipe: Kdpipe, tmp_path: Path
) -> None:
    refused(kdpipe(*BENCHMARK, "--run", runs / "small", "--out", tmp_path / "r", *flags), *parts)
    assert list(tmp_path.iterdir()) == []

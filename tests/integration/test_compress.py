"""`kdpipe compress` on a few digits: an ordinary run, smaller than its parent."""

from __future__ import annotations

import csv
import json
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from kdpipe import dataset, models
from kdpipe.models.saved import digest_of
from kdpipe.training.runs import RunDirectory
from kdpipe.views import Geometry, Renderer
from tests.conftest import LIMITS, Built, Outcome, refused, run_command
from tests.processes import Server

Kdpipe = Callable[..., Outcome]

COMPRESS = ("compress", *LIMITS, "--device", "cpu")
HALVED = ("--prune", 0.5, "--recover-epochs", 1)


@pytest.fixture(scope="module")
def parent(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student of 16 x 16 pixels that learned from the store for two epochs."""
    out = tmp_path_factory.mktemp("parent") / "student"
    trained = run_command(
        *(None, "train-student", *LIMITS, "--student", "resnet8", "--input-size", 16, "--store", built.store),
        *("--epochs", 2, "--device", "cpu", "--out", out),
    )
    assert trained.code == 0
    return out


@pytest.fixture(scope="module")
def halved(built: Built, parent: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The parent with half of its multiply-accumulates, recovered against the same store for an epoch."""
    out = tmp_path_factory.mktemp("halved") / "halved"
    assert run_command(None, *COMPRESS, "--run", parent, "--store", built.store, *HALVED, "--out", out).code == 0
    return out


def _json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def _load(run: Path) -> models.Model:
    return models.load(f"run:{run}", num_classes=10, fallback_statistics=None)


def test_the_result_is_a_run_that_its_header_builds(built: Built, parent: Path, halved: Path) -> None:
    record = RunDirectory(halved).record()
    with safe_open(halved / "model.safetensors", framework="pt") as file:
        architecture = file.metadata()["architecture"]
    assert architecture == record["model"]
    assert models.base_of(architecture) == "resnet8"
    assert record["stage"] == "compress"
    assert (record["distill"], record["loss"], record["parameters"]["epochs"]) == ("cache", "kd", 1)
    assert record["lineage"]["parent"] == {
        "name": str(parent),
        "digest": digest_of(parent / "model.safetensors"),
        "model": "resnet8",
        "epochs": 2,
    }
    assert record["lineage"]["stores"][0]["path"] == str(built.store)
    whole, small = _load(parent), _load(halved)
    assert small.preset == whole.preset
    assert 0.4 < models.macs(small.module, 16) / models.macs(whole.module, 16) <= 0.5
    assert {path.name for path in halved.iterdir()} == {path.name for path in parent.iterdir()}


def test_it_is_a_parent_a_teacher_and_an_architecture(
    parent: Path, halved: Path, kdpipe: Kdpipe, tmp_path: Path
) -> None:
    again = kdpipe(*COMPRESS, "--run", halved, "--low-rank", 0.2, "--recover-epochs", 0, "--out", tmp_path / "again")
    assert again.code == 0, again.err
    record = RunDirectory(tmp_path / "again").record()
    assert record["lineage"]["parent"]["epochs"] == 3
    assert (record["distill"], record["loss"]) == ("cache", "kd"), "what it has learned is the parent's"
    assert not (tmp_path / "again" / "history.csv").exists()
    store = tmp_path / "logits.zarr"
    cached = kdpipe("cache-teacher", *LIMITS, "--teacher", f"run:{halved}", "--out", store, "--device", "cpu")
    assert cached.code == 0, cached.err
    trained = kdpipe(
        *("train-student", *LIMITS, "--student", record["model"], "--input-size", 16, "--epochs", 1),
        *("--out", tmp_path / "anew", "--device", "cpu"),
    )
    assert trained.code == 0, trained.err
    assert RunDirectory(tmp_path / "anew").record()["num_parameters"] == record["num_parameters"]
    report = kdpipe(
        *("benchmark", *LIMITS, "--device", "cpu", "--out", tmp_path / "reports", "--rounds", 5, "--no-cold-starts"),
        *("--run", parent, "--run", halved, "--run", tmp_path / "again"),
    )
    assert report.code == 0, report.err
    exported = kdpipe("export", halved, "--to", "safetensors", "--out", tmp_path / "exported")
    assert exported.code == 0, exported.err


def test_without_recovery_the_weights_are_those_of_the_parent(parent: Path, kdpipe: Kdpipe, tmp_path: Path) -> None:
    """Where next to nothing is removed, the logits are nearly the parent's."""
    out = tmp_path / "factored"
    assert kdpipe(*COMPRESS, "--run", parent, "--low-rank", 0.001, "--recover-epochs", 0, "--out", out).code == 0
    whole, small = _load(parent), _load(out)
    digits = dataset.load("digits", "test", 60)
    images = Renderer(digits, "none", seed=0, geometry=Geometry.of(whole.preset), device=torch.device("cpu"))
    (pixels,) = images.batches([np.arange(60)], view=0)
    with torch.no_grad():
        expected, found = (each.module(each.preset.normalize(pixels)) for each in (whole, small))
    assert "ranks=" in small.name
    assert (found - expected).norm() < 0.3 * expected.norm()
    labels = torch.from_numpy(digits.labels)
    assert RunDirectory(out).metrics()["test"]["top1"] == pytest.approx((found.argmax(1) == labels).float().mean())


def test_the_pull_keeps_the_weights_near_the_parents(
    built: Built, parent: Path, kdpipe: Kdpipe, tmp_path: Path
) -> None:
    begin, pulled, free = (tmp_path / name for name in ("begin", "pulled", "free"))
    pruned = (*COMPRESS, "--run", parent, "--prune", 0.5)
    assert kdpipe(*pruned, "--recover-epochs", 0, "--out", begin).code == 0
    flags = ("--store", built.store, "--recover-epochs", 1, "--warmup-epochs", 0, "--batch-size", 20)
    assert kdpipe(*pruned, *flags, "--out", free).code == 0
    assert kdpipe(*pruned, *flags, "--toward-parent", 10, "--out", pulled).code == 0
    start, near, far = (dict(_load(run).module.named_parameters()) for run in (begin, pulled, free))
    distances = [sum((each[key] - start[key]).norm() ** 2 for key in start) for each in (near, far)]
    assert distances[0] < 0.5 * distances[1]
    with (pulled / "history.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert float(row["parent"]) > 0


def test_int8_is_measured_on_the_test_split(built: Built, parent: Path, kdpipe: Kdpipe, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    out = tmp_path / "int8"
    made = kdpipe(*COMPRESS, "--run", parent, "--quantize", "int8", "--calibration", 50, "--max-drop", 20, "--out", out)
    assert made.code == 0, made.err
    metrics = RunDirectory(out).metrics()
    assert metrics["weights"]["model.int8.onnx"] == digest_of(out / "model.int8.onnx")
    assert RunDirectory(out).record()["model"] == "resnet8"
    model, digits = _load(out), dataset.load("digits", "test", 60)
    images = Renderer(digits, "none", seed=0, geometry=Geometry.of(model.preset), device=torch.device("cpu"))
    (pixels,) = images.batches([np.arange(60)], view=0)
    session = onnxruntime.InferenceSession(out / "model.int8.onnx", providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {session.get_inputs()[0].name: pixels.numpy()})
    assert metrics["int8"]["top1"] == pytest.approx((logits.argmax(1) == digits.labels).mean())
    assert metrics["test"]["top1"] == RunDirectory(parent).metrics()["test"]["top1"]


@pytest.fixture(scope="module")
def blinded(parent: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Black training images, whose ranges cut every activation off, and test images of the parent's own classes."""
    folder = tmp_path_factory.mktemp("blinded")
    test = dataset.load("digits", "test", 20)
    images = np.stack([test.images(np.array([row]))[0] for row in range(len(test))])
    model = _load(parent)
    plain = Renderer(test, "none", seed=0, geometry=Geometry.of(model.preset))
    with torch.inference_mode():
        (pixels,) = plain.batches([np.arange(len(test))], 0)
        predicted = model.module(model.preset.normalize(pixels)).argmax(1).tolist()
    for split, shown, labels in (("train", np.zeros_like(images[:10]), range(10)), ("test", images, predicted)):
        for index, (image, label) in enumerate(zip(shown, labels, strict=True)):
            path = folder / split / str(label) / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.transpose(1, 2, 0)).save(path)
    return folder


def test_int8_that_loses_too_much_is_refused_and_the_run_is_kept(
    blinded: Path, parent: Path, kdpipe: Kdpipe, tmp_path: Path
) -> None:
    out = tmp_path / "int8"
    flags = ("compress", "--data", f"folder:{blinded}", "--device", "cpu", "--run", parent, "--quantize", "int8")
    ran = kdpipe(*flags, "--out", out)
    refused(ran, "int8 reaches ", "fp32 100.00%", "more than --max-drop 0.5", "is not written", "--overwrite")
    assert not (out / "model.int8.onnx").exists()
    assert RunDirectory(out).metrics()["test"]["top1"] == 1
    assert "int8" not in RunDirectory(out).metrics()
    again = kdpipe(*flags, "--out", out, "--max-drop", 100, "--overwrite")
    assert again.code == 0, again.err
    assert (out / "model.int8.onnx").exists()
    assert RunDirectory(out).metrics()["int8"]["top1"] < 0.995


def test_a_recovery_that_is_killed_and_resumed_ends_as_an_uninterrupted_one(
    built: Built, parent: Path, commands: Server, tmp_path: Path
) -> None:
    command = (
        *(*COMPRESS, "--run", parent, "--store", built.store, "--prune", 0.3),
        *("--toward-parent", 0.1, "--recover-epochs", 2, "--batch-size", 40, "--checkpoint-every", 0),
    )
    whole, out = tmp_path / "whole", tmp_path / "killed"
    assert commands.start(*command, "--out", whole).wait() == 0
    process = commands.start(*command, "--out", out)
    deadline = time.monotonic() + 60
    while not (out / "history.csv").exists() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not (out / "metrics.json").exists()
    assert commands.start(*command, "--out", out, "--resume").wait() == 0
    assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert _json(out / "metrics.json")["test"] == _json(whole / "metrics.json")["test"]


def test_each_seed_is_made_of_the_parent_of_its_seed(kdpipe: Kdpipe, tmp_path: Path) -> None:
    teach = ("train-student", *LIMITS, "--student", "resnet8", "--input-size", 16, "--distill", "none", "--epochs", 1)
    assert kdpipe(*teach, "--device", "cpu", "--seeds", "3,5", "--out", tmp_path / "wide").code == 0
    narrow = (*COMPRESS, "--run", tmp_path / "wide", "--prune", 0.5, "--recover-epochs", 0)
    done = kdpipe(*narrow, "--seeds", "3,5", "--out", tmp_path / "narrow")
    assert done.code == 0, done.err
    for seed in (3, 5):
        parent = _json(tmp_path / "narrow" / f"seed-{seed}" / "run.json")["lineage"]["parent"]
        assert parent["digest"] == digest_of(tmp_path / "wide" / f"seed-{seed}" / "model.safetensors")
    one = kdpipe(*narrow, "--seed", 5, "--out", tmp_path / "one")
    assert one.code == 0, one.err
    weights = [tmp_path / name / "model.safetensors" for name in ("one", "narrow/seed-5")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    refused(kdpipe(*narrow, "--seed", 4, "--out", tmp_path / "none"), "has no run of seed 4, only seed-3, seed-5.")
    runs = ("--run", tmp_path / "wide", "--run", tmp_path / "narrow", "--out", tmp_path / "report")
    compared = kdpipe("benchmark", *LIMITS[:2], "--limit-test", LIMITS[-1], *runs, "--rounds", 1, "--batch-sizes", 1)
    assert compared.code == 0, compared.err


def test_a_seed_without_its_int8_model_is_completed(parent: Path, kdpipe: Kdpipe, tmp_path: Path) -> None:
    out = tmp_path / "seeds"
    flags = ("--run", parent, "--prune", 0.5, "--recover-epochs", 1, "--seeds", "3", "--out", out)
    assert kdpipe(*COMPRESS, *flags).code == 0
    assert not (out / "seed-3" / "model.int8.onnx").exists()
    made = kdpipe(*COMPRESS, *flags, "--resume", "--quantize", "int8", "--max-drop", 100, "--calibration", 8)
    assert made.code == 0, made.err
    assert (out / "seed-3" / "model.int8.onnx").exists()
    assert kdpipe(*COMPRESS, *flags, "--resume").code == 0


def test_each_seed_has_its_run(built: Built, parent: Path, kdpipe: Kdpipe, tmp_path: Path) -> None:
    out = tmp_path / "seeds"
    made = kdpipe(*COMPRESS, "--run", parent, "--store", built.store, *HALVED, "--seeds", "0,1", "--out", out)
    assert made.code == 0, made.err
    runs = [RunDirectory(out / f"seed-{seed}").record() for seed in (0, 1)]
    assert runs[0]["model"] == runs[1]["model"]
    assert runs[0]["lineage"]["parent"] == runs[1]["lineage"]["parent"]
    assert runs[0]["weights"] != runs[1]["weights"]


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        ((), ("nothing to do: give prune, low-rank or quantize",)),
        (("--prune", 1), ("--prune", "above 0 and below 1")),
        (("--prune", 0.99999), ("99.999% of the macs of resnet8 cannot be pruned",)),
        (("--low-rank", 0.999), ("cannot be removed by low rank",)),
        (("--prune", 0.5, "--recover-epochs", -1), ("--recover-epochs", "a whole number of 0 or more, found '-1'")),
        (("--prune", 0.5, "--recover-epochs", 0, "--toward-parent", 1), ("toward-parent is for the recovery",)),
        (("--prune", 0.5, "--recover-epochs", 0, "--distill", "cache", "--store", "x"), ("recover-epochs 0 learns",)),
        (("--prune", 0.5, "--epochs", 3), ("--epochs",)),
        (("--prune", 0.5, "--qat"), ("qat is for the recovery of what is quantized",)),
        (("--quantize", "int8", "--qat", "--recover-epochs", 0), ("qat is for the recovery of what is quantized",)),
        (("--quantize", "int4"), ("--quantize", "int8")),
        (("--prune", 0.5, "--store", "nowhere.zarr"), ("nowhere.zarr",)),
    ],
)
def test_wrong_flags_are_one_line_and_leave_nothing(
    flags: tuple[object, ...], parts: tuple[str, ...], parent: Path, kdpipe: Kdpipe, tmp_path: Path
) -> None:
    refused(kdpipe(*COMPRESS, "--run", parent, *flags, "--out", tmp_path / "out"), *parts)
    assert list(tmp_path.iterdir()) == []


def test_runs_that_cannot_be_compressed(parent: Path, kdpipe: Kdpipe, tmp_path: Path) -> None:
    def compress(run: Path, *flags: object) -> Outcome:
        return kdpipe(*COMPRESS, "--prune", 0.5, "--run", run, "--out", tmp_path / "out", *flags)

    refused(compress(tmp_path / "nowhere"), "there is no directory")
    unfinished = shutil.copytree(parent, tmp_path / "unfinished")
    (unfinished / "metrics.json").unlink()
    refused(compress(unfinished), "the training is not finished")
    damaged = shutil.copytree(parent, tmp_path / "damaged")
    content = bytearray((damaged / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (damaged / "model.safetensors").write_bytes(content)
    refused(compress(damaged), "is damaged or was replaced")
    seeds = tmp_path / "seeds"
    shutil.copytree(parent, seeds / "seed-0")
    refused(compress(seeds), "does not hold all of its seed runs: it has no metrics.json")
    refused(compress(parent, "--out", parent.parent), "the run to compress. Pass another --out.")
    refused(compress(parent, "--out", parent, "--overwrite"), "the run to compress. Pass another --out.")
    assert not (tmp_path / "out").exists()
    assert (parent / "model.safetensors").exists()

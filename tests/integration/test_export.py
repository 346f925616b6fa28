"""Runs as files for other runtimes: what they hold, what they compute, and what is refused."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from kdpipe import dataset, models
from kdpipe.export.images import plain_batches
from kdpipe.pairing.join import join
from kdpipe.store.reader import open_store
from tests.conftest import Built, Outcome, refused, run_command
from tests.networks import SMALL
from tests.processes import Server

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("openvino")
ort = pytest.importorskip("onnxruntime")

Kdpipe = Callable[..., Outcome]

WITHOUT = """
import importlib.abc, sys

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("kdpipe", "torch", "torchvision", "onnx"):
            raise ModuleNotFoundError(f"No module named {name!r}")

sys.meta_path.insert(0, Absent())
"""
"""A program in which kdpipe, torch and onnx cannot be imported."""


@dataclass(frozen=True)
class Exported:
    run: Path
    out: Path
    report: dict[str, Any]

    def artifact(self, file: str) -> dict[str, Any]:
        return next(each for each in self.report["artifacts"] if file in each["files"])


@pytest.fixture(scope="module")
def exported(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The teacher of ``built`` in every format."""
    run, out = built.weights.parent, tmp_path_factory.mktemp("exported") / "out"
    done = run_command(
        *(None, "export", run, "--to", "onnx,pt2,safetensors", "--to", "openvino", "--out", out),
        *("--quantize", "int8", "--calibration", 64, "--allow-drop", "--license", "CC0-1.0"),
    )
    assert done.code == 0
    return Exported(run, out, json.loads((out / "export.json").read_text()))


@pytest.fixture(scope="module")
def pixels() -> tuple[np.ndarray, np.ndarray]:
    """The test images of ``built`` as its network takes them, uint8, and their labels."""
    test = dataset.load("digits", "test", 60)
    preset = models.Preset(32, 32, "bilinear", (0, 0, 0), (1, 1, 1))
    return np.concatenate(list(plain_batches(test, preset))), test.labels


def logits_of(run: Path, images: np.ndarray) -> np.ndarray:
    model = models.load(f"run:{run}", num_classes=10, fallback_statistics=None)
    with torch.no_grad():
        return model.module(model.preset.normalize(torch.from_numpy(images))).numpy()


def blocks(exported: Exported) -> dict[str, str]:
    """Return the Python code of the README by its heading."""
    readme = (exported.out / "README.md").read_text()
    return dict(re.findall(r"^## (\S+)$.*?^```python\n(.*?)^```$", readme, re.DOTALL | re.MULTILINE))


def test_same_classes_without_kdpipe_and_torch(
    exported: Exported, pixels: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    images, labels = pixels
    np.save(tmp_path / "images.npy", images)
    code = {name: text for name, text in blocks(exported).items() if not name.endswith((".pt2", ".safetensors"))}
    assert list(code) == ["model.onnx", "model-int8.onnx", "model.xml", "model-int8.xml"]
    program = [WITHOUT, "import numpy, onnxruntime"]
    program += [
        f"logits = onnxruntime.InferenceSession({name!r}).run(None, {{'images': numpy.load({str(tmp_path)!r} + "
        f"'/images.npy')}})[0]\nnumpy.save({str(tmp_path / name)!r} + '.npy', logits)"
        for name in ("model.onnx", "model-int8.onnx")
    ]
    program += list(code.values())  # as they stand, with the folder as working directory
    script = tmp_path / "program.py"
    script.write_text("\n".join(program))
    done = subprocess.run(
        [sys.executable, script], cwd=exported.out, capture_output=True, text=True, check=False, env={"PATH": ""}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    expected = logits_of(exported.run, images)
    found = {name: np.load(tmp_path / f"{name}.npy") for name in ("model.onnx", "model-int8.onnx")}
    np.testing.assert_array_equal(found["model.onnx"].argmax(1), expected.argmax(1))
    np.testing.assert_allclose(found["model.onnx"], expected, atol=1e-4, rtol=0)
    for name, logits in found.items():
        assert exported.artifact(name)["top1"] == (logits.argmax(1) == labels).mean()
        assert exported.artifact(name)["agreement"] == (logits.argmax(1) == expected.argmax(1)).mean()
    assert done.stdout.split() == [exported.artifact(name)["example"]["class"] for name in code]


@pytest.mark.parametrize("name", ["model.pt2", "model.safetensors"])
def test_code_for_torch_runs_as_it_stands(exported: Exported, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    code, printed = blocks(exported)[name], io.StringIO()
    assert ("kdpipe" in code.replace("kdpipe.json", "")) == (name == "model.safetensors")
    assert len([line for line in code.splitlines() if line and "import " not in line]) <= 10  # to be read at a glance
    monkeypatch.chdir(exported.out)
    with redirect_stdout(printed):
        exec(code, {})
    assert printed.getvalue().strip() == exported.artifact(name)["example"]["class"]


def test_executorch(exported: Exported, kdpipe: Kdpipe, tmp_path: Path) -> None:
    """In the process of a user: its runtime writes to the file descriptors."""
    pytest.importorskip("executorch")
    done = kdpipe("export", exported.run, "--to", "executorch", "--out", tmp_path / "out")
    assert done.code == 0, done.err
    report = json.loads((tmp_path / "out" / "export.json").read_text())
    (artifact,) = report["artifacts"]
    assert artifact["top1"] == report["run"]["top1"]
    assert artifact["largest_logit_difference"] < 1e-4
    (code,) = blocks(Exported(exported.run, tmp_path / "out", report)).values()
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path / "out", capture_output=True, text=True, check=False, timeout=120
    )
    assert ran.stdout.splitlines()[-1] == artifact["example"]["class"], ran.stderr[-2000:]


def test_report_describes_every_file(exported: Exported, built: Built) -> None:
    report = exported.report
    metrics = json.loads((exported.run / "metrics.json").read_text())
    assert {path.name for path in exported.out.iterdir()} == {
        *("README.md", "export.json", "example.png", "model.onnx", "model-int8.onnx", "model.pt2"),
        *("model.safetensors", "model.xml", "model.bin", "model-int8.xml", "model-int8.bin"),
    }
    for artifact in report["artifacts"]:
        for name, known in artifact["files"].items():
            content = (exported.out / name).read_bytes()
            assert known == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        if artifact["precision"] == "fp32":
            assert artifact["top1"] == report["run"]["top1"] == metrics["test"]["top1"]
            assert artifact["largest_logit_difference"] < 1e-4
    assert report["weights_blake3"] == metrics["weights"]["model.safetensors"]
    assert report["test"]["images"] == 60
    assert report["calibration"] == {"split": "train", "images": 64, "seed": 0}
    assert report["classes"] == [str(digit) for digit in range(10)]
    run = json.loads((exported.run / "run.json").read_text())
    assert report["lineage"]["dataset"]["test"] == run["lineage"]["dataset"]["test"]


def test_metadata_of_every_file(exported: Exported) -> None:
    found: dict[str, dict[str, str]] = {}
    for name in ("model.onnx", "model-int8.onnx"):
        found[name] = ort.InferenceSession(exported.out / name).get_modelmeta().custom_metadata_map
    with zipfile.ZipFile(exported.out / "model.pt2") as archive:
        found["pt2"] = json.loads(archive.read("archive/extra/kdpipe.json"))
    with safe_open(exported.out / "model.safetensors", "numpy") as file:
        found["safetensors"] = file.metadata()
    for name, metadata in found.items():
        assert json.loads(metadata["classes"]) == exported.report["classes"], name
        assert json.loads(metadata["lineage"]) == exported.report["lineage"], name
        expected = ("license", "architecture", "weights_blake3", "run_blake3", "kdpipe")
        assert {key: metadata[key] for key in expected} == {key: exported.report[key] for key in expected}, name
        assert (metadata["input_size"], metadata["interpolation"]) == ("32", "bilinear"), name
    assert str(exported.run.parent) not in json.dumps(found)


def test_own_pt2_is_loaded_as_a_model(exported: Exported, pixels: tuple[np.ndarray, np.ndarray]) -> None:
    name = f"file:{exported.out / 'model.pt2'}"
    model = models.load(name, num_classes=10, fallback_statistics=None)
    assert model.classes == tuple(exported.report["classes"])
    assert (model.preset.size, model.preset.resize, model.preset_source) == (32, 32, "program")
    with torch.no_grad():
        logits = model.module(model.preset.normalize(torch.from_numpy(pixels[0]))).numpy()
    np.testing.assert_allclose(logits, logits_of(exported.run, pixels[0]), atol=1e-5, rtol=0)
    given = models.load(name, num_classes=10, mean=(0.5,) * 3, std=(0.5,) * 3, fallback_statistics=None)
    assert given.preset == model.preset
    assert given.remarks == (f"{name} takes uint8 images and normalizes them itself: mean and std are not used.",)


def test_own_safetensors_are_weights(exported: Exported, pixels: tuple[np.ndarray, np.ndarray]) -> None:
    path = exported.out / "model.safetensors"
    model = models.load("resnet8", num_classes=10, weights=path, fallback_statistics=None)
    of_run = models.load(f"run:{exported.run}", num_classes=10, fallback_statistics=None)
    assert (model.digest, model.preset, model.classes) == (of_run.digest, of_run.preset, of_run.classes)


def test_strangers_and_earlier_exports_are_kept(exported: Exported, kdpipe: Kdpipe, tmp_path: Path) -> None:
    out = shutil.copytree(exported.out, tmp_path / "out")
    asked = ("export", exported.run, "--to", "safetensors", "--out", out)
    refused(kdpipe(*asked), f"{out} holds an export. Pass --overwrite to replace it, or --out another directory.")
    (out / "notes.txt").write_text("mine")
    refused(kdpipe(*asked, "--overwrite"), "is not an export of kdpipe: it holds notes.txt")
    assert (out / "model.onnx").read_bytes() == (exported.out / "model.onnx").read_bytes()
    (out / "notes.txt").unlink()
    (out / ".gitignore").write_text("*")
    assert kdpipe(*asked, "--overwrite").code == 0
    assert {path.name for path in out.iterdir()} == {
        *("README.md", "export.json", "example.png", "model.safetensors", ".gitignore")
    }
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_an_earlier_export_outlives_a_signal(
    exported: Exported, commands: Server, tmp_path: Path, number: signal.Signals
) -> None:
    out, lock = shutil.copytree(exported.out, tmp_path / "out"), tmp_path / "out.lock"
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    process = commands.start("export", exported.run, "--to", "onnx", "--out", out, "--overwrite")
    deadline = time.monotonic() + 60
    while not lock.exists() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.2)
    process.send_signal(number)
    assert process.wait() == (128 + number if number == signal.SIGTERM else -number)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"out"} if number == signal.SIGTERM else left <= {"out", "out.lock"}


@pytest.fixture(scope="module")
def student(exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds of a small network of the user's, from a store of the exported pt2 with a license."""
    folder = tmp_path_factory.mktemp("student")
    limits = ("--data", "digits", "--limit-train", 60, "--limit-test", 60)
    teacher, store = f"file:{exported.out / 'model.pt2'}", folder / "logits.zarr"
    cached = run_command(
        *(None, "cache-teacher", *limits, "--teacher", teacher, "--views", 0, "--device", "cpu"),
        *("--encoding", "fp32", "--license", "CC-BY-4.0", "--out", store),
    )
    assert cached.code == 0
    trained = run_command(
        *(None, "train-student", *limits, "--store", store, "--student", SMALL, "--input-size", 16),
        *("--epochs", 1, "--seeds", "0,1", "--device", "cpu", "--out", folder / "small"),
    )
    assert trained.code == 0
    return folder / "small"


def test_own_pt2_is_a_teacher(
    exported: Exported, student: Path, pixels: tuple[np.ndarray, np.ndarray], kdpipe: Kdpipe
) -> None:
    path = student.parent / "logits.zarr"
    store = open_store(path, split="test")
    found = store.logits(join(store, dataset.load("digits", "test", 60)))
    expected = logits_of(exported.run, pixels[0])
    centered = (each - each.max(axis=1, keepdims=True) for each in (found, expected))
    np.testing.assert_allclose(*centered, atol=1e-5, rtol=0)
    verified = kdpipe("verify", path, "--data", "digits", "--teacher", f"file:{exported.out / 'model.pt2'}")
    assert "computes the same logits" in verified.out


def test_first_seed_with_the_licenses_lineage(student: Path, kdpipe: Kdpipe, tmp_path: Path) -> None:
    asked = ("export", "--run", student, "--to", "safetensors", "--out", tmp_path / "out")
    refused(kdpipe(*asked), "its network is made by tests.networks:small: pass --trust-code")
    assert list(tmp_path.iterdir()) == []
    done = kdpipe(*asked, "--trust-code")
    assert "holds 2 seeds: the first, seed-0, is exported" in done.err
    report = json.loads((tmp_path / "out" / "export.json").read_text())
    first = json.loads((student / "seed-0" / "run.json").read_text())
    assert (report["name"], report["license"], report["logits_license"]) == ("small/seed-0", "CC-BY-4.0", "CC-BY-4.0")
    assert report["lineage"]["stores"] == [store["digest"] for store in first["lineage"]["stores"]]
    assert done.out.splitlines()[-1] == f"How to use them: {tmp_path / 'out' / 'README.md'}"


def test_recommended_run_of_a_report(student: Path, kdpipe: Kdpipe, tmp_path: Path) -> None:
    report = tmp_path / "reports"
    report.mkdir()
    asked = ("export", "--report", report, "--to", "safetensors", "--out", tmp_path / "out", "--trust-code")
    refused(kdpipe(*asked), f"{report / 'metrics.json'} does not exist")
    (report / "metrics.json").write_text('{"recommended_run": null}')
    refused(kdpipe(*asked), f"{report} recommends no run: name one with --run.")
    (report / "metrics.json").write_text(json.dumps({"recommended_run": str(student / "seed-1"), "schema": 9}))
    done = kdpipe(*asked)
    assert f"{report} recommends {student / 'seed-1'}." in done.err
    assert json.loads((tmp_path / "out" / "export.json").read_text())["name"] == "small/seed-1"


def test_data_made_by_code_are_not_trusted(exported: Exported, kdpipe: Kdpipe, tmp_path: Path) -> None:
    run = shutil.copytree(exported.run, tmp_path / "run")
    record = json.loads((run / "run.json").read_text())
    record["parameters"]["data"] = "tests.strange:images"
    (run / "run.json").write_text(json.dumps(record))
    asked = ("export", run, "--to", "safetensors", "--out", tmp_path / "out")
    refused(kdpipe(*asked), "run.json", "its dataset is made by tests.strange:images: pass --trust-code", "--data")
    refused(kdpipe(*asked, "--trust-code"), "tests.strange")
    assert kdpipe(*asked, "--data", "digits", "--limit-test", 20).code == 0


def test_without_a_test_split_training_images_are_compared(exported: Exported, kdpipe: Kdpipe, tmp_path: Path) -> None:
    for digit in range(10):
        path = tmp_path / "data" / "train" / str(digit) / "0.png"
        path.parent.mkdir(parents=True)
        Image.new("RGB", (32, 32), (digit, 20 * digit, 200)).save(path)
    asked = ("--data", f"folder:{tmp_path / 'data'}", "--to", "safetensors", "--out", tmp_path / "out")
    done = kdpipe("export", exported.run, *asked)
    assert "warning: " in done.err
    assert "The files are compared with the run on 10 training images instead." in done.err
    assert json.loads((tmp_path / "out" / "export.json").read_text())["test"]["split"] == "train"
    assert "Measured on 10 train images" in (tmp_path / "out" / "README.md").read_text()


def test_other_classes_are_refused(exported: Exported, kdpipe: Kdpipe, tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / "data" / split / "cat").mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(tmp_path / "data" / split / "cat" / "0.png")
    done = kdpipe("export", exported.run, "--data", f"folder:{tmp_path / 'data'}", "--out", tmp_path / "out")
    refused(done, "was trained for other classes than those of folder:")


def test_another_accuracy_than_recorded_is_refused(exported: Exported, kdpipe: Kdpipe, tmp_path: Path) -> None:
    run = shutil.copytree(exported.run, tmp_path / "run")
    metrics = json.loads((run / "metrics.json").read_text())
    before = metrics["test"]["top1"]
    metrics["test"]["top1"] = 0.95
    (run / "metrics.json").write_text(json.dumps(metrics))
    done = kdpipe("export", run, "--to", "safetensors", "--out", tmp_path / "out")
    refused(done, "recorded a top-1 of 95.00%", f"its weights reach {before:.2%} here", "Nothing was exported")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_int8_that_loses_too_much(
    exported: Exported, pixels: tuple[np.ndarray, np.ndarray], kdpipe: Kdpipe, tmp_path: Path
) -> None:
    """Ranges of black images cut every activation off; the labels are the run's own classes."""
    images = pixels[0][:20]
    predicted = logits_of(exported.run, images).argmax(axis=1)
    for split, shown, labels in (("train", np.zeros_like(images[:10]), range(10)), ("test", images, predicted)):
        for index, (image, label) in enumerate(zip(shown, labels, strict=True)):
            path = tmp_path / "data" / split / str(label) / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.transpose(1, 2, 0)).save(path)
    asked = ("--data", f"folder:{tmp_path / 'data'}", "--quantize", "int8", "--out", tmp_path / "out")
    done = kdpipe("export", exported.run, *asked)
    refused(done, "model-int8.onnx loses ", "in fp32 100.00%), more than --max-drop 0.5. Nothing was exported; ")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            ("--to", "onix"),
            "unknown format 'onix'; did you mean 'onnx'? Known: onnx, pt2, safetensors, openvino, executorch.",
        ),
        (("--to", "onnx,onnx"), "the format onnx is given twice: leave one out."),
        (("--to", "pt2", "--quantize", "int8"), "int8 is written as onnx or openvino: add one of them to --to"),
        (("--calibration", 8), "calibration needs quantize, such as --quantize int8"),
        (("--report", "reports"), "give one of run and report"),
        (("--quantize", "int4"), "--quantize"),
    ],
)
def test_wrong_flags(exported: Exported, kdpipe: Kdpipe, tmp_path: Path, flags: tuple[object, ...], said: str) -> None:
    refused(kdpipe("export", exported.run, *flags, "--out", tmp_path / "out"), said)
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_finished_run(exported: Exported, kdpipe: Kdpipe, tmp_path: Path) -> None:
    out = tmp_path / "out"
    refused(kdpipe("export", "--out", out), "give one of run and report")
    refused(kdpipe("export", tmp_path / "none", "--out", out), "is not a finished run of kdpipe")
    run = shutil.copytree(exported.run, tmp_path / "run")
    (run / "metrics.json").unlink()
    refused(kdpipe("export", run, "--out", out), "is not a finished run of kdpipe")
    assert not out.exists()


def test_missing_package_is_named(
    exported: Exported, kdpipe: Kdpipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    done = kdpipe("export", exported.run, "--to", "openvino", "--out", tmp_path / "out")
    refused(done, "this needs openvino, which is not installed: pip install 'kdpipe[openvino]'")
    assert list(tmp_path.iterdir()) == []

"""Teachers of other frameworks, through ONNX: their stored logits are what their own framework computes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from kdpipe import dataset
from kdpipe.pairing.join import join
from kdpipe.store.manifest import read
from kdpipe.store.reader import open_store
from kdpipe.views import Geometry, Renderer
from tests.conftest import LIMITS, Built, Outcome, refused

Kdpipe = Callable[..., Outcome]
Floats = npt.NDArray[np.float64]

pytest.importorskip("onnx", reason="onnx is not installed: pip install 'kdpipe[deploy]'")
pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed: pip install 'kdpipe[deploy]'")

DATA = ("--data", "digits", "--limit-train", 60, "--limit-test", 40)
CACHE = ("cache-teacher", *DATA, "--views", 1, "--device", "cpu", "--encoding", "fp32")
UNIT = ("--mean", "0,0,0", "--std", "1,1,1")
PROBABILITIES = ("--outputs", "probabilities")

KERAS = """
import sys, keras, numpy as np
keras.utils.set_random_seed(0)
images = np.load(sys.argv[1]).astype(np.float32) / 127.5 - 1
layers = keras.layers
network = keras.Sequential([
    keras.Input((32, 32, 3)),
    layers.Conv2D(8, 3, strides=2, activation="relu"), layers.BatchNormalization(),
    layers.GlobalAveragePooling2D(), layers.Dense(10, activation="softmax"),
])
network.layers[-1].kernel.assign(30 * network.layers[-1].kernel)
np.save(sys.argv[2], network.predict(images, verbose=0))
network.export(sys.argv[3], format="onnx", verbose=False)
"""
SKLEARN = """
import sys, numpy as np
from skl2onnx import to_onnx
from sklearn.neural_network import MLPClassifier
images = np.load(sys.argv[1]).astype(np.float32) / 255
rows = images.reshape(len(images), -1)
labels = np.arange(len(rows)) % 10
network = MLPClassifier((16,), max_iter=20, random_state=0).fit(rows, labels)
np.save(sys.argv[2], network.predict_proba(rows))
for zipmap, path in ((False, sys.argv[3]), (True, sys.argv[3] + ".zipmap.onnx")):
    content = to_onnx(network, rows[:1], options={"zipmap": zipmap}).SerializeToString()
    open(path, "wb").write(content)
"""


def convert(program: str, folder: Path, images: npt.NDArray[np.uint8]) -> tuple[Path, Floats]:
    """Run a program of another framework on images; return the network that it wrote, and its outputs."""
    np.save(folder / "images.npy", images.transpose(0, 2, 3, 1))
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, "images.npy", "outputs.npy", "model.onnx"],
        cwd=folder,
        env={**os.environ, "KERAS_BACKEND": "torch", "KERAS_HOME": str(folder)},
        check=True,
        capture_output=True,
    )
    return folder / "model.onnx", np.load(folder / "outputs.npy").astype(np.float64)


def plain_view(split: str) -> npt.NDArray[np.uint8]:
    """Return the images of a split as a teacher of 32 pixels is given them, in the dataset's order."""
    samples = dataset.load("digits", split)
    renderer = Renderer(samples, "none", seed=0, geometry=Geometry(32, 32, "bilinear"), device="cpu")
    return renderer(np.arange(len(samples)), 0).numpy()


def stored(path: Path, split: str, count: int) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Return the plain logits of the stored ones of a split's first ``count`` samples, and their indices."""
    store = open_store(path, split=split)
    samples = dataset.load("digits", split)
    known = {bytes(each) for each in store.sample_ids}
    at = np.array([index for index in range(count) if bytes(samples.sample_ids[index]) in known])
    rows = join(store, samples.subset(at))
    return store.gather(0, rows).logits(slice(None)).double().numpy(), at


def compare(path: Path, probabilities: Floats, *, atol: float) -> None:
    """Compare stored rows with logarithms of probabilities, up to a constant of each row."""
    found, at = stored(path, "test", len(probabilities))
    assert len(at) == 40
    expected = np.log(np.maximum(probabilities[at], 1e-30))
    difference = found - expected
    assert np.abs(difference - difference.mean(axis=1, keepdims=True)).max() < atol
    assert np.ptp(expected) > 2


@pytest.mark.skipif(find_spec("keras") is None, reason="Keras is not installed: pip install keras")
def test_a_keras_network_is_cached_as_keras_computes_it(kdpipe: Kdpipe, tmp_path: Path) -> None:
    model, outputs = convert(KERAS, tmp_path, plain_view("test"))
    teacher = ("--teacher", f"file:{model}", "--mean", "0.5,0.5,0.5", "--std", "0.5,0.5,0.5")
    out = tmp_path / "x.zarr"
    refused(kdpipe(*CACHE, *teacher, "--out", out), "returns probabilities", "--outputs probabilities")
    assert not out.exists()
    assert kdpipe(*CACHE, *teacher, *PROBABILITIES, "--out", out).code == 0
    compare(out, outputs, atol=1e-3)
    recorded = read(out).fingerprint.teacher
    assert recorded.name == "file:model.onnx"
    assert {key: recorded.preset[key] for key in ("layout", "outputs", "floor", "size")} == {
        "layout": "nhwc",
        "outputs": "probabilities",
        "floor": 1e-30,
        "size": 32,
    }
    verified = kdpipe("verify", out, "--data", "digits", "--teacher", f"file:{model}")
    assert (verified.code, "computes the same logits" in verified.out) == (0, True)


@pytest.mark.skipif(find_spec("skl2onnx") is None, reason="skl2onnx is not installed: pip install skl2onnx")
def test_a_scikit_learn_network_is_cached_as_scikit_learn_computes_it(kdpipe: Kdpipe, tmp_path: Path) -> None:
    model, outputs = convert(SKLEARN, tmp_path, plain_view("test"))
    teacher = ("--layout", "nhwc", *UNIT, *PROBABILITIES, "--out", tmp_path / "x.zarr")
    assert kdpipe(*CACHE, "--teacher", f"file:{model}", *teacher).code == 0
    compare(tmp_path / "x.zarr", outputs, atol=1e-3)
    assert read(tmp_path / "x.zarr").fingerprint.teacher.preset["output"] == "probabilities"
    zipped = kdpipe(*CACHE, "--teacher", f"file:{model}.zipmap.onnx", *teacher, "--overwrite")
    refused(zipped, "is a tensor of floats: convert it with options={'zipmap': False}")


@pytest.fixture(scope="module")
def exported(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of kdpipe's own, exported as ONNX and as a program of torch.export."""
    from kdpipe import models
    from kdpipe.export.formats import Network, write

    model = models.load("resnet8", num_classes=10, weights=built.weights, fallback_statistics=None)
    assert model.classes is not None
    folder = tmp_path_factory.mktemp("exported")
    network = Network(model, built.weights.read_bytes(), model.classes, {"input_size": "32"})
    for artifact in write(network, ["onnx", "pt2"]):
        for name, content in artifact.files.items():
            (folder / name).write_bytes(content)
    return folder


def test_an_export_of_kdpipe_needs_no_flag(exported: Path, built: Built, kdpipe: Kdpipe, tmp_path: Path) -> None:
    assert kdpipe(*CACHE, "--teacher", f"file:{exported / 'model.onnx'}", "--out", tmp_path / "o.zarr").code == 0
    assert kdpipe(*CACHE, "--teacher", f"file:{exported / 'model.pt2'}", "--out", tmp_path / "p.zarr").code == 0
    own = kdpipe(*CACHE, "--teacher", "resnet8", "--weights", built.weights, "--out", tmp_path / "w.zarr")
    assert own.code == 0
    first, at = stored(tmp_path / "w.zarr", "test", 300)
    for name in ("o.zarr", "p.zarr"):
        found, rows = stored(tmp_path / name, "test", 300)
        assert (rows == at).all()
        assert np.abs(found - first).max() < 1e-3
    assert read(tmp_path / "o.zarr").fingerprint.teacher.parameters > 50_000


def test_an_onnx_teacher_plans_averages_and_teaches_live(
    exported: Path, built: Built, kdpipe: Kdpipe, tmp_path: Path
) -> None:
    teacher = ("--teacher", f"file:{exported / 'model.onnx'}")
    planned = kdpipe("plan", *DATA, "--views", 1, *teacher, "--pilot", 32, "--out", tmp_path / "plan.json")
    assert planned.code == 0, planned.err
    mean = ("--teacher", "resnet8", "--weights", built.weights, "--average", "--out", tmp_path / "m.zarr")
    assert kdpipe(*CACHE, *teacher, *mean).code == 0
    live = ("train-student", *DATA, "--student", "resnet8", "--epochs", 1, "--device", "cpu", "--views", 1)
    taught = kdpipe(*live, *teacher, "--out", tmp_path / "run")
    assert taught.code == 0, taught.err
    assert json.loads((tmp_path / "run" / "run.json").read_text())["parameters"]["outputs"] == "logits"


def test_a_program_is_no_student(exported: Path, kdpipe: Kdpipe, tmp_path: Path) -> None:
    training = (
        "train-student",
        *DATA,
        "--student",
        f"file:{exported / 'model.onnx'}",
        "--epochs",
        1,
        "--device",
        "cpu",
    )
    refused(kdpipe(*training, "--out", tmp_path / "run"), "has no weights that can be trained; it can be a teacher")
    assert not (tmp_path / "run").exists()


def test_signals_and_autocast_of_an_onnx_teacher_are_refused(exported: Path, kdpipe: Kdpipe, tmp_path: Path) -> None:
    teacher = (*CACHE, "--teacher", f"file:{exported / 'model.onnx'}", "--out", tmp_path / "x.zarr")
    refused(kdpipe(*teacher, "--signals", "features:conv1"), "is an ONNX model, whose layers cannot be watched")
    refused(kdpipe(*teacher, "--precision", "bf16"), "computes in the precision of its file: leave out --precision")
    assert not (tmp_path / "x.zarr").exists()


def test_an_onnx_teacher_is_timed_and_compared(exported: Path, built: Built, kdpipe: Kdpipe, tmp_path: Path) -> None:
    teacher = ("--teacher", f"file:{exported / 'model.onnx'}", "--outputs", "logits", "--out", tmp_path / "report")
    run = ("benchmark", *LIMITS, "--run", built.weights.parent, "--device", "cpu", "--rounds", 2, "--batch-sizes", 1)
    done = kdpipe(*run, *teacher, "--no-cold-starts")
    assert done.code == 0, done.err
    report = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert report["teacher"]["name"] == f"file:{exported / 'model.onnx'}"
    assert report["teacher"]["top1"] == next(iter(report["students"].values()))["top1"]


HERE = "tests.integration.test_unfit_teachers"


def test_probabilities_of_any_teacher_are_taken_as_logarithms(kdpipe: Kdpipe, tmp_path: Path) -> None:
    given = ("--teacher", f"{HERE}:softmax", "--statistics", "data")
    assert kdpipe(*CACHE, *given, *PROBABILITIES, "--out", tmp_path / "p.zarr").code == 0
    logits = (*CACHE, "--teacher", f"{HERE}:plain", "--statistics", "data", "--out", tmp_path / "l.zarr")
    assert kdpipe(*logits).code == 0
    found, at = stored(tmp_path / "p.zarr", "test", 300)
    expected, rows = stored(tmp_path / "l.zarr", "test", 300)
    assert (at == rows).all()
    expected -= np.log(np.exp(expected).sum(axis=1, keepdims=True))
    assert np.abs(found - np.maximum(expected, np.log(1e-30))).max() < 1e-3
    wrong = (*logits[:-1], tmp_path / "x.zarr", *PROBABILITIES)
    refused(kdpipe(*wrong), "returns no probabilities: its rows do not sum to 1. Leave out --outputs probabilities")


def test_imported_probabilities_are_taken_as_logarithms(kdpipe: Kdpipe, tmp_path: Path) -> None:
    rows = np.random.default_rng(0).dirichlet(np.ones(10), 60)
    np.save(tmp_path / "p.npy", rows)
    given = ("import-logits", *DATA[:-2], "--logits", tmp_path / "p.npy", "--teacher-name", "forest", "--views", 0)
    given = (*given, "--encoding", "fp32", "--out", tmp_path / "x.zarr")
    refused(kdpipe(*given), "p.npy holds probabilities", "Give --outputs probabilities")
    done = kdpipe(*given, *PROBABILITIES)
    assert done.code == 0, done.err
    assert read(tmp_path / "x.zarr").fingerprint.teacher.preset["floor"] == 1e-30
    store = open_store(tmp_path / "x.zarr", split="train")
    found = store.gather(0, np.arange(60)).logits(slice(None)).double().exp().numpy()
    assert np.allclose(np.sort(found.ravel()), np.sort(rows.ravel()), atol=1e-5)
    np.save(tmp_path / "l.npy", rows * 3)
    refused(kdpipe(*given, "--logits", tmp_path / "l.npy", *PROBABILITIES), "holds no probabilities")

"""Chains: a finished run as the teacher of the next one, and as the weights that a training begins with."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from kdpipe import dataset, models, open_store
from kdpipe.errors import ModelError
from kdpipe.training.runs import RunDirectory
from kdpipe.views import Geometry, Renderer
from tests.conftest import LIMITS, Built, Outcome, refused
from tests.integration.test_ensemble import save_teacher

Kdpipe = Callable[..., Outcome]

CACHE = ("cache-teacher", *LIMITS, "--device", "cpu", "--views", 1)
STUDENT = ("train-student", *LIMITS, "--student", "resnet8", "--epochs", 1, "--device", "cpu")


@pytest.fixture
def run(built: Built) -> str:
    """The teacher's run directory, as a name."""
    return f"run:{built.weights.parent}"


def _digest(kdpipe: Kdpipe, out: Path, *teacher: object) -> str:
    assert kdpipe(*CACHE, *teacher, "--out", out).code == 0
    return open_store(out).digest


def _single_row(run: Path) -> dict[str, float]:
    (row,) = RunDirectory(run).history()
    return row


def test_a_run_is_the_teacher_that_its_weights_are(built: Built, run: str, kdpipe: Kdpipe, tmp_path: Path) -> None:
    named = _digest(kdpipe, tmp_path / "named.zarr", "--teacher", "resnet8", "--weights", built.weights)
    moved = shutil.copytree(built.weights.parent, tmp_path / "elsewhere")
    for number, name in enumerate((run, f"run:{moved}")):
        out = tmp_path / f"{number}.zarr"
        assert _digest(kdpipe, out, "--teacher", name) == named
        assert open_store(out).manifest.fingerprint.teacher.name == "resnet8"
        assert str(built.weights.parent) not in (out / "zarr.json").read_text()
    again = kdpipe(*CACHE, "--teacher", "resnet8", "--weights", built.weights, "--out", tmp_path / "0.zarr")
    assert "nothing to do" in again.err
    assert "knows nothing" not in again.err
    verified = kdpipe("verify", tmp_path / "0.zarr", "--data", "digits", "--device", "cpu", "--teacher", run)
    assert verified.code == 0


def test_runs_and_files_are_averaged(built: Built, run: str, kdpipe: Kdpipe, tmp_path: Path) -> None:
    other = save_teacher(tmp_path / "other.safetensors")
    files = ("--teacher", "resnet8", "--weights", built.weights, "--teacher", "resnet14", "--weights", other)
    named = _digest(kdpipe, tmp_path / "named.zarr", *files, "--average")
    folder = tmp_path / "other"
    folder.mkdir()
    shutil.copy(other, folder / "model.safetensors")
    (folder / "metrics.json").write_text("{}")
    ways = {
        "runs": ("--teacher", run, "--teacher", f"run:{folder}"),
        "first": ("--teacher", run, "--teacher", "resnet14", "--weights", other),
        "last": ("--teacher", "resnet8", "--weights", built.weights, "--teacher", f"run:{folder}"),
    }
    for name, members in ways.items():
        assert _digest(kdpipe, tmp_path / f"{name}.zarr", *members, "--average") == named
        verify = ("verify", tmp_path / f"{name}.zarr", "--data", "digits", "--device", "cpu", *members)
        assert kdpipe(*verify).code == 0


def test_a_live_teacher_is_a_run(built: Built, run: str, kdpipe: Kdpipe, tmp_path: Path) -> None:
    assert (
        kdpipe(*STUDENT, "--teacher", run, "--store", built.store, "--distill", "live", "--out", tmp_path / "a").code
        == 0
    )
    files = ("--teacher", "resnet8", "--weights", built.weights)
    assert kdpipe(*STUDENT, *files, "--store", built.store, "--distill", "live", "--out", tmp_path / "b").code == 0
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in "ab"]
    assert weights[0] == weights[1]
    lineages = [RunDirectory(tmp_path / name).record()["lineage"]["teachers"] for name in "ab"]
    assert lineages[0] == lineages[1]
    assert lineages[0][0]["name"] == "resnet8"


def test_a_run_brings_its_own_weights(built: Built, run: str, kdpipe: Kdpipe, tmp_path: Path) -> None:
    beside = ("--teacher", run, "--weights", built.weights)
    refused(kdpipe(*CACHE, *beside, "--out", tmp_path / "l.zarr"), "1 weights for 0 teachers", f"{run} brings its own")
    refused(kdpipe(*STUDENT, *beside, "--out", tmp_path / "r"), f"'{run}' carries its own weights; leave out")
    verify = ("verify", built.store, "--data", "digits", "--device", "cpu")
    refused(kdpipe(*verify, *beside), "1 weights for 0 teachers")
    assert list(tmp_path.iterdir()) == []


def test_directories_that_are_no_finished_run(built: Built, kdpipe: Kdpipe, tmp_path: Path) -> None:
    folders = {name: tmp_path / name for name in ("missing", "empty", "unfinished", "seeds", "headless")}
    for name in ("empty", "unfinished", "seeds", "headless"):
        folders[name].mkdir()
    for file in ("run.json", "model.safetensors"):
        shutil.copy(built.weights.parent / file, folders["unfinished"] / file)
    (folders["seeds"] / "metrics.json").write_text("{}")
    shutil.copytree(built.weights.parent, folders["seeds"] / "seed-3")
    (folders["headless"] / "metrics.json").write_text("{}")
    content = built.weights.read_bytes()
    assert content.count(b'"architecture"') == 1
    (folders["headless"] / "model.safetensors").write_bytes(content.replace(b'"architecture"', b'"whatelseisit"'))
    parts = {
        "missing": "there is no directory",
        "empty": "is not a finished run of kdpipe",
        "unfinished": "not finished",
        "seeds": f"name one, such as run:{folders['seeds']}/seed-3",
        "headless": "its header names no architecture",
    }
    for name, part in parts.items():
        teacher = ("--teacher", f"run:{folders[name]}")
        refused(kdpipe(*CACHE, *teacher, "--out", tmp_path / "l.zarr"), str(folders[name]), part)
    assert not (tmp_path / "l.zarr").exists()
    assert kdpipe(*CACHE, "--teacher", f"run:{folders['seeds']}/seed-3", "--out", tmp_path / "l.zarr").code == 0


def test_a_run_cannot_be_drawn_anew(run: str) -> None:
    with pytest.raises(ModelError, match="carries its own weights and cannot be trained from scratch"):
        models.create(run, 10)


def test_a_run_of_other_classes(run: str) -> None:
    with pytest.raises(ModelError, match="the weights have 10 classes, the dataset has 7"):
        models.load(run, num_classes=7, fallback_statistics=lambda: ((0.5,) * 3, (0.5,) * 3))


@pytest.mark.parametrize("command", ["train-student", "train-teacher"])
def test_the_first_step_of_a_fine_tuning(command: str, kdpipe: Kdpipe, tmp_path: Path) -> None:
    """One batch of all samples: the loss is that of the weights, on pixels normalized as their header says."""
    file = save_teacher(tmp_path / "begin.safetensors")
    named = ("--student", "resnet14") if command == "train-student" else ("--model", "resnet14")
    begun = (command, *LIMITS, *named, "--epochs", 1, "--batch-size", 200, "--device", "cpu", "--init-weights", file)
    assert kdpipe(*begun, "--out", tmp_path / "tuned").code == 0
    digits = dataset.load("digits", "train", 200)
    model = models.load("resnet14", num_classes=10, weights=file, fallback_statistics=digits.statistics)
    assert model.preset.mean == (0.3, 0.3, 0.3)
    pixels = Renderer(digits, "crop-flip", seed=0, geometry=Geometry.of(model.preset))(range(200), 1)
    with torch.no_grad():
        logits = model.module.train()(model.preset.normalize(pixels))
    expected = torch.nn.functional.cross_entropy(logits, torch.from_numpy(digits.labels).long())
    assert _single_row(tmp_path / "tuned")["loss"] == pytest.approx(expected.item(), rel=1e-5)

    record = RunDirectory(tmp_path / "tuned").record()
    assert record["lineage"]["init_weights"] == {"name": str(file), "digest": model.digest}
    assert record["preset"] == model.preset.describe()
    assert record["preset_source"] == "weights"
    tuned = models.load(f"run:{tmp_path / 'tuned'}", num_classes=10, fallback_statistics=digits.statistics)
    assert tuned.preset == model.preset
    assert tuned.digest != model.digest


def test_a_run_s_weights_are_those_of_its_file(built: Built, run: str, kdpipe: Kdpipe, tmp_path: Path) -> None:
    for name, origin in {"file": built.weights, "run": run}.items():
        assert kdpipe(*STUDENT, "--init-weights", origin, "--out", tmp_path / name).code == 0
    assert kdpipe(*STUDENT, "--out", tmp_path / "drawn").code == 0
    weights = {name: (tmp_path / name / "model.safetensors").read_bytes() for name in ("file", "run", "drawn")}
    assert weights["file"] == weights["run"] != weights["drawn"]
    digests = [RunDirectory(tmp_path / name).record()["lineage"]["init_weights"]["digest"] for name in ("file", "run")]
    assert digests[0] == digests[1]
    assert "init_weights" not in RunDirectory(tmp_path / "drawn").record()["lineage"]


def test_weights_that_do_not_fit_are_refused(built: Built, run: str, kdpipe: Kdpipe, tmp_path: Path) -> None:
    out = tmp_path / "run"
    larger = ("train-student", *LIMITS, "--student", "resnet14", "--device", "cpu", "--out", out)
    refused(kdpipe(*larger, "--init-weights", run), "do not fit (its header names resnet8)", "expected layer1.1")
    refused(kdpipe(*larger, "--init-weights", tmp_path / "none.pt"), "there is no such file")
    refused(kdpipe(*larger, "--init-weights", f"run:{tmp_path}"), "is not a finished run of kdpipe")
    fewer = tmp_path / "fewer.safetensors"
    model = models.load(run, num_classes=10, fallback_statistics=lambda: ((0.5,) * 3, (0.5,) * 3))
    module, preset = models.create("resnet8", 9), model.preset
    models.save_weights(fewer, module, architecture="resnet8", preset=preset, classes=[str(n) for n in range(9)])
    refused(kdpipe(*STUDENT, "--init-weights", fewer, "--out", out), "the weights have 9 classes, the dataset has 10")
    assert model.classes is not None
    swapped = tmp_path / "swapped.safetensors"
    models.save_weights(swapped, model.module, architecture="resnet8", preset=preset, classes=model.classes[::-1])
    refused(kdpipe(*STUDENT, "--init-weights", swapped, "--out", out), "swapped.safetensors has the classes of digits")
    assert not out.exists()


def test_a_run_does_not_replace_what_it_begins_with(built: Built, kdpipe: Kdpipe, tmp_path: Path) -> None:
    out = shutil.copytree(built.weights.parent, tmp_path / "run")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    for origin in (f"run:{out}", out / "model.safetensors", f"run:{out}/../run"):
        refused(kdpipe(*STUDENT, "--init-weights", origin, "--out", out), str(out), "Pass another --out")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_resuming_needs_the_same_beginning(built: Built, run: str, kdpipe: Kdpipe, tmp_path: Path) -> None:
    origin = shutil.copytree(built.weights.parent, tmp_path / "origin")
    for name in ("run.json", "metrics.json"):  # as runs of before digests were recorded
        record = json.loads((origin / name).read_text())
        del record["weights"]
        (origin / name).write_text(json.dumps(record))
    out = tmp_path / "run"
    assert kdpipe(*STUDENT, "--init-weights", f"run:{origin}", "--out", out).code == 0
    assert kdpipe(*STUDENT, "--init-weights", f"run:{origin}", "--out", out, "--resume").code == 0
    content = bytearray((origin / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (origin / "model.safetensors").write_bytes(content)
    changed = kdpipe(*STUDENT, "--init-weights", f"run:{origin}", "--out", out, "--resume")
    refused(changed, "started with other lineage", "init_weights")
    assert json.loads((out / "metrics.json").read_text())


def test_a_run_of_one_s_own_network(kdpipe: Kdpipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = (
        "import torch\n"
        "def build(classes):\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, classes))\n"
    )
    (tmp_path / "own_chain.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    trained = ("train-teacher", *LIMITS, "--model", "own_chain:build", "--epochs", 1, "--device", "cpu")
    assert kdpipe(*trained, "--out", tmp_path / "run").code == 0
    weights = tmp_path / "run" / "model.safetensors"
    named = _digest(kdpipe, tmp_path / "named.zarr", "--teacher", "own_chain:build", "--weights", weights)
    run = ("--teacher", f"run:{tmp_path / 'run'}", "--trust-code")
    assert _digest(kdpipe, tmp_path / "run.zarr", *run) == named


def test_students_together_are_those_alone(built: Built, run: str, kdpipe: Kdpipe, tmp_path: Path) -> None:
    """One begins with weights of its own, and both hear the teachers that are drawn for the batches."""
    other = tmp_path / "other.zarr"
    assert kdpipe(*CACHE, "--teacher", "resnet14", "--out", other).code == 0
    mixed = ("--store", built.store, "--store", other, "--store-mix", "draw", "--epochs", 2, "--batch-size", 64)
    command = ("train-student", *LIMITS, "--device", "cpu", *mixed)
    fleet = tmp_path / "fleet.yaml"
    fleet.write_text(
        f"- {{student: resnet8, name: tuned, init_weights: '{run}'}}\n- {{student: resnet8, name: drawn}}\n"
    )
    assert kdpipe(*command, "--fleet", fleet, "--out", tmp_path / "fleet").code == 0
    origin = {"tuned": ("--init-weights", run), "drawn": ()}
    for name, flags in origin.items():
        assert kdpipe(*command, "--student", "resnet8", *flags, "--out", tmp_path / name).code == 0
        together, alone = (folder / name for folder in (tmp_path / "fleet", tmp_path))
        assert (together / "model.safetensors").read_bytes() == (alone / "model.safetensors").read_bytes()
        assert ("init_weights" in RunDirectory(together).record()["lineage"]) == (name == "tuned")

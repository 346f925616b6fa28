"""Datasets of tensors, from a teacher's training to the report: tokens with a mask, and a table."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from kdpipe import attach, dataset, models, open_store
from kdpipe.pairing.join import join
from kdpipe.views import Renderer
from tests import tensor_data
from tests.conftest import Outcome, refused, run_command

Kdpipe = Callable[..., Outcome]

TOKENS, TABLE = "tests.tensor_data:tokens", "tests.tensor_data:table"
CPU = ("--device", "cpu", "--batch-size", 32)
SIGNALS = "hidden:attention+heads:attention+features:attention,penultimate"


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher of tokens, and a store of its logits and signals."""
    folder = tmp_path_factory.mktemp("tensors")
    training = ("--epochs", 8, "--optimizer", "adamw", "--lr", 0.01)
    own = ("--data", TOKENS, "--model", "tests.tensor_data:teacher")
    assert run_command(None, "train-teacher", *own, *training, *CPU, "--out", folder / "teacher").code == 0
    cached = ("--teacher", f"run:{folder / 'teacher'}", "--trust-code", "--recipe", "spans:1,2,1", "--views", 2)
    stored = ("--encoding", "fp32", "--signals", SIGNALS, "--out", folder / "s.zarr")
    assert run_command(None, "cache-teacher", "--data", TOKENS, *cached, *CPU, *stored).code == 0
    return folder


def student(work: Path, out: Path, *extra: object, name: str = "student") -> tuple[object, ...]:
    own = ("train-student", "--data", TOKENS, "--student", f"tests.tensor_data:{name}", "--epochs", 3)
    return (*own, "--optimizer", "adamw", "--lr", 0.01, *CPU, "--out", out, *extra)


def test_the_teacher_learns_and_the_run_records_its_tensors(work: Path) -> None:
    record = json.loads((work / "teacher" / "run.json").read_text())
    inputs = [["input_ids", "int64", [10]], ["attention_mask", "int64", [10]]]
    assert (record["preset"], record["recipe"]["name"]) == ({"inputs": inputs}, "none")
    assert json.loads((work / "teacher" / "metrics.json").read_text())["test"]["top1"] > 0.8
    assert open_store(work / "s.zarr").manifest.fingerprint.teacher.preset == {"inputs": inputs}


def test_the_store_holds_what_the_teacher_returns(work: Path) -> None:
    data, store = dataset.load(TOKENS, "train"), open_store(work / "s.zarr")
    model = models.load(
        f"run:{work / 'teacher'}", num_classes=2, form=data.form, fallback_statistics=None, trust_code=True
    )
    rows, net = join(store, data), model.module
    for view in range(3):
        items = model.preset.normalize(Renderer(data, "spans:1,2,1", seed=0, geometry=None)(range(160), view))
        mask = items["attention_mask"][:, :, None]
        with torch.no_grad():
            logits = net(items)
            states, weights = net.attention(net.embedding(items["input_ids"]), items["attention_mask"])
        expected = {
            "hidden:attention": states * mask,
            "heads:attention": weights * mask[:, None],
            "features:attention": states.mean(1),
        }
        assert torch.allclose(store.gather(view, rows).logits(slice(None)), logits, atol=1e-5)
        for name, values in expected.items():
            assert np.abs(store.signal(name, rows, view) - values.numpy()).max() < 4e-3, name


def test_a_student_of_the_store_is_that_of_the_live_teacher(work: Path, tmp_path: Path) -> None:
    given = ("--store", work / "s.zarr")
    assert run_command(None, *student(work, tmp_path / "cached", *given)).code == 0
    teacher = ("--teacher", f"run:{work / 'teacher'}", "--trust-code", "--distill", "live")
    assert run_command(None, *student(work, tmp_path / "live", *given, *teacher)).code == 0
    cached, live = (load_file(tmp_path / name / "model.safetensors") for name in ("cached", "live"))
    assert cached.keys() == live.keys()
    for name, values in cached.items():
        torch.testing.assert_close(values, live[name], atol=1e-5, rtol=1e-4)


def test_losses_on_sequences_are_learned_and_the_students_compared(work: Path, kdpipe: Kdpipe, tmp_path: Path) -> None:
    losses = "dkd+dist+hidden:attention+heads:attention+features+rkd:penultimate"
    trained = kdpipe(*student(work, tmp_path / "taught", "--store", work / "s.zarr", "--loss", losses))
    assert trained.code == 0
    assert re.search(r"top-1 \S+%, [\d,]+ samples/s, ", trained.err)
    assert "images" not in trained.err
    columns = (tmp_path / "taught" / "history.csv").read_text().partition("\n")[0].split(",")
    assert {"kd", "hidden", "heads", "features", "rkd"} <= {*columns}
    assert kdpipe(*student(work, tmp_path / "alone", "--seeds", "0,1", "--validation", 0.2)).code == 0
    compared = kdpipe(
        *("benchmark", "--data", TOKENS, "--run", tmp_path / "taught", "--run", tmp_path / "alone", "--trust-code"),
        *("--store", work / "s.zarr", "--rounds", 1, "--device", "cpu", "--engines", "eager"),
        *("--out", tmp_path / "report"),
    )
    assert compared.code == 0, compared.err
    metrics = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert {each["size"] for each in metrics["timings"]} == {"input_ids int64 (10), attention_mask int64 (10)"}
    assert (tmp_path / "report" / "report.html").is_file()


def test_own_loops_get_the_items_of_the_view(work: Path) -> None:
    data, store = dataset.load(TOKENS, "train"), open_store(work / "s.zarr")
    attached = attach(store, data)
    attached.set_epoch(1)
    item, label, target = attached[3]
    assert data.form is not None
    shown = data.form.split(Renderer(data, "spans:1,2,1", seed=0, geometry=None)([3], 2))
    assert {name: values.tolist() for name, values in item.items()} == {
        name: values[0].tolist() for name, values in shown.items()
    }
    assert label == tensor_data.tokens("train").targets[3]
    assert torch.equal(target, store.gather(2, join(store, data)[3:4]).logits(slice(None))[0])


def test_stores_of_tensors_are_verified_against_data_and_teacher(work: Path, kdpipe: Kdpipe) -> None:
    given = ("--data", TOKENS, "--teacher", f"run:{work / 'teacher'}", "--trust-code")
    found = kdpipe("verify", work / "s.zarr", *given)
    assert found.code == 0, found.err
    assert "computes the same logits" in found.out
    other = kdpipe("verify", work / "s.zarr", "--data", TABLE)
    assert other.code == 1


def test_a_table_goes_the_same_way(kdpipe: Kdpipe, tmp_path: Path) -> None:
    own = ("--data", TABLE, *CPU, "--epochs", 2, "--lr", 0.1)
    assert kdpipe("train-teacher", *own, "--model", "tests.tensor_data:mlp", "--out", tmp_path / "t").code == 0
    cached = ("--recipe", "noise:0.1", "--views", 1, "--device", "cpu", "--out", tmp_path / "s.zarr")
    teacher = ("--teacher", f"run:{tmp_path / 't'}", "--trust-code")
    assert kdpipe("cache-teacher", "--data", TABLE, *teacher, *cached).code == 0
    fleet = ("--student", "tests.tensor_data:mlp", "--validation", 0.2)
    assert kdpipe("train-student", *own, *fleet, "--store", tmp_path / "s.zarr", "--out", tmp_path / "x").code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--student", "resnet8"), "'resnet8' takes images, the dataset has tensors"),
        (("--student", "tests.tensor_data:mlp"), "does not take the dataset's tensors"),
        (("--student", "tests.tensor_data:student", "--recipe", "crop"), "'crop' changes images"),
        (("--student", "tests.tensor_data:student", "--input-size", 32), "takes tensors as they are"),
        (("--student", "tests.tensor_data:student", "--aux", "rotation"), "rotation:0.5 is for images"),
        (("--student", "tests.tensor_data:student", "--adversarial", "pgd:8/255,2"), "--adversarial is for images"),
        (("--student", "tests.tensor_data:student", "--channels-last"), "channels-last is for images"),
    ],
)
def test_what_is_for_images_is_refused(
    arguments: tuple[object, ...], message: str, kdpipe: Kdpipe, tmp_path: Path
) -> None:
    given = ("train-student", "--data", TOKENS, "--epochs", 1, *CPU, "--out", tmp_path / "x", *arguments)
    refused(kdpipe(*given), message)
    assert not (tmp_path / "x").exists()


def test_values_that_a_network_does_not_take_are_refused_in_a_line(work: Path, kdpipe: Kdpipe, tmp_path: Path) -> None:
    teacher = ("cache-teacher", "--data", TOKENS, "--teacher", f"run:{work / 'teacher'}", "--trust-code", *CPU)
    message = (
        "the network fails for values of its tensors (input_ids int64 (10), attention_mask int64 (10)): IndexError"
    )
    out = tmp_path / "s.zarr"
    stays = f"{out} keeps what is finished: pass --overwrite with another recipe or other data."
    refused(kdpipe(*teacher, "--recipe", "spans:2,3,999", "--views", 1, "--out", out), message, stays)
    corrected = (*teacher, "--recipe", "spans:2,3,1", "--views", 1, "--out", out)
    refused(kdpipe(*corrected), f"{out} differs from what is asked for (recipe", "Rebuild it with --overwrite")
    assert kdpipe(*corrected, "--overwrite").code == 0
    learning = ("--model", "tests.tensor_data:short_vocabulary", "--epochs", 1, "--out", tmp_path / "x")
    refused(kdpipe("train-teacher", "--data", TOKENS, *CPU, *learning), message)
    taught = ("--store", work / "s.zarr")
    refused(kdpipe(*student(work, tmp_path / "y", *taught, name="short_vocabulary")), message)


def test_a_network_of_tensors_is_none_for_images(work: Path, kdpipe: Kdpipe, tmp_path: Path) -> None:
    teacher = ("--teacher", f"run:{work / 'teacher'}", "--trust-code")
    given = ("cache-teacher", "--data", "digits", "--limit-train", 20, *teacher, "--device", "cpu")
    found = kdpipe(*given, "--out", tmp_path / "s.zarr")
    assert found.code == 1
    assert not (tmp_path / "s.zarr").exists()


def test_stores_of_tensors_grow_are_shared_and_averaged(work: Path, kdpipe: Kdpipe, tmp_path: Path) -> None:
    given = ("--data", TOKENS, "--teacher", f"run:{work / 'teacher'}", "--trust-code", "--recipe", "spans:1,2,1")
    out = ("--views", 1, "--device", "cpu", "--out", tmp_path / "s.zarr")
    assert kdpipe("cache-teacher", *given, *out, "--limit-train", 80).code == 0
    assert kdpipe("cache-teacher", *given, *out).code == 0
    assert open_store(tmp_path / "s.zarr").num_samples == 160
    place = f"{tmp_path / 'shared'}/tokens@v1"
    assert kdpipe("publish", tmp_path / "s.zarr", place, "--license", "CC0-1.0", "--contact", "a@example.org").code == 0
    two = ("--store", place, "--store", work / "s.zarr", "--views", 1)
    assert kdpipe(*student(work, tmp_path / "x", *two)).code == 0
    np.save(tmp_path / "l.npy", np.random.default_rng(0).normal(size=(160, 2)).astype(np.float32))
    logits = ("--logits", tmp_path / "l.npy", "--teacher-name", "other", "--out", tmp_path / "i.zarr")
    assert kdpipe("import-logits", "--data", TOKENS, *logits).code == 0
    made = open_store(tmp_path / "i.zarr").manifest.fingerprint.teacher
    assert list(made.preset) == ["inputs"]


def test_exports_and_smaller_networks_are_of_images(work: Path, kdpipe: Kdpipe, tmp_path: Path) -> None:
    run = ("--run", work / "teacher", "--trust-code", "--data", TOKENS, "--out", tmp_path / "x")
    refused(kdpipe("export", *run, "--to", "pt2"), "takes tensors", "only networks of images are exported")
    refused(kdpipe("compress", *run, "--prune", 0.5), "compression is for images")
    refused(kdpipe("benchmark", *run, "--adversarial", "pgd:8/255,2"), "adversarial is for images")
    assert not (tmp_path / "x").exists()

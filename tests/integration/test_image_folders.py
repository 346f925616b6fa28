"""Image folders that are not as a book has them: incomplete splits, images in both, broken ones, archives."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdpipe.dataset import load
from kdpipe.errors import DatasetError
from kdpipe.store.reader import open_store
from kdpipe.views import Recipe, Renderer
from tests.conftest import refused, run_command

SMALL = ("--epochs", 2, "--batch-size", 4, "--device", "cpu")


def folder(root: Path, **counts: int) -> Path:
    """Write this many random images into each folder SPLIT_CLASS."""
    random = np.random.default_rng(0)
    for place, count in counts.items():
        target = root / place.replace("_", "/")
        target.mkdir(parents=True)
        for index in range(count):
            Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(target / f"{index}.png")
    return root


def test_all_stages_work_without_a_test_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ("--data", f"folder:{folder(tmp_path / 'data', train_ant=6, train_bee=6)}")

    def kdpipe(*arguments: object) -> str:
        outcome = run_command(capsys, *arguments)
        assert outcome.code == 0, outcome.err
        return outcome.err

    teacher, store, student = tmp_path / "teacher", tmp_path / "t.zarr", tmp_path / "student"
    err = kdpipe("train-teacher", *data, "--model", "resnet8", "--out", teacher, "--validation", 0.34, *SMALL)
    assert err.count("no test figures") == 1
    assert "test top-1 n/a (no test split) after 2 epochs" in err
    assert "; test top-1 n/a (no test split)." in err
    metrics = json.loads((teacher / "metrics.json").read_text())
    assert metrics["test"]["top1"] is None
    assert metrics["best_on_validation"]["validation"]["top1"] is not None
    err = kdpipe("cache-teacher", *data, "--teacher", f"run:{teacher}", "--out", store, "--views", 1, "--device", "cpu")
    assert err.count("no test figures") == 1
    kdpipe("verify", store, *data, "--deep")
    kdpipe("inspect", store)
    kdpipe("train-student", *data, "--store", store, "--student", "resnet8", "--out", student, *SMALL)
    err = kdpipe("benchmark", *data, "--run", student, "--out", tmp_path / "report", "--rounds", 5, "--no-cold-starts")
    assert err.count("has no test split") == 1
    measured = json.loads((tmp_path / "report" / "metrics.json").read_text())["students"]["student"]
    assert measured["top1"] is None
    assert measured["latency_ms"]["batch1"]["p50"] > 0


def test_a_class_without_test_images_is_absent_from_the_test(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = folder(tmp_path / "data", train_ant=4, train_bee=4, train_cow=4, test_ant=2, test_cow=2, test_bee=0)
    outcome = run_command(
        capsys, "train-teacher", "--data", f"folder:{root}", "--model", "resnet8", "--out", tmp_path / "run", *SMALL
    )
    assert outcome.code == 0, outcome.err
    assert outcome.err.count("the class 'bee' of train without test images") == 1


def test_a_class_with_one_image_stays_in_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = folder(tmp_path / "data", train_ant=8, train_bee=8, train_cow=1)
    for number, fraction in enumerate((0.15, 0.4)):
        out = tmp_path / f"run{number}"
        arguments = ("--data", f"folder:{root}", "--model", "resnet8", "--out", out, "--validation", fraction, *SMALL)
        outcome = run_command(capsys, "train-teacher", *arguments)
        assert outcome.code == 0, outcome.err
        assert "1 classes with one training image ('cow') keep it in training" in outcome.err


def test_images_in_both_splits_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = folder(tmp_path / "data", train_ant=4, train_bee=4, test_ant=3, test_bee=3)
    for name, copied in (("ant", "0.png"), ("bee", "other.png")):
        (root / "test" / name / copied).write_bytes((root / "train" / name / "2.png").read_bytes())
    data, teacher, store = ("--data", f"folder:{root}"), tmp_path / "run", tmp_path / "t.zarr"
    for arguments in (
        ("train-teacher", *data, "--model", "resnet8", "--out", teacher, "--validation", 0.5, *SMALL),
        ("cache-teacher", *data, "--teacher", f"run:{teacher}", "--out", store, "--views", 1, "--device", "cpu"),
        ("train-student", *data, "--store", store, "--student", "resnet8", "--out", tmp_path / "s", *SMALL),
    ):
        outcome = run_command(capsys, *arguments)
        assert outcome.code == 0, outcome.err
        assert outcome.err.count("warning: 2 of 7 test images are in train, too") == 1


def test_an_image_that_breaks_under_a_worker_is_named_in_one_line(tmp_path: Path) -> None:
    root = folder(tmp_path / "data", train_ant=4, train_bee=4)
    found = load(f"folder:{root}", "train", loading="stream")
    (root / "train/bee/2.png").write_bytes(b"no image")
    renderer = Renderer(found, Recipe.parse("crop-flip"), seed=0, geometry=None)
    with pytest.raises(DatasetError) as caught:
        list(renderer.batches([np.arange(4), np.arange(4, 8)], 1))
    assert str(caught.value) == (
        f"{root}/train/bee/2.png changed after the dataset was loaded; start again to use the new file"
    )


def test_an_archive_in_place_of_a_folder_is_to_be_unpacked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.tar").write_bytes(b"an archive")
    outcome = run_command(
        capsys, "train-teacher", "--data", f"folder:{tmp_path}/x.tar", "--model", "resnet8", "--out", tmp_path / "run"
    )
    refused(outcome, f"'{tmp_path}/x.tar' is a file, expected a folder of images; unpack it")
    assert "did you mean" not in outcome.err


@pytest.mark.parametrize("recipe", ["crop-flip", "crop-flip+mixup:0.8"])
def test_views_are_added_after_a_label_was_corrected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], recipe: str
) -> None:
    """The logits are then those of a store that had all views before the file was moved; the label is the new one."""
    data = folder(tmp_path / "data", train_ant=5, train_bee=5, test_ant=2, test_bee=2)
    teacher = ("--teacher", "tests.integration.test_unfit_teachers:plain", "--statistics", "data")
    command = ("cache-teacher", "--data", f"folder:{data}", *teacher, "--recipe", recipe, "--device", "cpu")
    few, many, corrected = tmp_path / "few.zarr", tmp_path / "many.zarr", tmp_path / "corrected.zarr"
    assert run_command(capsys, *command, "--views", 1, "--out", few).code == 0
    assert run_command(capsys, *command, "--views", 3, "--out", many).code == 0
    before = open_store(few).digest
    (data / "train/ant/3.png").rename(data / "train/bee/0a.png")
    (data / "test/bee/0.png").rename(data / "test/bee/renamed.png")
    unchanged = run_command(capsys, *command, "--views", 1, "--out", few)
    assert "holds exactly this: nothing to do" in unchanged.err
    assert open_store(few).digest == before
    outcome = run_command(capsys, *command, "--views", 3, "--out", few)
    assert outcome.code == 0, outcome.err
    assert "warning: 1 of 10 'train' samples have other labels" in outcome.err
    assert "1 of 4 'test' samples have other names" in outcome.err
    added, whole = open_store(few), open_store(many)
    assert np.array_equal(added.sample_ids, whole.sample_ids)
    for view in range(4):
        assert np.array_equal(added.plane(view), whole.plane(view))
    now = load(f"folder:{data}", "train")
    (row,) = np.flatnonzero(added.labels != whole.labels)
    (index,) = np.flatnonzero((now.content_digests == whole.content_digests[row]).all(axis=1))
    assert now.keys[index] == "train/bee/0a.png"
    assert run_command(capsys, "verify", few, "--data", f"folder:{data}", "--deep").code == 0
    (data / "train/ant/4.png").unlink()
    assert "1 removed" in run_command(capsys, *command, "--views", 3, "--out", few).err
    assert run_command(capsys, *command, "--views", 3, "--out", corrected).code == 0

"""The same images as a folder, Parquet, tar archives, arrays and a dataset of Hugging Face: one store serves all."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdpipe import dataset, open_store
from kdpipe.errors import MissingSplitError
from tests.conftest import refused
from tests.images import WRITERS, rows
from tests.integration.test_growth import Kdpipe, cached, teacher

__all__ = ["teacher"]

STUDENT = (
    "--student",
    "resnet8",
    "--epochs",
    1,
    "--batch-size",
    16,
    "--input-size",
    16,
    "--device",
    "cpu",
    "--seed",
    3,
)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """60 training and 40 test images of two classes, PNG and JPEG."""
    root = tmp_path / "photos"
    for split, each in (("train", 30), ("test", 20)):
        for number, name in enumerate(("ant", "bee")):
            (root / split / name).mkdir(parents=True)
            for index in range(each):
                draw = np.random.default_rng(1000 * (split == "test") + 100 * number + index)
                levels = draw.integers(80 * number, 176 + 80 * number, (16, 16, 3), dtype=np.uint8)
                ending = "png" if index % 2 else "jpg"
                Image.fromarray(levels).save(root / split / name / f"{index:02}.{ending}")
    return root


def trained(kdpipe: Kdpipe, spec: str, store: Path, out: Path, *more: object) -> tuple[bytes, dict[str, float], str]:
    """Return the weights and the test figures of a student, and what its training printed."""
    outcome = kdpipe("train-student", "--data", spec, "--store", store, "--out", out, *STUDENT, *more)
    assert outcome.code == 0, outcome.err
    metrics = json.loads((out / "metrics.json").read_text())
    return (out / "model.safetensors").read_bytes(), metrics["test"], outcome.err


def test_one_store_serves_every_form(kdpipe: Kdpipe, photos: Path, tmp_path: Path) -> None:
    store = tmp_path / "logits.zarr"
    assert cached(kdpipe, photos, store, views=1).code == 0
    weights, figures, _ = trained(kdpipe, f"folder:{photos}", store, tmp_path / "run-folder")
    for form, loading in (("webdataset", "memory"), ("parquet", "stream"), ("hf", "memory"), ("npz", "memory")):
        spec, out = WRITERS[form](photos, tmp_path / form), tmp_path / f"run-{form}"
        own, tested, printed = trained(kdpipe, spec, store, out, "--loading", loading, "--workers", 1)
        assert "60 of 60 'train' samples have other names" in printed
        assert f"matched by {'pixels' if form == 'npz' else 'content'}" in printed
        assert tested == figures
        assert own == weights, f"{form} gives other weights than the folder"


def test_a_store_of_parquet_serves_the_folder(kdpipe: Kdpipe, photos: Path, tmp_path: Path) -> None:
    spec = WRITERS["parquet"](photos, tmp_path / "parquet")
    stores = {}
    for name, loading in (("memory", "memory"), ("stream", "stream")):
        stores[name] = tmp_path / f"{name}.zarr"
        outcome = kdpipe(
            *("cache-teacher", "--data", spec, "--teacher", "growing_teacher:build", "--views", 1),
            *("--mean", "0,0,0", "--std", "1,1,1", "--input-size", 16, "--device", "cpu", "--recipe", "crop-flip"),
            *("--loading", loading, "--out", stores[name]),
        )
        assert outcome.code == 0, outcome.err
    assert open_store(stores["memory"]).digest == open_store(stores["stream"]).digest
    first = trained(kdpipe, spec, stores["memory"], tmp_path / "run-parquet")
    second = trained(kdpipe, f"folder:{photos}", stores["stream"], tmp_path / "run-folder")
    assert first[:2] == second[:2]
    assert kdpipe("verify", stores["memory"], "--data", f"folder:{photos}").code == 0


def test_a_store_grows_by_the_new_rows_of_a_table(kdpipe: Kdpipe, photos: Path, tmp_path: Path) -> None:
    """Ids are made of content: rows that moved are the same samples."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    spec, store = WRITERS["parquet"](photos, tmp_path / "parquet"), tmp_path / "logits.zarr"
    cache = ("cache-teacher", "--teacher", "growing_teacher:build", "--views", 1, "--mean", "0,0,0", "--std", "1,1,1")
    cache = (*cache, "--input-size", 16, "--device", "cpu", "--data", spec, "--out", store)
    assert kdpipe(*cache).code == 0
    before = {bytes(key) for key in open_store(store).sample_ids}
    pairs = rows(photos, "train")
    order = [59, *range(59)]
    moved = {name: [values[index] for index in order] for name, values in pairs.items()}
    new = Image.fromarray(np.full((16, 16, 3), 7, np.uint8))
    new.save(tmp_path / "new.png")
    moved["image"].append({"bytes": (tmp_path / "new.png").read_bytes(), "path": "new.png"})
    moved["name"].append("new")
    moved["label"] = [("ant", "bee")[label] for label in moved["label"]] + ["ant"]
    pq.write_table(pa.table(moved), tmp_path / "parquet/train.parquet")
    outcome = kdpipe(*cache)
    assert outcome.code == 0, outcome.err
    after = {bytes(key) for key in open_store(store).sample_ids}
    assert len(after) == 61
    assert before < after


def test_broken_rows_are_named_and_can_be_skipped(kdpipe: Kdpipe, photos: Path, tmp_path: Path) -> None:
    (photos / "train/ant/03.png").write_bytes((photos / "train/ant/03.png").read_bytes()[:200])
    (photos / "train/bee/05.png").write_bytes(b"no image")
    for form in ("webdataset", "parquet", "hf"):
        spec = WRITERS[form](photos, tmp_path / form)
        command = ("train-student", "--data", spec, "--distill", "none", *STUDENT, "--out", tmp_path / f"run-{form}")
        where = "train-000000.tar/bee/05.png" if form == "webdataset" else "/row 35"
        refused(kdpipe(*command), where, "not an image format", "--skip-broken")
        outcome = kdpipe(*command, "--skip-broken")
        assert outcome.code == 0, outcome.err
        assert "warning: skipped: 2" in outcome.err
        assert json.loads((tmp_path / f"run-{form}/run.json").read_text())["samples"] == 58


def test_a_missing_test_split_is_said_as_for_folders(photos: Path, tmp_path: Path) -> None:
    for form in ("webdataset", "parquet"):
        spec = WRITERS[form](photos, tmp_path / form)
        for path in (tmp_path / form).glob("test*"):
            path.unlink()
        with pytest.raises(MissingSplitError, match="expected 'test' or 'val'"):
            dataset.load(spec, "test")
        assert len(dataset.load(spec, "train")) == 60


def test_students_of_two_forms_of_the_same_images_are_compared(kdpipe: Kdpipe, photos: Path, tmp_path: Path) -> None:
    """Whichever form is given; other images are refused as before."""
    folder, parquet = f"folder:{photos}", WRITERS["parquet"](photos, tmp_path / "parquet")
    runs = []
    for name, spec in (("run-folder", folder), ("run-parquet", parquet)):
        runs += ["--run", tmp_path / name]
        assert kdpipe("train-student", "--data", spec, "--out", tmp_path / name, *STUDENT).code == 0
    measured = ("--rounds", 1, "--no-cold-starts", "--device", "cpu")
    for name, spec in (("of-folder", folder), ("of-parquet", parquet)):
        outcome = kdpipe("benchmark", "--data", spec, *runs, *measured, "--out", tmp_path / name)
        assert outcome.code == 0, outcome.err
        students = json.loads((tmp_path / name / "metrics.json").read_text())["students"]
        for run in ("run-folder", "run-parquet"):
            tested = json.loads((tmp_path / run / "metrics.json").read_text())["test"]
            assert students[run]["top1"] == pytest.approx(tested["top1"])
    changed = photos / "test/ant/00.jpg"
    changed.write_bytes((photos / "train/ant/00.jpg").read_bytes())
    outcome = kdpipe("benchmark", "--data", folder, *runs, *measured, "--out", tmp_path / "changed")
    refused(outcome, "was tested on other images")
    assert not (tmp_path / "changed").exists()

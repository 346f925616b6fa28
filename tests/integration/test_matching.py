"""A store that another team made: its classes have other names, and the data is a part of its samples, and more."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import refused
from tests.integration.test_growth import Kdpipe, cached, images, picture, teacher

__all__ = ["images", "teacher"]

QUICK = ("--rounds", 1, "--batch-sizes", 1, "--no-cold-starts", "--device", "cpu")
STUDENT = (
    "train-student",
    "--student",
    "resnet8",
    "--epochs",
    1,
    "--batch-size",
    4,
    "--input-size",
    16,
    "--device",
    "cpu",
)


@pytest.fixture
def store(kdpipe: Kdpipe, images: Path, tmp_path: Path) -> Path:
    path = tmp_path / "logits.zarr"
    assert cached(kdpipe, images, path, views=1).code == 0
    return path


@pytest.fixture
def numbered(images: Path, tmp_path: Path) -> Path:
    """The same images as BMP in numbered folders, of which 1 is the first class: three of four, and one more."""
    root = tmp_path / "numbered"
    for path in sorted(images.rglob("*.png")):
        split, name = path.relative_to(images).parts[:2]
        if split == "train" and path.stem == "3":
            continue
        target = root / split / {"ant": "1", "bee": "0"}[name] / f"image{path.stem}.bmp"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.open(path).save(target)
    picture(root / "train" / "0" / "more.png", seed=999)
    return root


def test_classes_are_matched_and_what_is_covered_is_trained_on(
    kdpipe: Kdpipe, store: Path, numbered: Path, tmp_path: Path
) -> None:
    data, run = ("--data", f"folder:{numbered}"), tmp_path / "run"
    trained = kdpipe(*STUDENT, *data, "--store", store, "--out", run)
    assert trained.code == 0, trained.err
    lines = [line.split() for line in trained.err.splitlines()]
    assert "2 by the labels of their images" in trained.err
    assert ["0", "bee", "(3", "of", "3", "images)"] in lines
    assert ["1", "ant", "(3", "of", "3", "images)"] in lines
    assert "training on 6 of 7 'train' samples" in trained.err
    record = json.loads((run / "run.json").read_text())
    assert record["classes"] == ["ant", "bee"]
    assert record["lineage"]["class_map"] == {"0": "bee", "1": "ant"}
    assert record["samples"] == 6

    ranked = ("benchmark", *data, "--run", run, *QUICK)
    measured = kdpipe(*ranked, "--out", tmp_path / "reports")
    assert measured.code == 0, measured.err
    assert f"The 2 classes of folder:{numbered} as the 2 of {run}" in measured.err
    report = json.loads((tmp_path / "reports" / "metrics.json").read_text())
    assert report["teacher"]["name"] == "growing_teacher:build"
    expected = json.loads((run / "metrics.json").read_text())["test"]["top1"]
    assert f"top-1 of {100 * expected:.2f} %" in report["verdict"]["reason"]

    names = tmp_path / "classes.csv"
    names.write_text("class,store_class\n0,bee\n1,ant\n")
    given = kdpipe(*STUDENT, *data, "--store", store, "--class-map", names, "--out", tmp_path / "given")
    assert "2 by --class-map" in given.err
    assert (tmp_path / "given" / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()
    none = kdpipe(*STUDENT, *data, "--distill", "none", "--out", tmp_path / "none")
    assert none.code == 0, none.err
    other = kdpipe("benchmark", *data, "--run", run, "--run", tmp_path / "none", "--out", tmp_path / "mixed")
    refused(other, "trained for other classes", "--class-map FILE")


def test_a_part_is_verified_with_a_note_and_the_whole_demanded(
    kdpipe: Kdpipe, store: Path, numbered: Path, images: Path, tmp_path: Path
) -> None:
    verified = kdpipe("verify", store, "--data", f"folder:{numbered}")
    assert verified.code == 0, verified.err
    assert "2 of the 8 'train' samples are not in" in verified.err
    assert "and 1 of its 7 is not in the store." in verified.err
    assert "2 by the labels of their images" in verified.err
    assert "matches the store" in verified.out
    assert len((verified.out + verified.err).splitlines()) <= 5
    whole = kdpipe("verify", store, "--data", f"folder:{numbered}", "--complete")
    assert whole.code == 1
    assert "2 of the 8 'train' samples are not in" in whole.err
    assert len((whole.out + whole.err).splitlines()) <= 5
    shutil.rmtree(images / "test")
    no_test = kdpipe("verify", store, "--data", f"folder:{images}")
    assert no_test.code == 0, no_test.err
    assert kdpipe("verify", store, "--data", f"folder:{images}", "--complete").code == 1
    trained = kdpipe(*STUDENT, "--data", f"folder:{images}", "--store", store, "--out", tmp_path / "run")
    assert trained.code == 0, trained.err
    other = kdpipe("verify", store, "--data", "digits")
    assert other.code == 1
    assert "8 of the 8 'train' samples are not in digits" in other.err
    refused(
        kdpipe(*STUDENT, "--data", "digits", "--store", store, "--out", tmp_path / "no"), "has the classes ant, bee"
    )


def test_images_that_do_not_tell_the_class_are_refused(kdpipe: Kdpipe, store: Path, numbered: Path) -> None:
    for path in (numbered / "train" / "0").iterdir():
        if path.suffix == ".bmp":
            path.rename(numbered / "train" / "1" / f"other{path.name}")
    outcome = kdpipe(*STUDENT, "--data", f"folder:{numbered}", "--store", store, "--out", numbered / "run")
    refused(outcome, "3 of 6 images of '1' were labeled", "--class-map FILE")
    assert not (numbered / "run").exists()

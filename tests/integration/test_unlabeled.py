"""Images without a label, from the folder to the student: cached, learned from, and left out without a teacher."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kdpipe import dataset, open_store
from kdpipe.pairing.join import join
from tests.conftest import Outcome, refused, run_command

Kdpipe = Callable[..., Outcome]
SMALL = ("--student", "resnet8", "--input-size", 16, "--device", "cpu", "--epochs", 2, "--batch-size", 32)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 training digits, one in five in a folder of its class and the others in none; 60 test digits."""
    root = tmp_path_factory.mktemp("digits")
    for split, count in (("train", 200), ("test", 60)):
        digits = dataset.load("digits", split, count)
        seen = dict.fromkeys(range(10), 0)
        for index, label in enumerate(digits.labels):
            known = split == "test" or seen[int(label)] % 5 == 0
            seen[int(label)] += 1
            folder = root / split / f"class{label}" if known else root / "unlabeled"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(digits.image(index).numpy().transpose(1, 2, 0)).save(folder / f"{index:03}.png")
    return root


@pytest.fixture(scope="module")
def weights(images: Path) -> Path:
    out = images.parent / "teacher"
    trained = run_command(
        *(None, "train-teacher", "--data", f"folder:{images}", "--model", "resnet8", "--input-size", 16),
        *("--epochs", 1, "--device", "cpu", "--out", out),
    )
    assert trained.code == 0
    return out / "model.safetensors"


@pytest.fixture(scope="module")
def store(images: Path, weights: Path) -> Path:
    path = images.parent / "logits.zarr"
    cached = run_command(
        *(None, "cache-teacher", "--data", f"folder:{images}", "--teacher", "resnet8", "--weights", weights),
        *("--views", 2, "--device", "cpu", "--out", path),
    )
    assert cached.code == 0
    return path


def read(run: Path, name: str) -> Any:
    return json.loads((run / name).read_text())


def history(run: Path) -> list[dict[str, float]]:
    with (run / "history.csv").open() as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def test_the_store_has_the_logits_of_all_and_the_labels_of_some(images: Path, store: Path) -> None:
    kept = open_store(store, split="train")
    listed = dataset.load(f"folder:{images}", "train")
    assert kept.num_samples == 200
    assert np.array_equal(kept.labels[join(kept, listed)], listed.labels)
    assert (kept.labels >= 0).sum() == 40
    assert np.isfinite(kept.logits(np.arange(200), view=2)).all()


def test_a_student_learns_from_all_of_them_as_from_a_live_teacher(
    images: Path, weights: Path, store: Path, tmp_path: Path, kdpipe: Kdpipe
) -> None:
    common = ("train-student", "--data", f"folder:{images}", *SMALL, "--store", store, "--lr", 1e-3)
    live = ("--distill", "live", "--teacher", "resnet8", "--weights", weights)
    cached = kdpipe(*common, "--out", tmp_path / "cache")
    assert cached.code == 0
    assert "on 200 samples" in cached.err
    assert kdpipe(*common, *live, "--out", tmp_path / "live").code == 0
    for mine, other in zip(history(tmp_path / "cache"), history(tmp_path / "live"), strict=True):
        assert mine["kd"] == pytest.approx(other["kd"], rel=1e-3)
        assert mine["ce"] == pytest.approx(other["ce"], rel=1e-3)


def test_a_loss_of_labels_learns_from_those_that_have_one(
    images: Path, store: Path, tmp_path: Path, kdpipe: Kdpipe
) -> None:
    trained = kdpipe(
        *("train-student", "--data", f"folder:{images}", *SMALL, "--store", store, "--loss", "dkd"),
        *("--out", tmp_path / "run"),
    )
    assert trained.code == 0
    assert all(np.isfinite(list(row.values())).all() for row in history(tmp_path / "run"))


@pytest.mark.parametrize("command", ["train-student", "train-teacher"])
def test_without_a_teacher_they_are_left_out(command: str, images: Path, tmp_path: Path, kdpipe: Kdpipe) -> None:
    model = ("--student" if command == "train-student" else "--model", "resnet8", *SMALL[2:])
    trained = kdpipe(command, "--data", f"folder:{images}", *model, "--out", tmp_path / "all")
    assert trained.code == 0
    assert "Leaving 160 of 200 samples out: they have no label." in trained.err
    assert "on 40 samples" in trained.err
    labeled = dataset.labeled(dataset.load(f"folder:{images}", "train"))
    assert read(tmp_path / "all", "run.json")["lineage"]["dataset"]["train"] == labeled.fingerprint


def test_the_labeled_part_of_the_folder_can_be_taught_alone(
    images: Path, store: Path, tmp_path: Path, kdpipe: Kdpipe
) -> None:
    part = tmp_path / "part"
    part.mkdir()
    for split in ("train", "test"):
        (part / split).symlink_to(images / split)
    trained = kdpipe(
        *("train-student", "--data", f"folder:{part}", *SMALL, "--store", store, "--out", tmp_path / "run")
    )
    assert trained.code == 0
    assert "on 40 samples" in trained.err


def test_held_out_samples_have_a_label(images: Path, store: Path, tmp_path: Path, kdpipe: Kdpipe) -> None:
    trained = kdpipe(
        *("train-student", "--data", f"folder:{images}", *SMALL, "--store", store, "--validation", 0.5),
        *("--out", tmp_path / "run"),
    )
    assert trained.code == 0
    assert "on 180 samples" in trained.err


def test_nothing_can_be_learned_from_images_without_labels_and_teacher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kdpipe: Kdpipe
) -> None:
    (tmp_path / "pictures.py").write_text(
        "import numpy as np\nfrom PIL import Image\n\n"
        "class Pictures(list):\n    classes = ['a', 'b']\n\n"
        "def load(split):\n"
        "    draw = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), dtype=np.uint8)\n"
        "    return Pictures((Image.fromarray(each), -1) for each in draw)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    outcome = kdpipe("train-student", "--data", "pictures:load", *SMALL, "--out", tmp_path / "run")
    refused(outcome, "no training sample of pictures:load has a label")
    assert not (tmp_path / "run").exists()

"""The command `audit`: labels that a store's teacher finds unlikely, against scores that are computed here."""

from __future__ import annotations

import base64
import csv
import html
import io
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdpipe import dataset
from tests.conftest import LIMITS, Outcome, refused

Command = Callable[..., Outcome]

VIEWS, CLASSES = 3, 10


def _logits(labels: np.ndarray, random: np.random.Generator, strength: float) -> np.ndarray:
    """Return logits ``(1 + VIEWS, n, CLASSES)`` that favor the labels, the augmented views less."""
    logits = random.standard_normal((1 + VIEWS, len(labels), CLASSES))
    for view in range(1 + VIEWS):
        logits[view, np.arange(len(labels)), labels] += strength / (1 + view)
    return logits.astype(np.float32)


def _imported(kdpipe: Command, folder: Path, *, strength: float = 4.0) -> tuple[Path, np.ndarray, np.ndarray]:
    """Return a store of imported logits of digits, these logits, and the labels."""
    train, test = (dataset.load("digits", split, limit) for split, limit in (("train", 200), ("test", 60)))
    random = np.random.default_rng(5)
    logits = _logits(train.labels, random, strength)
    np.save(folder / "train.npy", logits)
    np.save(folder / "test.npy", _logits(test.labels, random, strength)[0])
    outcome = kdpipe(
        *("import-logits", *LIMITS, "--logits", folder / "train.npy", "--test-logits", folder / "test.npy"),
        *("--teacher-name", "ours", "--encoding", "fp32", "--views", VIEWS, "--recipe", "crop-flip"),
        *("--input-size", 32, "--out", folder / "logits.zarr"),
    )
    assert outcome.code == 0, outcome.err
    return folder / "logits.zarr", logits.astype(np.float64), train.labels


def _rows(out: Path) -> list[dict[str, str]]:
    with (out / "audit.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_scores_are_weighted_mean_margins(kdpipe: Command, tmp_path: Path) -> None:
    store, logits, labels = _imported(kdpipe, tmp_path)
    outcome = kdpipe("audit", store, "--data", "digits", "--out", tmp_path / "audit", "--count", 200)
    assert outcome.code == 0, outcome.err

    count = len(labels)
    expected, weights = np.zeros(count), []
    for plane in logits:
        margins = [row[label] - max(np.delete(row, label)) for row, label in zip(plane, labels, strict=True)]
        right = sum(margin > 0 for margin in margins)
        odds = (right + 1) / (count - right + 1)
        weights.append(max(np.log(odds) - np.log(1 / (CLASSES - 1)), 0) ** 2)
        expected += weights[-1] * np.array(margins)
    expected /= sum(weights)
    found = _rows(tmp_path / "audit")
    assert [float(row["score"]) for row in found] == pytest.approx(sorted(expected), abs=1e-4)
    assert [int(row["rank"]) for row in found] == list(range(1, count + 1))
    keys = list(dataset.load("digits", "train", 200).keys)
    order = [keys.index(row["sample"]) for row in found]
    for place, index in enumerate(order):
        row = found[place]
        assert int(row["label"]) == labels[index]
        assert int(row["predicted"]) == logits[0, index].argmax()
        assert int(row["views_against"]) == sum(plane[index].argmax() != labels[index] for plane in logits)
        shares = np.exp(logits[:, index]) / np.exp(logits[:, index]).sum(axis=1, keepdims=True)
        assert float(row["label_probability"]) == pytest.approx(shares[:, labels[index]].mean(), rel=5e-3)
        assert float(row["predicted_probability"]) == pytest.approx(shares[0].max(), rel=5e-3)
    accuracies = re.findall(r"(\d+\.\d+)%", outcome.err.splitlines()[-1])
    assert [float(each) for each in accuracies] == [
        round(100 * float((plane.argmax(axis=1) == labels).mean()), 2) for plane in logits
    ]
    assert f"{(expected < 0).sum():,} of 200 labels" in outcome.out


def _folder(root: Path, classes: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Write 8 train and 2 test images of each class, and return the training images by key."""
    random, pixels = np.random.default_rng(0), {}
    for split, count in (("train", 8), ("test", 2)):
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                image = random.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(image).save(root / split / name / f"{number}.png")
                pixels[f"{split}/{name}/{number}.png"] = image
    return pixels


def test_files_that_were_moved_to_another_class_are_shown_first(kdpipe: Command, tmp_path: Path) -> None:
    classes = ("<b>cats", "dogs & co", "=birds")
    root = tmp_path / "images"
    pixels = _folder(root, classes)
    sets = {split: dataset.load(f"folder:{root}", split) for split in ("train", "test")}
    for split, found in sets.items():
        np.save(tmp_path / f"{split}.npy", 9 * np.eye(3, dtype=np.float32)[found.labels])
    outcome = kdpipe(
        *("import-logits", "--data", f"folder:{root}", "--logits", tmp_path / "train.npy"),
        *("--test-logits", tmp_path / "test.npy", "--teacher-name", "ours", "--out", tmp_path / "logits.zarr"),
    )
    assert outcome.code == 0, outcome.err
    moved = {}
    for number, name in ((0, classes[0]), (3, classes[1])):
        target = root / "train" / classes[2] / f"moved{number}.png"
        (root / "train" / name / f"{number}.png").rename(target)
        moved[f"train/{classes[2]}/moved{number}.png"] = (name, pixels[f"train/{name}/{number}.png"])
    (root / "train" / classes[0] / "5.png").unlink()
    Image.fromarray(pixels["train/dogs & co/1.png"][::-1]).save(root / "train" / classes[0] / "new.png")

    out = tmp_path / "audit"
    outcome = kdpipe("audit", tmp_path / "logits.zarr", "--data", f"folder:{root}", "--out", out, "--count", 4)
    assert outcome.code == 0, outcome.err
    assert "1 of 24 'train' samples" in outcome.err
    found = _rows(out)
    assert len(found) == 4
    assert {row["sample"]: row["predicted"] for row in found[:2]} == {key: name for key, (name, _) in moved.items()}
    assert {row["label"] for row in found[:2]} == {"'=birds"}  # a spreadsheet must not take it for a formula
    assert all(float(row["score"]) > 0 for row in found[2:])
    text = (out / "audit.html").read_text()
    assert "<b>cats" not in text
    assert html.escape(classes[0]) in text
    assert "<script" not in text
    shown = re.findall(r'src="data:image/png;base64,([^"]+)"', text)
    assert len(shown) == 4
    first = np.asarray(Image.open(io.BytesIO(base64.b64decode(shown[0]))))
    assert (first == moved[found[0]["sample"]][1]).all()


def test_large_images_become_small_ones(kdpipe: Command, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ("a", "b"):
            (tmp_path / "images" / split / name).mkdir(parents=True)
            for number in range(2):
                image = Image.fromarray(random.integers(0, 256, (150, 300, 3), dtype=np.uint8))
                image.save(tmp_path / "images" / split / name / f"{number}.png")
    data, logits = f"folder:{tmp_path / 'images'}", np.array([[5, 0], [5, 0], [0, 5], [0, 5]], dtype=np.float32)
    np.save(tmp_path / "logits.npy", logits)
    common = ("--data", data, "--teacher-name", "ours", "--input-size", 32, "--out", tmp_path / "logits.zarr")
    given = ("--logits", tmp_path / "logits.npy", "--test-logits", tmp_path / "logits.npy")
    assert kdpipe("import-logits", *given, *common).code == 0
    outcome = kdpipe("audit", tmp_path / "logits.zarr", "--data", data, "--out", tmp_path / "out", "--split", "test")
    assert outcome.code == 0, outcome.err
    shown = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', (tmp_path / "out" / "audit.html").read_text())
    assert [Image.open(io.BytesIO(base64.b64decode(each))).size for each in shown] == [(112, 56)] * 4


def test_tensors_have_no_pictures(kdpipe: Command, tmp_path: Path) -> None:
    labels = np.array([0, 1] * 6)
    np.savez(tmp_path / "table.npz", **{f"x_{split}": np.eye(12, 4, dtype=np.float32) for split in ("train", "test")},
             **{f"y_{split}": labels for split in ("train", "test")})  # fmt: skip
    logits = 4 * np.eye(2, dtype=np.float32)[labels]
    logits[5] = logits[5, ::-1]
    np.save(tmp_path / "logits.npy", logits)
    data, store = f"npz:{tmp_path / 'table.npz'}", tmp_path / "logits.zarr"
    given = ("--logits", tmp_path / "logits.npy", "--test-logits", tmp_path / "logits.npy", "--teacher-name", "ours")
    assert kdpipe("import-logits", "--data", data, *given, "--recipe", "none", "--out", store).code == 0
    outcome = kdpipe("audit", store, "--data", data, "--out", tmp_path / "out", "--count", 3)
    assert outcome.code == 0, outcome.err
    assert next(row["sample"] for row in _rows(tmp_path / "out")) == "npz/train/5"
    assert "<img" not in (tmp_path / "out" / "audit.html").read_text()


def test_refusals(kdpipe: Command, tmp_path: Path) -> None:
    store, _, _ = _imported(kdpipe, tmp_path, strength=-3.0)
    out = tmp_path / "audit"
    refused(kdpipe("audit", store, "--data", "digits", "--out", out), "no more than chance", "classes")
    assert not out.exists()
    _folder(tmp_path / "images", tuple(map(str, range(10))))
    refused(kdpipe("audit", store, "--data", f"folder:{tmp_path / 'images'}", "--out", out), "has none of", "labeled")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    refused(kdpipe("audit", store, "--data", "digits", "--out", tmp_path / "mine"), "mine")
    assert (tmp_path / "mine" / "notes.txt").read_text() == "keep"

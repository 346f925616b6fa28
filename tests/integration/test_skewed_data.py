"""`--balance` and `--sample-weights` from the command line to what a model learns."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from kdpipe import dataset, models
from kdpipe.dataset import Dataset
from kdpipe.training.evaluation import predict
from kdpipe.views import Geometry, Renderer, Renderers
from tests.conftest import LIMITS, ROOT, Built, Outcome, refused

Kdpipe = Callable[..., Outcome]
Batches = list[npt.NDArray[np.int64]]

STUDENT = ("train-student", *LIMITS, "--student", "resnet8", "--input-size", 16, "--device", "cpu", "--epochs", 2)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Batches]:
    """The batches of each epoch that a run trains on."""
    epochs: list[Batches] = []
    render = Renderers.views

    def noting(self: Renderers, wanted: Iterable[tuple[npt.NDArray[np.int64], int]]) -> Any:
        listed = list(wanted)
        if any(view > 0 for _, view in listed):
            epochs.append([indices for indices, _ in listed])
        return render(self, listed)

    monkeypatch.setattr(Renderers, "views", noting)
    return epochs


def _drawn(epoch: Batches, samples: int) -> npt.NDArray[np.int64]:
    return np.bincount(np.concatenate(epoch), minlength=samples)


def _weights(path: Path, images: Dataset, weights: npt.ArrayLike) -> Path:
    rows = zip(images.keys, np.asarray(weights).tolist(), strict=True)
    path.write_text("key,weight\n" + "".join(f"{key},{weight}\n" for key, weight in rows))
    return path


def _history(run: Path) -> list[dict[str, str]]:
    with (run / "history.csv").open() as file:
        return [
            {k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in csv.DictReader(file)
        ]


def _lineage(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "run.json").read_text())["lineage"]
    return found


@pytest.fixture(scope="module")
def skewed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Digits as a folder: all training samples of 0, one in twenty of the others."""
    root = tmp_path_factory.mktemp("skewed")
    for split in ("train", "test"):
        images = dataset.load("digits", split)
        for label in range(10):
            folder = root / split / str(label)
            folder.mkdir(parents=True)
            rows = np.flatnonzero(images.labels == label)
            kept = rows if split == "test" or label == 0 else rows[: round(len(rows) / 20)]
            for row in kept:
                Image.fromarray(images.image(int(row)).permute(1, 2, 0).numpy()).save(folder / f"{row:04}.png")
    return f"folder:{root}"


def _recall(run: Path, spec: str) -> npt.NDArray[np.float64]:
    test = dataset.load(spec, "test")
    model = models.load(
        "resnet8", num_classes=10, weights=run / "model.safetensors", fallback_statistics=test.statistics
    )
    renderer = Renderer(test, "none", seed=0, geometry=Geometry.of(model.preset))
    right = predict(model.module, renderer, preset=model.preset).argmax(axis=1) == test.labels
    return np.array([right[test.labels == label].mean() for label in range(10)])


def test_balance_draws_all_classes_alike_and_small_ones_are_learned(
    skewed: str, tmp_path: Path, kdpipe: Kdpipe, seen: list[Batches]
) -> None:
    images = dataset.load(skewed, "train")
    classes = np.bincount(images.labels)
    assert classes.max() > 15 * classes.min()
    command = (
        *("train-teacher", "--data", skewed, "--model", "resnet8", "--input-size", 16, "--device", "cpu"),
        *("--epochs", 8, "--batch-size", 32),
    )
    recalls = {}
    for name, flags in {"plain": (), "balanced": ("--balance",)}.items():
        seen.clear()
        outcome = kdpipe(*command, *flags, "--out", tmp_path / name)
        assert outcome.code == 0
        assert len(seen) == 8
        for epoch in seen:
            drawn = _drawn(epoch, len(images))
            assert drawn.sum() == len(images)
            per_class = np.bincount(images.labels, drawn)
            if name == "plain":
                assert (drawn == 1).all()
            else:
                assert per_class.max() - per_class.min() <= 1
                assert (
                    f"{len(images) / 10 / classes.max():.3g} to {len(images) / 10 / classes.min():.3g}" in outcome.err
                )
        recalls[name] = _recall(tmp_path / name, skewed)
    small = {name: recall[1:].mean() for name, recall in recalls.items()}
    assert small["balanced"] > small["plain"] + 0.1
    assert recalls["balanced"][0] <= recalls["plain"][0]
    assert "sample_weights" in _lineage(tmp_path / "balanced")
    assert "sample_weights" not in _lineage(tmp_path / "plain")


def test_weights_are_obeyed(built: Built, tmp_path: Path, kdpipe: Kdpipe, seen: list[Batches]) -> None:
    digits = dataset.load("digits", "train", 200)
    weights = np.where(np.arange(200) % 4 == 0, 3, np.where(np.arange(200) % 4 == 1, 1, 0))
    file = _weights(tmp_path / "weights.csv", digits, weights)
    assert kdpipe(*STUDENT, "--store", built.store, "--sample-weights", file, "--out", tmp_path / "run").code == 0
    assert [_drawn(epoch, 200).tolist() for epoch in seen] == [weights.tolist()] * 2


def test_weights_apply_within_each_class_when_both_are_given(
    built: Built, tmp_path: Path, kdpipe: Kdpipe, seen: list[Batches]
) -> None:
    digits = dataset.load("digits", "train", 200)
    # One in two of the classes below 5 has weight, one in four of the others.
    weights = np.zeros(200)
    for label in range(10):
        rows = np.flatnonzero(digits.labels == label)
        weights[rows[: len(rows) // (2 if label < 5 else 4)]] = 5 + label
    flags = ("--balance", "--sample-weights", _weights(tmp_path / "weights.csv", digits, weights))
    assert kdpipe(*STUDENT, "--store", built.store, *flags, "--out", tmp_path / "run").code == 0
    for epoch in seen:
        drawn = _drawn(epoch, 200)
        assert np.bincount(digits.labels, drawn).tolist() == [20] * 10
        assert set(drawn[(digits.labels < 5) & (weights > 0)]) == {2}
        assert set(drawn[(digits.labels >= 5) & (weights > 0)]) == {4}
        assert set(drawn[weights == 0]) == {0}


def test_equal_classes_train_alike_with_and_without(built: Built, tmp_path: Path, kdpipe: Kdpipe) -> None:
    digits = dataset.load("digits", "train", 200)
    assert set(np.bincount(digits.labels)) == {20}
    file = _weights(tmp_path / "weights.csv", digits, np.full(200, 0.3))
    ways = {"plain": (), "balance": ("--balance",), "weights": ("--sample-weights", file)}
    for name, flags in ways.items():
        assert kdpipe(*STUDENT, "--store", built.store, *flags, "--out", tmp_path / name).code == 0
    for name in ("balance", "weights"):
        assert _history(tmp_path / name) == _history(tmp_path / "plain")
        weights = [(tmp_path / run / "model.safetensors").read_bytes() for run in (name, "plain")]
        assert weights[0] == weights[1]


def test_a_resumed_run_must_draw_the_same(built: Built, tmp_path: Path, kdpipe: Kdpipe) -> None:
    digits = dataset.load("digits", "train", 200)
    file = _weights(tmp_path / "weights.csv", digits, np.arange(200))
    run = (*STUDENT, "--store", built.store, "--out", tmp_path / "run")
    assert kdpipe(*run, "--sample-weights", file).code == 0
    _weights(file, digits, 2 * np.arange(200))
    assert kdpipe(*run, "--sample-weights", file, "--resume").code == 0
    _weights(file, digits, np.arange(200)[::-1])
    refused(kdpipe(*run, "--sample-weights", file, "--resume"), "other lineage", "sample_weights: ", " then, ")
    refused(kdpipe(*run, "--resume"), "sample_weights: ", "None now")
    refused(kdpipe(*run, "--resume", "--sample-weights", file, "--balance"), "balance: False then, True now")


def test_weights_are_those_of_what_is_left_after_the_validation(
    tmp_path: Path, kdpipe: Kdpipe, seen: list[Batches]
) -> None:
    whole = dataset.load("digits", "train", 200)
    train, held_out = dataset.hold_out(whole, 0.25)
    weights = dict.fromkeys(train.keys, 1.0) | dict.fromkeys(held_out.keys, 1000.0) | {train.keys[0]: 20.0}
    file = _weights(tmp_path / "weights.csv", whole, [weights[key] for key in whole.keys])
    flags = ("--validation", 0.25, "--sample-weights", file)
    assert kdpipe(*STUDENT, *flags, "--out", tmp_path / "run").code == 0
    for epoch in seen:
        drawn = _drawn(epoch, 150)
        assert drawn.sum() == 150
        assert drawn[0] in (17, 18)  # 150 * 20 / 169
        assert drawn[1:].max() == 1


def test_each_seed_draws_its_own(tmp_path: Path, kdpipe: Kdpipe, seen: list[Batches]) -> None:
    digits = dataset.load("digits", "train", 200)
    file = _weights(tmp_path / "weights.csv", digits, 1 + np.arange(200) % 7)
    assert kdpipe(*STUDENT, "--sample-weights", file, "--seeds", "0,1", "--out", tmp_path / "runs").code == 0
    assert len({tuple(_drawn(epoch, 200)) for epoch in seen}) == 4
    runs = [_lineage(tmp_path / "runs" / f"seed-{seed}") for seed in (0, 1)]
    assert runs[0] == runs[1]


def test_what_cannot_be_weighed_is_refused(built: Built, tmp_path: Path, kdpipe: Kdpipe) -> None:
    out = tmp_path / "run"
    run = (*STUDENT, "--store", built.store, "--out", out)
    refused(kdpipe(*run, "--sample-weights", tmp_path / "none.csv"), "there is no file", "none.csv")
    file = _weights(tmp_path / "weights.csv", dataset.load("digits", "train", 100), np.ones(100))
    refused(kdpipe(*run, "--sample-weights", file), "no weight for 100 of the 200 samples")
    assert not out.exists()


def test_nothing_to_balance_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kdpipe: Kdpipe) -> None:
    (tmp_path / "nameless.py").write_text(
        "import numpy as np\nfrom PIL import Image\n\n"
        "class Pictures(list):\n    classes = ['a', 'b']\n\n"
        "def load(split):\n"
        "    draw = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), dtype=np.uint8)\n"
        "    return Pictures((Image.fromarray(each), -1) for each in draw)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    outcome = kdpipe(
        *("train-student", "--data", "nameless:load", "--student", "resnet8", "--teacher", "resnet8"),
        *("--device", "cpu", "--balance", "--out", tmp_path / "run"),
    )
    refused(outcome, "no training sample of nameless:load has a label: there is nothing to --balance")


def test_the_documented_script_writes_weights(
    skewed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kdpipe: Kdpipe
) -> None:
    (tmp_path / "images").symlink_to(skewed.removeprefix("folder:"))
    monkeypatch.chdir(tmp_path)
    script = (ROOT / "docs" / "guides" / "class-sizes.md").read_text().split("```python\n")[1].split("```")[0]
    subprocess.run([sys.executable, "-c", script], check=True)
    train = ("train-teacher", "--data", "folder:images", "--model", "resnet8", "--input-size", 16, "--epochs", 1)
    weighed = ("--sample-weights", "weights.csv", "--limit-train", 100)
    outcome = kdpipe(*train, *weighed, "--device", "cpu", "--out", "run")
    assert outcome.code == 0
    assert "Drawing each sample 1 to 1 times" in outcome.err

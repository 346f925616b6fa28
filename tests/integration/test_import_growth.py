"""`import-logits` on data that changed since the store was sealed: new rows of the files become a further segment."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kdpipe import dataset, open_store
from kdpipe.dataset import Dataset
from kdpipe.pairing.join import join_checked
from kdpipe.store.verify import verify_deep, verify_files
from tests.conftest import Outcome, refused
from tests.integration.test_growth import images, picture

__all__ = ["images"]

Kdpipe = Callable[..., Outcome]


def logits_of(data: Dataset) -> np.ndarray:
    """Logits of the plain view and one more, ``(2, n, 2)``, that depend on each image alone."""
    seeds = [int.from_bytes(bytes(digest[:4]), "little") for digest in data.content_digests]
    return np.stack([np.random.default_rng(seed).normal(size=(2, 2)) * 4 for seed in seeds], axis=1).astype(np.float32)


@pytest.fixture
def imported(kdpipe: Kdpipe, images: Path, tmp_path: Path) -> Callable[..., Outcome]:
    def run(*more: object, teacher: str = "ours", wrong: bool = False) -> Outcome:
        for split in ("train", "test"):
            values = logits_of(dataset.load(f"folder:{images}", split))
            values = values if split == "train" else values[0]
            np.save(tmp_path / f"{split}.npy", values[..., ::-1] if wrong else values)
        return kdpipe(
            *("import-logits", "--data", f"folder:{images}", "--logits", tmp_path / "train.npy"),
            *("--test-logits", tmp_path / "test.npy", "--teacher-name", teacher, "--views", 1, "--recipe", "crop-flip"),
            *("--out", tmp_path / "logits.zarr", *more),
        )

    return run


def check(store: Path, images: Path) -> None:
    for split in ("train", "test"):
        data, opened = dataset.load(f"folder:{images}", split), open_store(store, split)
        rows = join_checked(opened, data)
        for view, expected in enumerate(logits_of(data)[: opened.num_views + 1]):
            np.testing.assert_allclose(opened.logits(rows, view=view), expected, atol=0.02)
    assert verify_files(store) == verify_deep(store) == []


def test_new_and_changed_samples_are_added(imported: Callable[..., Outcome], images: Path, tmp_path: Path) -> None:
    store = tmp_path / "logits.zarr"
    assert imported().code == 0
    before = {path: path.read_bytes() for path in store.rglob("c/**/*") if path.is_file()}
    teacher = open_store(store).manifest.fingerprint.teacher
    again = imported()
    assert "nothing to do" in again.err
    picture(images / "train" / "ant" / "new.png", seed=400)
    picture(images / "train" / "bee" / "0.png", seed=401)
    (images / "train" / "bee" / "1.png").unlink()
    picture(images / "test" / "ant" / "new.png", seed=402)
    grown = imported()
    assert grown.code == 0, grown.err
    assert "'train' samples: 1 new, 1 changed, 1 removed" in grown.err
    assert "has grown" in grown.err
    assert len(open_store(store).segments) == len(open_store(store, "test").segments) == 2
    assert open_store(store).manifest.fingerprint.teacher == teacher
    assert all(path.read_bytes() == content for path, content in before.items())
    check(store, images)
    assert "has all of these samples" in imported().err


def test_other_logits_are_refused(imported: Callable[..., Outcome], images: Path, tmp_path: Path) -> None:
    store = tmp_path / "logits.zarr"
    assert imported().code == 0
    digest = open_store(store).digest
    picture(images / "train" / "ant" / "new.png", seed=400)
    refused(imported(wrong=True), "other logits for 12 of 12 compared samples", "--overwrite")
    refused(imported(teacher="theirs"), "teacher")
    assert open_store(store).digest == digest
    assert imported("--overwrite", wrong=True).code == 0
    assert len(open_store(store).segments) == 1
    assert open_store(store).num_samples == 9

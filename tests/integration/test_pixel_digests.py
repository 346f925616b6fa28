"""Digests of decoded images in the stores that commands make: kept by growth and compaction, used by training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from blake3 import blake3
from PIL import Image

from kdpipe import dataset, open_store
from kdpipe.store.segments import pixel_digests
from kdpipe.store.verify import verify_deep, verify_files
from tests.conftest import refused
from tests.integration.test_growth import Kdpipe, cached, images, picture, teacher

__all__ = ["images", "teacher"]


def check(store: Path, images: Path) -> None:
    """Compare the digests of all samples with those of the files, decoded independently."""
    for split in ("train", "test"):
        opened = open_store(store, split)
        found = pixel_digests(opened.segments)
        assert found is not None
        known = {bytes(key): bytes(digest) for key, digest in zip(opened.sample_ids, found, strict=True)}
        for path in (images / split).rglob("*.png"):
            planes = np.asarray(Image.open(path).convert("RGB")).transpose(2, 0, 1)
            content = np.array(planes.shape, dtype="<u4").tobytes() + planes.tobytes()
            key = dataset.sample_id(path.relative_to(images).as_posix())
            assert known[key] == blake3(content).digest(length=16)
    assert verify_files(store) == verify_deep(store) == []


def test_streamed_and_grown_and_compacted(kdpipe: Kdpipe, images: Path, tmp_path: Path) -> None:
    store = tmp_path / "grown.zarr"
    assert cached(kdpipe, images, store, "--loading", "stream", "--workers", 1, views=1).code == 0
    check(store, images)
    assert cached(kdpipe, images, tmp_path / "memory.zarr", views=1).code == 0
    assert open_store(tmp_path / "memory.zarr").digest == open_store(store).digest
    picture(images / "train" / "bee" / "new.png", seed=77)
    picture(images / "train" / "ant" / "1.png", seed=78)
    assert cached(kdpipe, images, store, views=1).code == 0
    assert len(open_store(store).segments) == 2
    check(store, images)
    compacted = tmp_path / "compacted.zarr"
    assert kdpipe("compact", store, "--data", f"folder:{images}", "--out", compacted).code == 0
    check(compacted, images)


def test_images_that_were_saved_again_are_trained_on(kdpipe: Kdpipe, images: Path, tmp_path: Path) -> None:
    """Without loss, as BMP in folders of the same classes; lossy copies are refused."""
    store = tmp_path / "logits.zarr"
    assert cached(kdpipe, images, store, views=1).code == 0
    for kind in ("bmp", "jpg"):
        for path in images.rglob("*.png"):
            target = tmp_path / kind / path.relative_to(images).with_suffix(f".{kind}")
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.open(path).save(target)
    student = ("--student", "resnet8", "--epochs", 1, "--batch-size", 4, "--input-size", 16, "--device", "cpu")
    train = ("train-student", "--store", store, *student)
    trained = kdpipe(*train, "--data", f"folder:{tmp_path / 'bmp'}", "--out", tmp_path / "run")
    assert trained.code == 0, trained.err
    assert "8 of 8 'train' samples have other names" in trained.err
    assert "matched by pixels" in trained.err
    lossy = kdpipe(*train, "--data", f"folder:{tmp_path / 'jpg'}", "--out", tmp_path / "other")
    refused(lossy, "no logits for 8 of the 8", "same names, other pixels")
    again = cached(kdpipe, tmp_path / "bmp", store, views=1)
    assert "nothing to do" in again.err or "has all of these samples" in again.err

"""The first pass over image files reads each of them once; what is interrupted or changes meanwhile ends the same."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdpipe import dataset, open_store
from kdpipe.pairing.join import join_checked
from kdpipe.store.ledger import Ledger
from kdpipe.store.verify import verify_deep, verify_files
from kdpipe.testing.stores import contents
from tests.conftest import Outcome, refused, run_command
from tests.integration.test_growth import teacher

__all__ = ["teacher"]

Kdpipe = Callable[..., Outcome]
EACH = 2_060
"""Images of each of two classes: a plane of more than 4,096 rows has four shards."""


def picture(path: Path, seed: int, *, size: int = 6) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)).save(path)


def command(images: Path, out: Path, *, loading: str = "stream") -> tuple[object, ...]:
    return (
        *("cache-teacher", "--data", f"folder:{images}", "--teacher", "growing_teacher:build", "--views", 1),
        *("--mean", "0,0,0", "--std", "1,1,1", "--input-size", 16, "--device", "cpu", "--batch-size", 600),
        *("--order", "dataset", "--loading", loading, "--workers", 1, "--out", out),
    )


def cached(run: Kdpipe, images: Path, out: Path, *more: object, loading: str = "stream") -> Outcome:
    return run(*command(images, out, loading=loading), *more)


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory, teacher: None) -> Path:
    """Images whose last cannot be decoded, and a pass that ended there; the first three shards are finished."""
    root = tmp_path_factory.mktemp("once")
    for number, name in enumerate(("ant", "bee")):
        for index in range(EACH):
            picture(root / "images" / "train" / name / f"{index:04}.bmp", seed=10_000 * number + index)
    for index in range(2):
        picture(root / "images" / "test" / "ant" / f"{index}.bmp", seed=30_000 + index)
        picture(root / "images" / "test" / "bee" / f"{index}.bmp", seed=40_000 + index)
    last = root / "images/train/bee" / f"{EACH - 1:04}.bmp"
    last.write_bytes(last.read_bytes()[:60])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KDPIPE_CACHE", str(root / "cache"))
        found = cached(lambda *arguments: run_command(None, *arguments), root / "images", root / "l.zarr")
    assert found.code == 1
    finished = [path for path in Ledger(root / "l.zarr").read() if path.startswith("train/codes")]
    assert finished == [f"train/codes/c/0/{shard}/0" for shard in range(3)]
    return root


@pytest.fixture
def begun(interrupted: Path, tmp_path: Path) -> Path:
    """A copy of the interrupted pass, on another path: nothing of its images is remembered."""
    return Path(shutil.copytree(interrupted, tmp_path / "begun"))


def whole(kdpipe: Kdpipe, root: Path) -> str:
    """Return the digest of a store whose images are all read before the pass."""
    assert cached(kdpipe, root / "images", root / "whole.zarr", loading="memory").code == 0
    return open_store(root / "whole.zarr").digest


def test_a_file_that_cannot_be_decoded_is_named_and_can_be_repaired(kdpipe: Kdpipe, begun: Path) -> None:
    """The store is then the one that is made by reading all images first."""
    store = begun / "l.zarr"
    again = cached(kdpipe, begun / "images", store)
    refused(again, "bee/2059.bmp cannot be decoded", "--skip-broken", "Finished shards of", "are kept")
    before = contents(store)
    picture(begun / "images/train/bee" / f"{EACH - 1:04}.bmp", seed=5)
    assert cached(kdpipe, begun / "images", store).code == 0
    after = contents(store)
    kept = [name for name in before if name.startswith("train/codes/c/0/")]
    assert len(kept) == 3
    assert all(before[name] == after[name] for name in kept)
    assert open_store(store).digest == whole(kdpipe, begun)
    assert not list(begun.glob("l.zarr.*"))


def test_a_pass_that_is_killed_ends_the_same(kdpipe: Kdpipe, begun: Path) -> None:
    """While the shards of the other view are computed: those of the plain one have 15 files."""
    store = begun / "l.zarr"
    picture(begun / "images/train/bee" / f"{EACH - 1:04}.bmp", seed=5)
    teacher = importlib.import_module("growing_teacher").__file__
    assert teacher is not None
    arguments = [sys.executable, "-m", "kdpipe", *map(str, command(begun / "images", store))]
    paths = os.pathsep.join([str(Path(teacher).parent), *sys.path])
    process = subprocess.Popen(arguments, env={**os.environ, "PYTHONPATH": paths}, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(Ledger(store).read()) < 17 and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert cached(kdpipe, begun / "images", store).code == 0
    assert open_store(store).digest == whole(kdpipe, begun)


def test_a_file_that_is_removed_costs_its_row_alone(kdpipe: Kdpipe, begun: Path) -> None:
    """Finished shards are kept; the row is never used, also not by the same image if it comes back."""
    store, last = begun / "l.zarr", begun / "images/train/bee" / f"{EACH - 1:04}.bmp"
    last.unlink()
    times = {path: path.stat().st_mtime_ns for path in (store / "train/codes/c/0").rglob("0")}
    assert cached(kdpipe, begun / "images", store).code == 0
    assert len([path for path, time in times.items() if path.is_file() and path.stat().st_mtime_ns == time]) == 3
    opened, data = open_store(store), dataset.load(f"folder:{begun / 'images'}", "train")
    assert opened.num_samples == len(data) + 1
    assert len(np.unique(join_checked(opened, data))) == len(data)
    assert not opened.content_digests[-1].any()
    assert opened.labels[-1] == -1
    assert verify_files(store) == verify_deep(store) == []
    assert "has all of these samples" in cached(kdpipe, begun / "images", store).err
    picture(last, seed=6)
    grown = cached(kdpipe, begun / "images", store)
    assert "'train' samples: 1 changed since" in grown.err
    assert len(open_store(store).segments) == 2


def test_broken_files_can_be_left_out(kdpipe: Kdpipe, begun: Path) -> None:
    outcome = cached(kdpipe, begun / "images", begun / "l.zarr", "--skip-broken")
    assert outcome.code == 0, outcome.err
    assert "warning: skipped:" in outcome.err
    assert not open_store(begun / "l.zarr").content_digests[-1].any()


def test_what_changed_meanwhile_is_computed_again(kdpipe: Kdpipe, begun: Path) -> None:
    """An image of a finished shard, which has the first quarter of the rows; and one is added, which is growth."""
    store = begun / "l.zarr"
    picture(begun / "images/train/ant/0003.bmp", seed=7, size=9)
    picture(begun / "images/train/bee" / f"{EACH - 1:04}.bmp", seed=8)
    outcome = cached(kdpipe, begun / "images", store)
    assert "1 'train' images have changed since they were read: 1 shards begin again." in outcome.err
    assert open_store(store).digest == whole(kdpipe, begun)
    before = open_store(store).digest
    picture(begun / "images/train/ant/more.bmp", seed=9)
    assert cached(kdpipe, begun / "images", store).code == 0
    assert open_store(store).digest != before
    assert len(open_store(store).segments) == 2


def test_an_image_that_is_added_meanwhile_is_growth(kdpipe: Kdpipe, begun: Path) -> None:
    picture(begun / "images/train/ant/0000-more.bmp", seed=9)
    picture(begun / "images/train/bee" / f"{EACH - 1:04}.bmp", seed=8)
    outcome = cached(kdpipe, begun / "images", begun / "l.zarr")
    assert outcome.code == 0, outcome.err
    assert [len(each.sample_ids) for each in open_store(begun / "l.zarr").segments] == [2 * EACH, 1]


def test_it_is_the_store_of_images_that_were_read_before(kdpipe: Kdpipe, tmp_path: Path) -> None:
    """Also where some are remembered and others not, and of different sizes; nothing is left beside it."""
    images = tmp_path / "few"
    for index in range(16):
        picture(images / "train" / ("ant" if index % 2 else "bee") / f"{index}.bmp", seed=index, size=4 + index % 5)
        picture(images / "test" / ("ant" if index % 2 else "bee") / f"{index}.bmp", seed=index // 2, size=4)
    first = cached(kdpipe, images, tmp_path / "a.zarr")
    assert "warning: 4 of 16 test images are in train, too" in first.err
    assert cached(kdpipe, images, tmp_path / "b.zarr", loading="memory").code == 0
    assert open_store(tmp_path / "a.zarr").digest == open_store(tmp_path / "b.zarr").digest
    assert "unread" not in (tmp_path / "a.zarr" / "zarr.json").read_text()
    assert sorted(path.name for path in tmp_path.glob("a.zarr*")) == ["a.zarr"]


def test_several_processes_do_not_continue_it(kdpipe: Kdpipe, begun: Path) -> None:
    picture(begun / "images/train/bee" / f"{EACH - 1:04}.bmp", seed=5)
    before = contents(begun / "l.zarr")
    refused(cached(kdpipe, begun / "images", begun / "l.zarr", "--part", "1/2"), "read once, by a single process")
    assert contents(begun / "l.zarr") == before

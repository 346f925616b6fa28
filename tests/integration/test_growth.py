"""`cache-teacher` on data that changed since the store was sealed: only what is new is computed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr
from PIL import Image

from kdpipe import attach, dataset, open_store
from kdpipe.dataset import Dataset
from kdpipe.pairing.join import join_checked
from kdpipe.pairing.probes import replay
from kdpipe.store.verify import verify_deep, verify_files
from kdpipe.testing import stores
from tests.conftest import Outcome, refused
from tests.unit.store.test_store_forged import resealed

Kdpipe = Callable[..., Outcome]

MIXING = "crop-flip+mixup:0.4"


def picture(path: Path, *, seed: int) -> None:
    levels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(levels).save(path)


@pytest.fixture(autouse=True, scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A teacher of one linear layer, whose sums do not depend on the batch."""
    folder = tmp_path_factory.mktemp("code")
    (folder / "growing_teacher.py").write_text(
        "import torch\n"
        "class Sums(torch.nn.Module):\n"
        "    def __init__(self, classes):\n"
        "        super().__init__()\n"
        "        drawn = torch.randint(-9, 9, (classes, 3 * 16 * 16), generator=torch.Generator().manual_seed(1))\n"
        "        self.weight = torch.nn.Parameter(drawn.double())\n"
        "        self.seen = torch.nn.Identity()\n"
        "    def forward(self, x):\n"
        "        self.seen(x.flatten(1)[:, :6])\n"
        "        return ((x.flatten(1).double()[:, None] * self.weight).sum(2) / 100).float()\n"
        "def build(classes): return Sums(classes)\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Eight training and four test images of two classes."""
    root = tmp_path / "images"
    for split, each in (("train", 4), ("test", 2)):
        for number, name in enumerate(("ant", "bee")):
            for index in range(each):
                picture(root / split / name / f"{index}.png", seed=100 * (split == "test") + 10 * number + index)
    return root


def cached(
    kdpipe: Kdpipe, images: Path, out: Path, *more: object, views: int = 2, recipe: str = "crop-flip"
) -> Outcome:
    return kdpipe(
        *("cache-teacher", "--data", f"folder:{images}", "--teacher", "growing_teacher:build", "--views", views),
        *("--mean", "0,0,0", "--std", "1,1,1", "--input-size", 16, "--device", "cpu", "--batch-size", 3),
        *("--recipe", recipe, "--out", out, *more),
    )


def change(images: Path) -> None:
    """Add an image, change one, remove one, in training; add one to the test."""
    picture(images / "train" / "bee" / "new.png", seed=77)
    picture(images / "train" / "ant" / "1.png", seed=78)
    (images / "train" / "ant" / "3.png").unlink()
    picture(images / "test" / "ant" / "new.png", seed=79)


def seen(store: Path, data: Dataset) -> dict[str, tuple[bytes, ...]]:
    """Return what a student sees of each sample by its key: the pixels, and the logits, in every view."""
    opened = open_store(store, data.split)
    rows = join_checked(opened, data)
    renderer = replay(opened, data)
    found: dict[str, tuple[bytes, ...]] = dict.fromkeys(data.keys, ())
    for view in range(opened.num_views + 1):
        logits = opened.logits(rows, view)
        pixels = renderer(np.arange(len(data)), view).numpy()
        for key, image, row in zip(data.keys, pixels, logits, strict=True):
            found[key] += (image.tobytes(), row.tobytes())
    return found


def loaded(images: Path, split: str) -> Dataset:
    return dataset.load(f"folder:{images}", split)


def test_only_what_changed_is_computed(kdpipe: Kdpipe, images: Path, tmp_path: Path) -> None:
    store, whole = tmp_path / "grown.zarr", tmp_path / "whole.zarr"
    assert cached(kdpipe, images, store).code == 0
    before = stores.contents(store)
    change(images)
    outcome = cached(kdpipe, images, store)
    assert outcome.code == 0
    assert f"'train' samples: 1 new, 1 changed, 1 removed since {store} was sealed." in outcome.err
    assert f"'test' samples: 1 new since {store} was sealed." in outcome.err
    assert f"digest {open_store(store).digest}" in outcome.err
    assert ".growth" not in outcome.err
    after = stores.contents(store)
    assert all(after[name] == content for name, content in before.items() if name != "zarr.json")
    assert [len(each.sample_ids) for each in open_store(store).segments] == [8, 2]
    assert [len(each.sample_ids) for each in open_store(store, "test").segments] == [4, 1]
    assert verify_files(store) == []
    assert verify_deep(store) == []
    assert kdpipe("verify", store, "--data", f"folder:{images}").code == 0
    assert cached(kdpipe, images, whole).code == 0
    for split in ("train", "test"):
        assert seen(store, loaded(images, split)) == seen(whole, loaded(images, split))
    data = loaded(images, "train")
    attached, expected = (attach(open_store(path), data) for path in (store, whole))
    for index in range(len(data)):
        for mine, its in zip(attached[index], expected[index], strict=True):
            assert np.array_equal(mine, its)
    recomputed = kdpipe("verify", store, "--data", f"folder:{images}", "--teacher", "growing_teacher:build")
    assert recomputed.code == 0, recomputed.err
    described = [json.loads(kdpipe("inspect", path, "--json").out)["about"] for path in (store, whole)]
    assert described[0]["teacher_test_top1"] == described[1]["teacher_test_top1"]
    assert described[0]["seconds"] > 0


@pytest.mark.parametrize("overwrite", [False, True])
def test_the_same_again_has_nothing_to_do(kdpipe: Kdpipe, images: Path, tmp_path: Path, overwrite: bool) -> None:
    store, more = tmp_path / "grown.zarr", ("--overwrite",) if overwrite else ()
    assert cached(kdpipe, images, store, *more).code == 0
    change(images)
    assert cached(kdpipe, images, store, *more).code == 0
    before = stores.contents(store)
    again = cached(kdpipe, images, store, *more)
    assert again.code == 0
    assert "is sealed and has all of these samples" in again.err
    assert stores.contents(store) == before
    assert len(open_store(store).segments) == 2


def test_fewer_samples_need_nothing(kdpipe: Kdpipe, images: Path, tmp_path: Path) -> None:
    store = tmp_path / "grown.zarr"
    assert cached(kdpipe, images, store).code == 0
    before = stores.contents(store)
    (images / "train" / "ant" / "3.png").unlink()
    outcome = cached(kdpipe, images, store)
    assert outcome.code == 0
    assert f"'train' samples: 1 removed since {store} was sealed." in outcome.err
    assert stores.contents(store) == before
    digest = open_store(store).digest
    assert cached(kdpipe, images, store, "--title", "Insects").code == 0
    assert open_store(store).manifest.provenance.title == "Insects"
    assert open_store(store).digest == digest


def test_a_part_first_and_all_later(kdpipe: Kdpipe, images: Path, tmp_path: Path) -> None:
    store = tmp_path / "grown.zarr"
    assert cached(kdpipe, images, store, "--limit-train", 3).code == 0
    assert "'train' samples: 5 new" in cached(kdpipe, images, store).err
    assert open_store(store).num_samples == 8
    assert cached(kdpipe, images, tmp_path / "whole.zarr").code == 0
    data = loaded(images, "train")
    assert seen(store, data) == seen(tmp_path / "whole.zarr", data)


def test_renamed_images_are_not_new(kdpipe: Kdpipe, images: Path, tmp_path: Path) -> None:
    store = tmp_path / "grown.zarr"
    assert cached(kdpipe, images, store).code == 0
    (images / "train" / "ant" / "0.png").rename(images / "train" / "bee" / "moved.png")
    picture(images / "train" / "bee" / "new.png", seed=77)
    outcome = cached(kdpipe, images, store)
    assert "'train' samples: 1 new since" in outcome.err
    assert "1 of 8 'train' samples have other names" in outcome.err
    assert len(open_store(store).segments[1].sample_ids) == 1


def test_a_renamed_image_alone_needs_nothing(kdpipe: Kdpipe, images: Path, tmp_path: Path) -> None:
    """Also if the order of all images stays."""
    store = tmp_path / "grown.zarr"
    assert cached(kdpipe, images, store).code == 0
    before = stores.contents(store)
    (images / "train" / "ant" / "0.png").rename(images / "train" / "ant" / "00.png")
    outcome = cached(kdpipe, images, store)
    assert "nothing to do" in outcome.err
    assert "1 of 8 'train' samples have other names" in outcome.err
    assert stores.contents(store) == before
    assert cached(kdpipe, images, store, views=3).code == 0
    assert open_store(store).num_views == 3


def test_another_ingredient_is_refused_as_ever(kdpipe: Kdpipe, images: Path, tmp_path: Path) -> None:
    store = tmp_path / "grown.zarr"
    assert cached(kdpipe, images, store).code == 0
    change(images)
    before = stores.contents(store)
    refused(cached(kdpipe, images, store, "--seed", 5), "recipe.seed: the store has 0, asked for 5", "--overwrite")
    refused(cached(kdpipe, images, store, views=1), "train views: the store has 2, asked for 1")
    assert stores.contents(store) == before
    assert cached(kdpipe, images, store, "--seed", 5, "--overwrite").code == 0
    assert len(open_store(store).segments) == 1


def test_other_data_is_no_growth(kdpipe: Kdpipe, images: Path, tmp_path: Path) -> None:
    store = tmp_path / "grown.zarr"
    assert cached(kdpipe, images, store).code == 0
    for number, path in enumerate(sorted(images.rglob("*.png"))):
        path.unlink()
        picture(path.with_name(f"other{number}.png"), seed=500 + number)
    refused(cached(kdpipe, images, store), "dataset.train: the store has")


def test_views_are_added_to_all_segments(kdpipe: Kdpipe, images: Path, tmp_path: Path) -> None:
    store = tmp_path / "grown.zarr"
    assert cached(kdpipe, images, store, views=1).code == 0
    picture(images / "train" / "bee" / "new.png", seed=77)
    assert cached(kdpipe, images, store, views=1).code == 0
    picture(images / "train" / "ant" / "newer.png", seed=78)
    assert cached(kdpipe, images, store, views=3).code == 0
    opened = open_store(store)
    assert opened.num_views == 3
    assert [len(each.sample_ids) for each in opened.segments] == [8, 1, 1]
    assert verify_files(store) == []
    assert cached(kdpipe, images, tmp_path / "whole.zarr", views=3).code == 0
    data = loaded(images, "train")
    assert seen(store, data) == seen(tmp_path / "whole.zarr", data)
    assert "nothing to do" in cached(kdpipe, images, store, views=3).err


def test_views_whose_addition_was_stopped(kdpipe: Kdpipe, images: Path, tmp_path: Path) -> None:
    """The store is finished first, also where an image was renamed since; then it grows."""
    store = tmp_path / "grown.zarr"
    assert cached(kdpipe, images, store, views=1).code == 0
    picture(images / "train" / "bee" / "new.png", seed=77)
    assert cached(kdpipe, images, store, views=1).code == 0
    refused(cached(kdpipe, images, store, "--min-top1", 1, views=3), "below --min-top1")
    assert json.loads(kdpipe("inspect", store, "--json").out)["state"] == "building"
    (images / "train" / "ant" / "0.png").rename(images / "train" / "bee" / "moved.png")
    picture(images / "train" / "ant" / "newer.png", seed=78)
    assert cached(kdpipe, images, store, views=3).code == 0
    assert [len(each.sample_ids) for each in open_store(store).segments] == [8, 1, 1]
    (images / "train" / "bee" / "moved.png").rename(images / "train" / "ant" / "0.png")
    assert cached(kdpipe, images, tmp_path / "whole.zarr", views=3).code == 0
    data = loaded(images, "train")
    assert seen(store, data) == seen(tmp_path / "whole.zarr", data)


def test_views_of_images_that_are_gone_are_refused(kdpipe: Kdpipe, images: Path, tmp_path: Path) -> None:
    store = tmp_path / "grown.zarr"
    assert cached(kdpipe, images, store).code == 0
    change(images)
    refused(cached(kdpipe, images, store, views=3), "views cannot be added to 2", "removed or have changed")
    assert cached(kdpipe, images, store, "--overwrite", views=3).code == 0
    assert [len(each.sample_ids) for each in open_store(store).segments] == [8]


def test_damaged_stores(kdpipe: Kdpipe, images: Path, tmp_path: Path) -> None:
    """Adding views computes a lost shard again; a store that has grown is not made anew for it."""
    store, shard = tmp_path / "grown.zarr", tmp_path / "grown.zarr" / "train" / "codes" / "c" / "1" / "0" / "0"
    assert cached(kdpipe, images, store).code == 0
    content = shard.read_bytes()
    shard.unlink()
    assert cached(kdpipe, images, store, views=3).code == 0
    assert shard.read_bytes() == content
    change(images)
    assert cached(kdpipe, images, store, views=3).code == 0
    shard.unlink()
    refused(cached(kdpipe, images, store, views=3), "train/codes/c/1/0/0 is missing", "kdpipe verify")


def test_mixing_finds_partners_within_a_segment(kdpipe: Kdpipe, images: Path, tmp_path: Path) -> None:
    store = tmp_path / "grown.zarr"
    assert cached(kdpipe, images, store, recipe=MIXING).code == 0
    change(images)
    outcome = cached(kdpipe, images, store, recipe=MIXING)
    assert "mixed with images that were removed or have changed" in outcome.err
    data = loaded(images, "train")
    opened = open_store(store)
    rows, renderer = join_checked(opened, data), replay(opened, data)
    fresh = {key.tobytes() for key in opened.segments[1].sample_ids}
    assert len(fresh) < 8
    from growing_teacher import build  # type: ignore[import-not-found]

    module = build(2)
    for view in (1, 2):
        second = renderer.second_labels(np.arange(len(data)), view)
        assert second is not None
        pixels = renderer(np.arange(len(data)), view)
        expected = module(pixels.float() / 255).detach().numpy()
        assert np.abs(opened.logits(rows, view) - expected).max() < 0.02
    assert kdpipe("verify", store, "--data", f"folder:{images}").code == 0


def test_images_that_decode_otherwise_are_not_put_beside_the_old(kdpipe: Kdpipe, images: Path, tmp_path: Path) -> None:
    store = tmp_path / "grown.zarr"
    assert cached(kdpipe, images, store).code == 0
    hashes = zarr.open_array(store / "train" / "probe_hash")
    hashes[...] = hashes[...] ^ np.uint64(1)
    resealed(store, lambda _: None)
    change(images)
    refused(cached(kdpipe, images, store), "replay probes render to other pixels", "--overwrite")
    assert len(open_store(store).segments) == 1
    assert cached(kdpipe, images, store, "--overwrite").code == 0
    assert open_store(store).num_samples == 8
    assert len(open_store(store).segments) == 1


def test_students_train_on_a_grown_store(kdpipe: Kdpipe, images: Path, tmp_path: Path) -> None:
    store, whole = tmp_path / "grown.zarr", tmp_path / "whole.zarr"
    assert cached(kdpipe, images, store).code == 0
    change(images)
    assert cached(kdpipe, images, store).code == 0
    assert cached(kdpipe, images, whole).code == 0
    weights = []
    for path in (store, whole):
        run = tmp_path / f"run of {path.stem}"
        trained = kdpipe(
            *("train-student", "--data", f"folder:{images}", "--store", path, "--student", "resnet8", "--out", run),
            *("--epochs", 3, "--batch-size", 3, "--device", "cpu", "--input-size", 16),
        )
        assert trained.code == 0
        weights.append((run / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]


def test_two_halves_are_merged(kdpipe: Kdpipe, images: Path, tmp_path: Path) -> None:
    halves, whole, merged = (
        (tmp_path / "ants.zarr", tmp_path / "bees.zarr"),
        tmp_path / "whole.zarr",
        tmp_path / "m.zarr",
    )
    for number, path in enumerate(halves):
        half = shutil.copytree(images, tmp_path / f"images{number}")
        for image in (half / "train" / ("bee", "ant")[number]).iterdir():
            if image.stem != "0":  # the class stays
                image.unlink()
        if number:
            (half / "train" / "ant" / "0.png").unlink()
            picture(half / "train" / "ant" / "other.png", seed=90)
            shutil.copy(half / "train" / "ant" / "other.png", images / "train" / "ant")
            (half / "train" / "bee" / "0.png").unlink()
        assert cached(kdpipe, half, path).code == 0
    outcome = kdpipe("merge", *halves, "--out", merged)
    assert outcome.code == 0
    assert "m.zarr: 9 'train' samples, 4 'test' samples in 3 segments" in outcome.out
    assert cached(kdpipe, images, whole).code == 0
    for split in ("train", "test"):
        assert seen(merged, loaded(images, split)) == seen(whole, loaded(images, split))
    assert "nothing to do" in cached(kdpipe, images, merged).err
    refused(kdpipe("merge", halves[0], whole, "--out", tmp_path / "x.zarr"), "samples, in segments that differ")


def test_a_compacted_store_has_what_is_used(kdpipe: Kdpipe, images: Path, tmp_path: Path) -> None:
    store, out, more = (
        tmp_path / "grown.zarr",
        tmp_path / "compacted.zarr",
        ("--encoding", "sqrtp8@4", "--signals", "features:seen"),
    )
    assert cached(kdpipe, images, store, *more).code == 0
    change(images)
    assert cached(kdpipe, images, store, *more).code == 0
    compacted = kdpipe("compact", store, "--data", f"folder:{images}", "--out", out)
    assert compacted.code == 0
    assert "compacted.zarr: 8 'train' samples, 5 'test' samples in 2 segments" in compacted.out
    assert "2 'train' rows left out, 0 'test' rows left out." in compacted.out
    assert verify_files(out) == []
    assert verify_deep(out) == []
    for split in ("train", "test"):
        data = loaded(images, split)
        assert seen(out, data) == seen(store, data)
        old, new = open_store(store, split), open_store(out, split)
        rows = join_checked(old, data)
        kept = new.signal("features:seen", join_checked(new, data))
        assert np.array_equal(kept, old.signal("features:seen", rows))
    assert kdpipe("inspect", out).code == 0
    assert "nothing to do" in cached(kdpipe, images, out, *more).err
    assert cached(kdpipe, images, out, *more, views=3).code == 0
    assert open_store(out).num_views == 3
    refused(kdpipe("compact", store, "--data", f"folder:{images}", "--out", store), "which is read")
    refused(kdpipe("compact", store, "--data", f"folder:{images}", "--out", out), "views: the store has 3")


def test_mixed_samples_are_not_compacted(kdpipe: Kdpipe, images: Path, tmp_path: Path) -> None:
    store = tmp_path / "grown.zarr"
    assert cached(kdpipe, images, store, recipe=MIXING).code == 0
    refused(kdpipe("compact", store, "--data", f"folder:{images}", "--out", tmp_path / "c.zarr"), "mixes samples")
    assert not (tmp_path / "c.zarr").exists()

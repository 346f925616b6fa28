"""Images that were saved again since the teacher's pass: other names, containers, numbers or arrays, equal pixels."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from blake3 import blake3
from PIL import Image

from kdpipe.dataset import Dataset, load
from kdpipe.errors import DatasetError
from kdpipe.models import Preset
from kdpipe.pairing.attach import attach
from kdpipe.pairing.growth import Standing
from kdpipe.pairing.join import join, join_checked, remarks, verify_data, with_store_ids
from kdpipe.pairing.probes import replay
from kdpipe.pairing.recognition import recognized
from kdpipe.store.merging import merge
from kdpipe.store.reader import LogitStore, open_store
from kdpipe.store.segments import pixel_digests
from kdpipe.store.verify import verify_deep, verify_files
from kdpipe.store.writer import build
from kdpipe.testing.stores import all_shards, dataset_plan, shard_logits
from tests.unit.pairing.pictures import insects

PRESET = Preset(size=12, resize=14, interpolation="bilinear", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
VIEWS = 2
EACH = 6


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return insects(tmp_path / "insects", each=EACH)


def made(folder: Path, *, digests: bool = True, recipe: str = "crop-flip") -> LogitStore:
    dataset, path = load(f"folder:{folder}", "train"), folder.with_suffix(".zarr")
    fill(path, dataset, digests=digests, recipe=recipe)
    return open_store(path)


def fill(
    path: Path, dataset: Dataset, *, digests: bool = True, recipe: str = "crop-flip", at_most: int | None = None
) -> None:
    """Build the store at ``path``, or ``at_most`` so many of its shards."""
    plan = dataset_plan(dataset, preset=PRESET, views=VIEWS, recipe=recipe)
    splits = {split: replace(each, pixel_digests=digests) for split, each in plan.splits.items()}
    with build(path, replace(plan, splits=splits)) as builder:
        for shard in [shard for shard in all_shards(builder) if not builder.is_done(shard)][:at_most]:
            found = {"pixel_digest": torch.from_numpy(dataset.pixel_digests(np.arange(shard.start, shard.stop)))}
            builder.submit(shard, shard_logits(builder, shard), found if shard.pixels else {})
        if at_most is None:
            builder.seal({})
        builder.drain()


def digest(path: Path) -> bytes:
    """Digest an image independently: BLAKE3-128 of (3, height, width) as uint32, and of its planes."""
    planes = np.asarray(Image.open(path).convert("RGB")).transpose(2, 0, 1)
    return blake3(np.array(planes.shape, dtype="<u4").tobytes() + planes.tobytes()).digest(length=16)


def save_again(folder: Path, target: Path, name: str = "{stem}.png", **options: object) -> Path:
    """Save all images of ``folder`` again below ``target``, under other names."""
    for path in sorted(folder.rglob("*.png")):
        new = target / path.relative_to(folder).with_name(name.format(stem=path.stem))
        new.parent.mkdir(parents=True, exist_ok=True)
        Image.open(path).save(new, **options)
    return target


def check_paired(store: LogitStore, before: Dataset, after: Dataset) -> None:
    """In every view, pixels and row of the store are the pair that the teacher made."""
    matched = with_store_ids(store, after)
    rows, rows_before = join_checked(store, matched), join_checked(store, before)
    place = {before.image(index).numpy().tobytes(): index for index in range(len(before))}
    same = [place[matched.image(index).numpy().tobytes()] for index in range(len(matched))]
    assert rows.tolist() == rows_before[same].tolist()
    ours, theirs = replay(store, matched), replay(store, before)
    for view in range(VIEWS + 1):
        assert torch.equal(ours(range(len(same)), view), theirs(same, view))


def test_the_digests_are_those_of_the_decoded_images(folder: Path) -> None:
    store = made(folder)
    found = pixel_digests(store.segments)
    assert found is not None
    assert [each.tobytes() for each in found] == [digest(path) for path in sorted(folder.rglob("*.png"))]
    assert verify_files(store.path) == verify_deep(store.path) == []


def test_a_build_that_was_interrupted_keeps_them(folder: Path, tmp_path: Path) -> None:
    store, dataset = made(folder), load(f"folder:{folder}", "train")
    for shards in (1, 2):
        fill(tmp_path / "resumed.zarr", dataset, at_most=shards)
    fill(tmp_path / "resumed.zarr", dataset)
    assert open_store(tmp_path / "resumed.zarr").digest == store.digest


def test_a_union_has_those_of_its_parts(folder: Path, tmp_path: Path) -> None:
    """Of a store without them the digests are unknown: zeros."""
    first, second = made(folder), made(insects(tmp_path / "others", each=4, name="other {}.png"), digests=False)
    merge([first.path, second.path], tmp_path / "union.zarr")
    found = pixel_digests(open_store(tmp_path / "union.zarr").segments)
    expected = pixel_digests(first.segments)
    assert found is not None
    assert expected is not None
    assert np.array_equal(found, np.concatenate([expected, np.zeros((8, 16), dtype=np.uint8)]))
    assert verify_deep(tmp_path / "union.zarr") == []


@pytest.mark.parametrize("recipe", ["rrc-flip", "crop-flip+mixup:0.8"])
@pytest.mark.parametrize("name", ["{stem}.bmp", "again-{stem}.tiff"])
def test_images_in_other_containers_keep_their_rows_and_views(
    folder: Path, tmp_path: Path, name: str, recipe: str
) -> None:
    store, before = made(folder, recipe=recipe), load(f"folder:{folder}", "train")
    after = load(f"folder:{save_again(folder, tmp_path / 'again', name)}", "train")
    check_paired(store, before, after)
    matched = with_store_ids(store, after)
    assert remarks(store, matched, join(store, matched)) == [
        f"12 of 12 'train' samples have other names than in {store.path} and were matched by pixels: their views are "
        "those that the teacher saw."
    ]


def test_images_that_were_saved_again_in_place_are_the_same(folder: Path) -> None:
    store, before = made(folder), load(f"folder:{folder}", "train", loading="memory")
    save_again(folder, folder, compress_level=0)
    after = load(f"folder:{folder}", "train", loading="stream")
    assert (after.content_digests != before.content_digests).any(axis=1).all()
    check_paired(store, before, after)
    assert remarks(store, after, join(store, after)) == [
        f"12 of 12 'train' samples have other bytes and the same pixels as in {store.path}: their views are those that "
        "the teacher saw."
    ]
    assert verify_data(store, after) == []
    assert Standing.of(store, after).served.all()


def test_files_that_were_numbered_anew_are_told_by_their_images(folder: Path) -> None:
    """Every name is in the store, with another image."""
    store, before = made(folder), load(f"folder:{folder}", "train")
    contents = [(folder / f"train/ant/{index}.png").read_bytes() for index in range(EACH)]
    for index in range(EACH):
        (folder / f"train/ant/{(index + 1) % EACH}.png").write_bytes(contents[index])
    check_paired(store, before, load(f"folder:{folder}", "train"))


def test_a_name_keeps_its_row_where_its_own_image_is_nowhere(folder: Path) -> None:
    """Of a chain of renamed files whose first is new, no two samples get one row; the new one has changed."""
    store = made(folder)
    contents = [(folder / f"train/ant/{index}.png").read_bytes() for index in range(EACH)]
    for index in range(EACH - 1):
        (folder / f"train/ant/{index + 1}.png").write_bytes(contents[index])
    Image.new("RGB", (18, 16), (1, 2, 3)).save(folder / "train/ant/0.png")
    matched = with_store_ids(store, load(f"folder:{folder}", "train"))
    assert len(np.unique(matched.sample_ids, axis=0)) == len(matched)
    with pytest.raises(DatasetError, match="same names, other pixels"):
        join_checked(store, matched)


def test_arrays_are_the_images_of_the_files(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In another order, and with other keys; nothing of them is decoded."""
    store, before = made(folder), load(f"folder:{folder}", "train")
    pixels = {path.relative_to(folder).as_posix(): np.asarray(Image.open(path)) for path in folder.rglob("*.png")}
    np.savez(tmp_path / "arrays.npz", **pixels)
    (tmp_path / "arrays_of_insects.py").write_text(
        "import numpy as np\n"
        "class Data(list):\n    classes = ['ant', 'bee']\n"
        "def build(split):\n"
        f"    found = np.load({str(tmp_path / 'arrays.npz')!r})\n"
        "    return Data((found[name], int('bee' in name)) for name in sorted(found, reverse=True))\n"
    )
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    after = load("arrays_of_insects:build", "train")
    check_paired(store, before, after)
    store.path.rename(tmp_path / "of_files.zarr")


def test_a_store_of_arrays_has_the_images_of_files(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other way round: the digests of arrays are those of their pixels."""
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    (tmp_path / "insects_in_memory.py").write_text(
        "from pathlib import Path\nimport numpy as np\nfrom PIL import Image\n"
        "class Data(list):\n    classes = ['ant', 'bee']\n"
        "def build(split):\n"
        f"    files = sorted(Path({str(folder)!r}).rglob('*.png'))\n"
        "    return Data((np.asarray(Image.open(file)), int('bee' in str(file))) for file in files)\n"
    )
    dataset = load("insects_in_memory:build", "train")
    fill(tmp_path / "arrays.zarr", dataset)
    check_paired(open_store(tmp_path / "arrays.zarr"), dataset, load(f"folder:{folder}", "train"))


def test_lossy_copies_are_refused_with_their_number(folder: Path, tmp_path: Path) -> None:
    """Same names, other pixels; and a file of another name has no logits."""
    jpeg = insects(tmp_path / "jpeg", each=EACH, name="{}.jpg")
    store = made(jpeg)
    for path in sorted((jpeg / "train/ant").iterdir()):
        Image.open(path).save(path, quality=30)
    with pytest.raises(DatasetError, match=r"^6 samples of .* \(same names, other pixels\), first train/ant/0\.jpg"):
        join_checked(store, with_store_ids(store, load(f"folder:{jpeg}", "train")))
    lossy = save_again(folder, tmp_path / "lossy", "{stem}.jpeg", quality=30)
    with pytest.raises(
        DatasetError, match=r"no logits for 12 of the 12 .*\. 12 have the names of others.*, other pixels"
    ):
        join(store, with_store_ids(store, load(f"folder:{lossy}", "train")))


def test_verifying_a_lossy_copy_tells_how_many_pixels_differ(folder: Path, tmp_path: Path) -> None:
    store = made(folder)
    for path in sorted((folder / "train").glob("*/*.*")):
        Image.fromarray(255 - np.asarray(Image.open(path).convert("RGB"))).save(path)
    (fault, *_) = verify_data(store, load(f"folder:{folder}", "train"))
    assert fault.startswith(
        "12 of 12 'train' samples have changed since it was made (same names, other pixels), first "
    )


def test_stores_without_digests_are_joined_as_before(folder: Path, tmp_path: Path) -> None:
    store = made(folder, digests=False)
    assert pixel_digests(store.segments) is None
    assert not any("pixel_digest" in name for name in store.manifest.files)
    again = load(f"folder:{save_again(folder, tmp_path / 'again', '{stem}.bmp')}", "train")
    with pytest.raises(DatasetError, match="no logits for 12 of the 12"):
        join(store, with_store_ids(store, again))
    save_again(folder, folder, compress_level=0)
    with pytest.raises(DatasetError, match=r"12 samples .* have changed since .* was made, first"):
        join_checked(store, load(f"folder:{folder}", "train"))


def test_only_what_neither_name_nor_content_tells_is_decoded(folder: Path) -> None:
    store, asked = made(folder), dict[str, list[int]](content=[], pixels=[])
    digests = pixel_digests(store.segments)
    assert digests is not None
    ids = store.sample_ids.copy()
    ids[[2, 5, 7]] ^= 1
    of = {"content": store.content_digests.copy(), "pixels": digests}
    of["content"][[5, 7]] ^= 1

    def lookup(kind: str, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        asked[kind] += indices.tolist()
        return of[kind][indices]

    found = recognized(
        store,
        ids,
        content_of=lambda indices: lookup("content", indices),
        pixels_of=lambda indices: lookup("pixels", indices),
    )
    assert np.array_equal(found, store.sample_ids)
    assert asked == {"content": [2, 5, 7], "pixels": [5, 7]}


def test_attached_datasets_are_matched_by_pixels(folder: Path, tmp_path: Path) -> None:
    from torchvision.datasets import ImageFolder

    store = made(folder)
    again = save_again(folder, tmp_path / "again", "x{stem}.bmp")
    theirs = attach(store, ImageFolder(str(again / "train")))
    assert [target.tolist() for _, _, target in (theirs[index] for index in range(12))] == store.plane(0).tolist()


def test_a_hole_in_the_digests_is_a_fault(folder: Path) -> None:
    store = made(folder)
    (shard,) = [name for name in store.manifest.files if name.endswith("pixel_digest/c/1/0")]
    (store.path / shard).write_bytes((store.path / shard).read_bytes()[:-1] + b"?")
    assert verify_files(store.path) == [f"{shard} does not match its digest"]
    assert any("pixel_digest" in fault for fault in verify_deep(store.path))
    (store.path / shard).unlink()
    assert f"{shard} is missing" in verify_files(store.path)

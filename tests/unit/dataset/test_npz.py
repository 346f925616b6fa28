"""``npz:FILE``: arrays of pictures, their names and types, and files that are refused."""

from __future__ import annotations

import os
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from kdpipe.dataset import load
from kdpipe.errors import DatasetError, MissingSplitError

Arrays = dict[str, npt.NDArray[Any]]


def arrays(count: int = 6) -> Arrays:
    draw = np.random.default_rng(1)
    return {
        "train_images": draw.integers(0, 256, (count, 5, 4, 3), dtype=np.uint8),
        "train_labels": np.arange(count) % 3,
        "test_images": draw.integers(0, 256, (3, 5, 4, 3), dtype=np.uint8),
        "test_labels": np.array([2, 0, 1]),
    }


def test_pictures_are_those_of_the_array_in_all_its_layouts(tmp_path: Path) -> None:
    given = arrays()
    images = given["train_images"]
    layouts = {
        "last": images,
        "first": np.ascontiguousarray(images.transpose(0, 3, 1, 2)),
        "fortran": np.asfortranarray(images),
    }
    for name, layout in layouts.items():
        for save in (np.savez, np.savez_compressed):
            save(tmp_path / f"{name}.npz", **(given | {"train_images": layout}))  # type: ignore[arg-type]
            found = load(f"npz:{tmp_path}/{name}.npz", "train")
            assert found.classes == ("0", "1", "2")
            np.testing.assert_array_equal(found.labels, given["train_labels"])
            for index, image in enumerate(images):
                np.testing.assert_array_equal(found.image(index).numpy(), image.transpose(2, 0, 1))


@pytest.mark.parametrize("shape", [(6, 5, 4), (6, 1, 5, 4), (6, 5, 4, 1)])
def test_one_channel_is_repeated(tmp_path: Path, shape: tuple[int, ...]) -> None:
    gray = arrays()["train_images"][..., :1]
    np.savez(tmp_path / "g.npz", **(arrays() | {"train_images": gray.reshape(shape)}))  # type: ignore[arg-type]
    image = load(f"npz:{tmp_path}/g.npz", "train").image(3).numpy()
    np.testing.assert_array_equal(image, np.repeat(gray[3].transpose(2, 0, 1), 3, axis=0))


def test_the_names_of_keras_and_a_folder_of_two_files_are_understood(tmp_path: Path) -> None:
    given = arrays()
    keras = {name: given[f"{split}_{part}"] for name, split, part in _KERAS}
    np.savez(tmp_path / "keras.npz", **keras)  # type: ignore[arg-type]
    (tmp_path / "two").mkdir()
    for split in ("train", "test"):
        names = np.array(["ant", "bee", "fly"])[given[f"{split}_labels"]]
        np.savez(tmp_path / f"two/{split}.npz", images=given[f"{split}_images"], labels=names)
    for split in ("train", "test"):
        one, two = load(f"npz:{tmp_path}/keras.npz", split), load(f"npz:{tmp_path}/two", split)
        np.testing.assert_array_equal(one.content_digests, two.content_digests)
        np.testing.assert_array_equal(one.labels, two.labels)
        assert two.classes == ("ant", "bee", "fly")


_KERAS = [
    (f"{axis}_{split}", split, part) for axis, part in (("x", "images"), ("y", "labels")) for split in ("train", "test")
]


def test_class_names_and_keys_come_from_the_file(tmp_path: Path) -> None:
    extra = {"classes": np.array(["ant", "bee", "fly"]), "train_keys": np.array(list("fedcba"))}
    np.savez(tmp_path / "k.npz", **(arrays() | extra))  # type: ignore[arg-type]
    found = load(f"npz:{tmp_path}/k.npz", "train")
    assert found.classes == ("ant", "bee", "fly")
    assert found.keys == tuple(f"train/{letter}" for letter in "fedcba")
    (tmp_path / "names.txt").write_text("one\ntwo\nthree\n")
    assert load(f"npz:{tmp_path}/k.npz,classes={tmp_path}/names.txt", "test").classes == ("one", "two", "three")


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"train_images": np.zeros((6, 5, 4, 3), np.float32)}, "expected pictures: uint8"),
        ({"train_images": np.zeros((6, 5, 4, 4), np.uint8)}, "expected pictures: uint8"),
        ({"train_images": np.zeros((0, 5, 4, 3), np.uint8)}, "is empty; expected at least one picture"),
        ({"train_labels": np.zeros((6, 3), np.int64)}, "several values for each image; kdpipe trains classifiers"),
        ({"train_labels": np.zeros(6)}, "is float64; kdpipe trains classifiers: expected one class index"),
        ({"train_labels": np.zeros(5, np.int64)}, "expected one label for each of 6 images"),
        ({"train_labels": np.array([{}] * 6)}, "Python objects, which can run code"),
        ({"classes": np.array(["a", "b"])}, "expected 0..1"),
        ({"classes": np.array(["a", "a", "b"])}, "must be different class names"),
    ],
)
def test_other_types_are_refused_in_a_line(tmp_path: Path, changed: Arrays, reason: str) -> None:
    np.savez(tmp_path / "x.npz", **(arrays() | changed))  # type: ignore[arg-type]
    with pytest.raises(DatasetError, match=reason) as refused:
        load(f"npz:{tmp_path}/x.npz", "train")
    assert "\n" not in str(refused.value)


def test_missing_arrays_and_files_are_named(tmp_path: Path) -> None:
    given = arrays()
    np.savez(tmp_path / "shapes.npz", train_images=given["train_images"], train_labels=given["train_labels"])
    with pytest.raises(MissingSplitError, match="expected the arrays 'test_images' and 'test_labels', found 'train_im"):
        load(f"npz:{tmp_path}/shapes.npz", "test")
    with pytest.raises(DatasetError, match=r"did you mean .*shapes\.npz"):
        load(f"npz:{tmp_path}/shape.npz", "train")
    with pytest.raises(DatasetError, match="no option 'clases', expected classes; did you mean 'classes'"):
        load(f"npz:{tmp_path}/shapes.npz,clases=x", "train")


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, **arrays())  # type: ignore[arg-type]
    whole = path.read_bytes()
    for content in (b"", whole[: len(whole) // 2], b"no zip"):
        path.write_bytes(content)
        with pytest.raises(DatasetError, match=r"cannot be read as an \.npz file"):
            load(f"npz:{path}", "train")


@pytest.mark.parametrize("header", [b"{'descr': '<f4', 'shape': (3,", b"(" * 500, b"{'descr': '\"\"\""])
def test_headers_that_end_early_are_refused(tmp_path: Path, header: bytes) -> None:
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("train_images.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)
    with pytest.raises(DatasetError, match=r"cannot be read as an \.npz file"):
        load(f"npz:{tmp_path}/x.npz", "train")


def test_damaged_compression_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "plain.npz", **arrays())  # type: ignore[arg-type]
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(tmp_path / "plain.npz") as plain, zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        for name in plain.namelist():
            archive.writestr(name, plain.read(name))
    assert len(load(f"npz:{path}", "train")) == 6
    content = bytearray(path.read_bytes())
    content[70:90] = b"\xff" * 20
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=r"cannot be read as an \.npz file"):
        load(f"npz:{path}", "train")


def test_an_array_that_claims_more_than_its_file_has_is_refused(tmp_path: Path) -> None:
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (4000000000, 32, 32, 3), }"
    header = header.ljust(117) + b"\n"
    head = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header
    np.savez(tmp_path / "x.npz", **{k: v for k, v in arrays().items() if k != "train_images"})  # type: ignore[arg-type]
    with zipfile.ZipFile(tmp_path / "x.npz", "a") as archive:
        archive.writestr("train_images.npy", head + bytes(1000))
    with pytest.raises(DatasetError, match="is damaged: its shape"):
        load(f"npz:{tmp_path}/x.npz", "train")


def test_arrays_that_together_exceed_the_memory_are_refused(tmp_path: Path) -> None:
    """Each is below the bound; the sizes are those that the file claims."""
    most = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    row = 2_000_000_000
    names = [f"train_part{index:03}" for index in range(most // (2 * row) + 1)]
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': (2, {row}), }}".encode().ljust(117) + b"\n"
    head = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header
    np.savez(tmp_path / "x.npz", train_labels=np.array([0, 1]))
    with zipfile.ZipFile(tmp_path / "x.npz", "a", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(f"{name}.npy", head)
            archive.getinfo(f"{name}.npy").file_size = len(head) + 2 * row
    with pytest.raises(DatasetError) as refused:
        load(f"npz:{tmp_path}/x.npz", "train")
    line = str(refused.value)
    assert f"x.npz take {2 * row * len(names) + 16:,} bytes, expected at most {most:,} (half of this machine's" in line
    assert "numpy.savez instead of savez_compressed" in line
    assert "\n" not in line


def test_a_file_that_changed_is_noticed(tmp_path: Path, settled: None) -> None:
    given = arrays()
    np.savez(tmp_path / "x.npz", **given)  # type: ignore[arg-type]
    before = load(f"npz:{tmp_path}/x.npz", "train")
    given["train_images"] = 255 - given["train_images"]
    np.savez(tmp_path / "x.npz", **given)  # type: ignore[arg-type]
    after = load(f"npz:{tmp_path}/x.npz", "train")
    assert before.fingerprint != after.fingerprint
    np.testing.assert_array_equal(after.image(0).numpy(), given["train_images"][0].transpose(2, 0, 1))


def test_arrays_of_other_numbers_are_tensors(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    ids, mask = random.integers(0, 9, (2, 6, 5)), np.ones((2, 6, 5), dtype=bool)
    rows = random.random((2, 6, 3)).astype(np.float32)
    labels = np.arange(6) % 2
    splits = list(enumerate(("train", "test")))
    given = {f"{split}_labels": labels for _, split in splits}
    tokens = {f"{split}_{name}": each[at] for at, split in splits for name, each in (("ids", ids), ("mask", mask))}
    np.savez(tmp_path / "tokens.npz", **given, **tokens)
    np.savez(tmp_path / "rows.npz", y_train=labels, x_train=rows[0], y_test=labels, x_test=rows[1])
    for at, split in splits:
        found = load(f"npz:{tmp_path / 'tokens.npz'}", split)
        assert str(found.form) == "ids int64 (5), mask int64 (5)"
        assert found.form is not None
        shown = found.form.split(torch.stack(found.images(range(6))))
        assert np.array_equal(shown["ids"].numpy(), ids[at])
        assert np.array_equal(shown["mask"].numpy(), mask[at])
        assert found.labels.tolist() == labels.tolist()
        single = load(f"npz:{tmp_path / 'rows.npz'}", split)
        assert single.form is not None
        assert np.array_equal(single.form.unpack(torch.stack(single.images(range(6)))), rows[at])
    np.savez(tmp_path / "short.npz", **given, train_ids=ids[0], train_mask=mask[0, :3])
    with pytest.raises(
        DatasetError, match=r"'train_mask' of .* shape \(3, 5\), expected numbers .* as many entries as"
    ):
        load(f"npz:{tmp_path / 'short.npz'}", "train")

"""Folder datasets: what is listed, in which order, and what is refused."""

from __future__ import annotations

import os
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from blake3 import blake3
from PIL import Image

from kdpipe.dataset import load, sample_id
from kdpipe.errors import DatasetError

from .conftest import MakeFolder, picture


def message(spec: str, split: str = "train", **options: object) -> str:
    with pytest.raises(DatasetError) as caught:
        load(spec, split, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_lists_classes_by_name_and_images_by_path(make_folder: MakeFolder) -> None:
    root = make_folder(classes=("wasp", "ant"), count=2)
    found = load(f"folder:{root}", "train")
    assert found.classes == ("ant", "wasp")
    assert found.keys == ("train/ant/0.png", "train/ant/1.png", "train/wasp/0.png", "train/wasp/1.png")
    assert found.labels.dtype == np.int32
    assert found.labels.tolist() == [0, 0, 1, 1]
    assert len(found) == 4
    assert (found.spec, found.name, found.split) == (f"folder:{root}", "insects", "train")


def test_ids_and_digests_are_those_of_the_key_and_the_file(make_folder: MakeFolder) -> None:
    root = make_folder()
    found = load(f"folder:{root}", "train")
    assert found.sample_ids.shape == found.content_digests.shape == (6, 16)
    assert found.sample_ids.dtype == found.content_digests.dtype == np.uint8
    for index, key in enumerate(found.keys):
        assert found.sample_ids[index].tobytes() == sample_id(key) == blake3(key.encode()).digest(16)
        content = (root / key).read_bytes()
        assert found.content_digests[index].tobytes() == blake3(content).digest(16)
    assert len(bytes.fromhex(found.fingerprint)) == 16


def test_pixels_are_those_of_the_files(make_folder: MakeFolder) -> None:
    root = make_folder()
    found = load(f"folder:{root}", "train")
    assert found.image_size == (12, 10)
    assert found.pixels is not None
    assert found.pixels.shape == (6, 3, 12, 10)
    for index, key in enumerate(found.keys):
        with Image.open(root / key) as image:
            expected = np.asarray(image).transpose(2, 0, 1)
        np.testing.assert_array_equal(found.image(index).numpy(), expected)
        np.testing.assert_array_equal(found.pixels[index].numpy(), expected)


def test_val_serves_as_test_and_test_is_preferred(make_folder: MakeFolder) -> None:
    root = make_folder(splits=("train", "val"))
    assert load(f"folder:{root}", "test").keys[0] == "test/ant/0.png"
    shutil.copytree(root / "val", root / "test")
    (root / "test/ant/0.png").rename(root / "test/ant/first.png")
    assert "test/ant/first.png" in load(f"folder:{root}", "test").keys


def test_a_flat_test_folder_gives_way_to_val(make_folder: MakeFolder) -> None:
    root = make_folder(splits=("train", "val"))
    (root / "test").mkdir()
    picture(0).save(root / "test" / "unlabeled.png")
    assert len(load(f"folder:{root}", "test")) == 6


def test_nested_folders_belong_to_the_class_in_every_depth(make_folder: MakeFolder) -> None:
    root = make_folder(count=1)
    inner = root / "train/ant/2024/may"
    inner.mkdir(parents=True)
    picture(9).save(inner / "x.PNG")
    assert load(f"folder:{root}", "train").keys[:2] == ("train/ant/0.png", "train/ant/2024/may/x.PNG")


def test_hidden_and_other_files_are_ignored(make_folder: MakeFolder) -> None:
    root = make_folder()
    before = load(f"folder:{root}", "train").fingerprint
    for name in (".DS_Store", "Thumbs.db", "notes.txt", ".hidden.png"):
        (root / "train/ant" / name).write_bytes(b"no image")
    (root / "train/.cache").mkdir()
    (root / "train/ant/.thumbs").mkdir()
    picture(1).save(root / "train/ant/.thumbs/0.png")
    assert load(f"folder:{root}", "train").fingerprint == before


def test_names_are_the_same_in_nfc_and_nfd(make_folder: MakeFolder) -> None:
    root = make_folder(classes=("ant", "bee"), count=1, splits=("train",))
    name = "café"
    nfc, nfd = unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name)
    assert nfc != nfd
    (root / "train/bee").rename(root / "train" / nfd)
    (root / "train" / nfd / "0.png").rename(root / "train" / nfd / f"{nfd}.png")
    found = load(f"folder:{root}", "train")
    assert found.classes == ("ant", nfc)
    assert found.keys[1] == f"train/{nfc}/{nfc}.png"
    assert found.image(1).shape == (3, 12, 10)


def test_two_names_equal_after_nfc_are_refused(make_folder: MakeFolder) -> None:
    root = make_folder(count=1, splits=("train",))
    for form in ("NFC", "NFD"):
        picture(1).save(root / "train/ant" / f"{unicodedata.normalize(form, 'é')}.png")
    assert "two samples have the key 'train/ant/é.png'" in message(f"folder:{root}")


def test_a_name_that_is_not_utf8_is_refused(make_folder: MakeFolder) -> None:
    root = make_folder(count=1, splits=("train",))
    picture(1).save(os.fsencode(root / "train/ant") + b"/\xff.png")
    assert "is not valid UTF-8; rename it" in message(f"folder:{root}")


def test_two_classes_equal_after_nfc_are_refused(make_folder: MakeFolder) -> None:
    names = tuple(unicodedata.normalize(form, "é") for form in ("NFC", "NFD"))
    root = make_folder(classes=names, count=1, splits=("train",))
    assert "two class folders" in message(f"folder:{root}")


def test_a_relative_path_works_after_a_change_of_directory(
    make_folder: MakeFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_folder()
    monkeypatch.chdir(tmp_path)
    found = load("folder:insects", "train", loading="stream")
    monkeypatch.chdir("/")
    assert found.image(0).shape == (3, 12, 10)


def test_a_missing_folder_suggests_the_nearest(make_folder: MakeFolder, tmp_path: Path) -> None:
    make_folder()
    text = message(f"folder:{tmp_path}/insetcs")
    assert "there is no folder" in text
    assert f"did you mean '{tmp_path}/insects'?" in text
    assert f"'{tmp_path}/insects'" in message(f"folder:{tmp_path}/insetcs/2024/raw")
    assert "check the path" in message("folder:/nowhere/at/all")


def test_a_missing_split_says_what_is_there(make_folder: MakeFolder) -> None:
    root = make_folder(splits=("train",))
    text = message(f"folder:{root}", "test")
    assert "has no test split" in text
    assert "'test' or 'val' or 'valid'" in text
    assert "found 'train'" in text
    (root / "train").rename(root / "Train")
    assert "did you mean 'Train'?" in message(f"folder:{root}")


def test_an_empty_class_folder_is_named(make_folder: MakeFolder) -> None:
    root = make_folder()
    for split in ("train", "test"):
        (root / split / "moth").mkdir()
    (root / "train/moth/readme.txt").touch()
    text = message(f"folder:{root}")
    assert f"{root}/train/moth" in text
    assert "has no images" in text


def test_images_without_a_label_come_last_in_train_alone(make_folder: MakeFolder) -> None:
    root = make_folder(count=2)
    for index, name in enumerate(("b/deep.png", "a.png")):
        path = root / "unlabeled" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(100 + index).save(path)
    (root / "unlabeled" / "readme.txt").touch()
    found = load(f"folder:{root}", "train")
    assert found.keys[4:] == ("unlabeled/a.png", "unlabeled/b/deep.png")
    assert found.labels.tolist() == [0, 0, 1, 1, -1, -1]
    assert found.classes == ("ant", "bee")
    assert load(f"folder:{root}", "test").labels.tolist() == [0, 0, 1, 1]
    with Image.open(root / "unlabeled/a.png") as image:
        np.testing.assert_array_equal(found.image(4).numpy(), np.asarray(image).transpose(2, 0, 1))


def test_labeled_samples_keep_their_ids_beside_images_without_a_label(make_folder: MakeFolder) -> None:
    root = make_folder()
    before = load(f"folder:{root}", "train")
    (root / "unlabeled").mkdir()
    picture(100).save(root / "unlabeled/0.png")
    after = load(f"folder:{root}", "train")
    assert after.fingerprint != before.fingerprint
    assert np.array_equal(after.sample_ids[: len(before)], before.sample_ids)


def test_an_empty_folder_of_images_without_a_label_is_named(make_folder: MakeFolder) -> None:
    root = make_folder()
    (root / "unlabeled").mkdir()
    text = message(f"folder:{root}")
    assert f"'{root}/unlabeled' has no images" in text


def test_images_without_class_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "flat/train").mkdir(parents=True)
    picture(0).save(tmp_path / "flat/train/0.png")
    assert "has no class folders" in message(f"folder:{tmp_path}/flat")


def test_a_class_that_train_lacks_is_named(make_folder: MakeFolder) -> None:
    root = make_folder()
    (root / "test/bee").rename(root / "test/wasp")
    text = message(f"folder:{root}", "test")
    assert f"'{root}/test' has the class 'wasp' that '{root}/train' lacks" in text
    assert "bee" not in text
    assert "ant" not in text


def test_a_class_without_test_images_is_absent_from_the_test(make_folder: MakeFolder) -> None:
    root = make_folder(classes=("ant", "bee", "cow"), count=2)
    before = load(f"folder:{root}", "train")
    for path in (root / "test/bee").iterdir():
        path.unlink()
    for _ in range(2):
        found = load(f"folder:{root}", "test")
        assert found.classes == before.classes == ("ant", "bee", "cow")
        assert found.labels.tolist() == [0, 0, 2, 2]
        assert found.notes == ("the class 'bee' of train without test images: the test says nothing about them.",)
        if (root / "test/bee").exists():
            (root / "test/bee").rmdir()
    assert load(f"folder:{root}", "train").fingerprint == before.fingerprint


def test_an_empty_class_is_removed_in_one_step(make_folder: MakeFolder) -> None:
    root = make_folder()
    for path in (root / "train/bee").iterdir():
        path.unlink()
    assert f"remove the folder and '{root}/test/bee'" in message(f"folder:{root}")


@pytest.mark.parametrize("name", ["valid", "validation"])
def test_other_names_of_the_test_folder(make_folder: MakeFolder, name: str) -> None:
    root = make_folder(splits=("train", name))
    assert load(f"folder:{root}", "test").keys[0] == "test/ant/0.png"
    shutil.copytree(root / name, root / "test")
    (root / "test/ant/0.png").rename(root / "test/ant/first.png")
    assert "test/ant/first.png" in load(f"folder:{root}", "test").keys


def test_a_corrupt_image_is_named_however_it_is_loaded(make_folder: MakeFolder) -> None:
    root = make_folder()
    (root / "train/bee/1.png").write_bytes(b"not a picture at all")
    for loading in ("memory", "stream"):
        text = message(f"folder:{root}", loading=loading)
        assert f"{root}/train/bee/1.png cannot be decoded" in text


@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_a_truncated_image_is_named(make_folder: MakeFolder, ending: str) -> None:
    root = make_folder()
    path = root / f"train/bee/long.{ending}"
    picture(5, height=64, width=64).save(path)
    path.write_bytes(path.read_bytes()[:-2000])
    for loading in ("memory", "stream"):
        assert f"{path} cannot be decoded" in message(f"folder:{root}", loading=loading)


@pytest.mark.parametrize("spec", ["folder", "folder:", "cifar10", "torchvision:MNIST"])
def test_a_spec_without_a_path_says_its_form(spec: str) -> None:
    assert "PATH" in message(spec)


def test_an_unknown_spec_suggests_the_nearest(make_folder: MakeFolder) -> None:
    assert "did you mean 'digits'?" in message("digts")
    assert "did you mean 'folder'?" in message("foldr:some/where")
    assert "did you mean 'folder'?" in message("foldr:somewhere")
    root = make_folder()
    assert f"did you mean 'folder:{root}'?" in message(str(root))


def test_wrong_options_are_refused(make_folder: MakeFolder) -> None:
    spec = f"folder:{make_folder()}"
    assert "expected 'train' or 'test'" in message(spec, "val")
    assert "limit is 0" in message(spec, limit=0)
    assert "loading is 'disk'" in message(spec, loading="disk")

"""Digits, the CIFAR batches and torchvision's datasets, synthesised in their published formats."""

from __future__ import annotations

import hashlib
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from blake3 import blake3
from PIL import Image
from sklearn.datasets import load_digits
from torchvision import datasets as published

from kdpipe.dataset import load
from kdpipe.errors import DatasetError

from .conftest import Recorder


def test_digits_are_split_the_same_way_always() -> None:
    train, test = load("digits", "train"), load("digits", "test")
    assert (len(train), len(test)) == (1438, 359)
    assert train.classes == test.classes == tuple("0123456789")
    everything = np.bincount(load_digits().target)
    assert np.bincount(test.labels).tolist() == [round(count / 5) for count in everything]
    rows = [[int(key.rpartition("/")[2]) for key in part.keys] for part in (train, test)]
    assert sorted(rows[0] + rows[1]) == list(range(1797))
    assert rows[0] == sorted(rows[0])
    assert train.keys[0] == f"digits/train/{rows[0][0]}"
    assert rows[1][:8] == [6, 17, 27, 32, 33, 35, 39, 50]


def test_digits_show_the_original_pixels() -> None:
    test = load("digits", "test", 30)
    assert test.image_size == (32, 32)
    assert np.bincount(test.labels).tolist() == [3] * 10
    index = int(test.keys[7].rpartition("/")[2])
    original = load_digits().images[index]
    assert int(load_digits().target[index]) == test.labels[7]
    shown = test.image(7).numpy()
    assert shown.shape == (3, 32, 32)
    np.testing.assert_array_equal(shown[1, ::4, ::4], np.floor(original * 255 / 16 + 0.5))
    np.testing.assert_array_equal(shown[0], np.kron(shown[2, ::4, ::4], np.ones((4, 4))))


def write_cifar(root: Path, monkeypatch: pytest.MonkeyPatch, *, fine: bool) -> dict[str, np.ndarray]:
    """Write small batches in the published format, and let torchvision expect their checksums."""
    kind = published.CIFAR100 if fine else published.CIFAR10
    folder = root / kind.base_folder
    folder.mkdir(parents=True)
    count = 100 if fine else 10
    pixels: dict[str, np.ndarray] = {}

    def checksum(name: str, content: object) -> str:
        packed = pickle.dumps(content, protocol=2)
        (folder / name).write_bytes(packed)
        return hashlib.md5(packed).hexdigest()

    for attribute in ("train_list", "test_list"):
        entries = []
        for number, (name, _) in enumerate(getattr(kind, attribute)):
            rng = np.random.default_rng([number, attribute == "train_list"])
            pixels[name] = rng.integers(0, 256, (4, 3072), dtype=np.uint8)
            labels = [(7 * number + row) % count for row in range(4)]
            entries.append([name, checksum(name, {"data": pixels[name], "fine_labels" if fine else "labels": labels})])
        monkeypatch.setattr(kind, attribute, entries)
    names = [f"class{index}" for index in range(count)]
    meta = dict(kind.meta)
    meta["md5"] = checksum(meta["filename"], {meta["key"]: names})
    monkeypatch.setattr(kind, "meta", meta)
    return pixels


@pytest.mark.parametrize("fine", [False, True])
def test_cifar_is_read_from_its_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recorder: Recorder, fine: bool
) -> None:
    name = "cifar100" if fine else "cifar10"
    pixels = write_cifar(tmp_path / "c", monkeypatch, fine=fine)
    train = load(f"{name}:{tmp_path}/c", "train")
    test = load(f"{name}:{tmp_path}/c", "test", progress=recorder)
    expected = np.concatenate([pixels[batch] for batch, _ in getattr(published, name.upper()).train_list])
    np.testing.assert_array_equal(train.pixels.numpy().reshape(-1, 3072), expected)  # type: ignore[union-attr]
    assert train.keys[3] == f"{name}/train/3"
    assert test.labels.tolist() == [0, 1, 2, 3]
    assert test.classes[2] == "class2"
    assert recorder.total == {"checking test": 4, "decoding test": 4}
    assert train.statistics()[0][0] == (0.5071 if fine else 0.4914)
    inside = load(f"{name}:{tmp_path}/c/{getattr(published, name.upper()).base_folder}", "train")
    assert inside.fingerprint == train.fingerprint
    again = pickle.loads(pickle.dumps(load(f"{name}:{tmp_path}/c", "train", loading="stream")))
    assert torch.equal(again.image(3), train.image(3))


def test_cifar_that_is_not_there_says_how_to_get_it(tmp_path: Path) -> None:
    (tmp_path / "cifar").mkdir()
    with pytest.raises(DatasetError, match="--download") as caught:
        load(f"cifar10:{tmp_path}/cifra", "train")
    assert f"did you mean '{tmp_path}/cifar'?" in str(caught.value)


def test_damaged_batches_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar(tmp_path / "c", monkeypatch, fine=False)
    with (tmp_path / "c/cifar-10-batches-py/test_batch").open("ab") as file:
        file.write(b"!")
    with pytest.raises(DatasetError, match="damaged"):
        load(f"cifar10:{tmp_path}/c", "test")


def test_a_failed_download_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: object) -> None:
        raise RuntimeError("no network\nfor you")

    monkeypatch.setattr(published.CIFAR10, "download", refuse)
    with pytest.raises(DatasetError, match=r"could not be downloaded to .*: no network; check the network"):
        load(f"cifar10:{tmp_path}", "train", download=True)


def write_idx(root: Path, *, count: int) -> tuple[np.ndarray, np.ndarray]:
    folder = root / "FashionMNIST/raw"
    folder.mkdir(parents=True)
    images = np.random.default_rng(1).integers(0, 256, (count, 28, 28), dtype=np.uint8)
    labels = (np.arange(count) % 10).astype(np.uint8)
    for prefix in ("train", "t10k"):
        head = struct.pack(">IIII", 0x803, count, 28, 28)
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(head + images.tobytes())
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, count) + labels.tobytes())
    return images, labels


def test_fashion_mnist_is_read_from_idx_files(tmp_path: Path, recorder: Recorder) -> None:
    images, labels = write_idx(tmp_path / "f", count=40)
    found = load(f"torchvision:fashionmnist:{tmp_path}/f", "test", progress=recorder)
    assert found.keys[0] == "fashionmnist/test/0"
    assert found.classes[9] == "Ankle boot"
    assert found.labels.tolist() == labels.tolist()
    np.testing.assert_array_equal(found.pixels[:, 2].numpy(), images)  # type: ignore[index]
    few = load(f"torchvision:FashionMNIST:{tmp_path}/f", "test", 10, progress=recorder)
    assert sorted(few.labels.tolist()) == list(range(10))
    assert recorder.total["decoding test"] == 10


def test_torchvision_datasets_of_files_are_read_as_files(tmp_path: Path) -> None:
    base = tmp_path / "g/gtsrb/GTSRB/Training"
    for label in range(3):
        (base / f"{label:05d}").mkdir(parents=True)
        for index in range(2):
            levels = np.full((5, 6 + label, 3), 40 * label + index, dtype=np.uint8)
            Image.fromarray(levels).save(base / f"{label:05d}" / f"{index}.ppm")
    found = load(f"torchvision:GTSRB:{tmp_path}/g", "train")
    assert found.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert found.classes == ("0", "1", "2")
    assert found.image(3).unique().tolist() == [41]
    content = (base / "00001/1.ppm").read_bytes()
    assert found.content_digests[3].tobytes() == blake3(content).digest(16)


def test_unknown_and_undivided_torchvision_datasets(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="did you mean 'FashionMNIST'"):
        load(f"torchvision:FashonMNIST:{tmp_path}", "train")
    with pytest.raises(DatasetError, match="not divided into train and test"):
        load(f"torchvision:EuroSAT:{tmp_path}", "train")
    with pytest.raises(DatasetError, match="--download"):
        load(f"torchvision:Flowers102:{tmp_path}", "test")
    with pytest.raises(DatasetError, match="EMNIST has no train split"):
        load(f"torchvision:EMNIST:{tmp_path}", "train")

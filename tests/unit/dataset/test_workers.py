"""Pickling, and what workers of a DataLoader see."""

from __future__ import annotations

import dataclasses
import pickle

import pytest
import torch
from torch.utils.data import DataLoader

from kdpipe.dataset import Dataset, cache_directory, load
from kdpipe.errors import DatasetError
from kdpipe.views import Renderer

from .conftest import MakeFolder, picture


class Torch(torch.utils.data.Dataset[tuple[torch.Tensor, int]]):
    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.dataset.image(index), int(self.dataset.labels[index])


@pytest.mark.parametrize("loading", ["memory", "stream"])
def test_pickling_leaves_the_pixels_out(make_folder: MakeFolder, loading: str) -> None:
    root = make_folder()
    picture(3, height=400, width=400).save(root / "train/bee/large.png")
    found = load(f"folder:{root}", "train", loading=loading)  # type: ignore[arg-type]
    packed = pickle.dumps(found.subset([5, 0, 6]))
    assert len(packed) < 10_000
    again = pickle.loads(packed)
    assert again.in_memory == (loading == "memory")
    assert again.keys == tuple(found.keys[index] for index in (5, 0, 6))
    for index, original in enumerate((5, 0, 6)):
        assert torch.equal(again.image(index), found.image(original))


def test_pickling_survives_a_deleted_cache(make_folder: MakeFolder) -> None:
    found = load(f"folder:{make_folder()}", "train")
    packed = pickle.dumps(found)
    for path in cache_directory().rglob("*.bin"):
        path.unlink()
    again = pickle.loads(packed)
    assert not again.in_memory
    assert torch.equal(again.image(2), found.image(2))


@pytest.mark.parametrize("loading", ["memory", "stream"])
def test_a_subset_is_pickled_with_its_whole(make_folder: MakeFolder, loading: str) -> None:
    found = load(f"folder:{make_folder()}", "train", loading=loading)  # type: ignore[arg-type]
    part = found.subset([5, 0, 3]).subset([2, 0])
    again, whole = pickle.loads(pickle.dumps((part, part.whole)))
    assert again.whole is whole
    assert whole.whole is whole
    assert repr(again) == repr(part)
    assert whole.fingerprint == found.fingerprint
    assert again.in_memory == whole.in_memory == (loading == "memory")
    assert again.buffer is whole.buffer
    assert torch.equal(torch.stack(whole.images(range(6))), torch.stack(found.images(range(6))))
    assert torch.equal(torch.stack(again.images(range(2))), torch.stack(found.images([3, 5])))


def test_a_streamed_subset_of_a_dataset_in_memory_stays_streamed(make_folder: MakeFolder) -> None:
    part = load(f"folder:{make_folder()}", "train").subset([5, 0])
    again = pickle.loads(pickle.dumps(dataclasses.replace(part, buffer=None)))
    assert not again.in_memory
    assert again.whole.in_memory
    assert torch.equal(again.image(0), part.image(0))


def test_a_subset_and_its_whole_survive_a_deleted_cache(make_folder: MakeFolder) -> None:
    part = load(f"folder:{make_folder()}", "train").subset([5, 0])
    packed = pickle.dumps(part)
    for path in cache_directory().rglob("*.bin"):
        path.unlink()
    again = pickle.loads(packed)
    assert not again.in_memory
    assert not again.whole.in_memory
    assert torch.equal(again.whole.image(5), part.image(0))


@pytest.mark.parametrize(("context", "loading"), [("spawn", "memory"), ("fork", "memory"), ("fork", "stream")])
def test_workers_see_the_same_pixels(make_folder: MakeFolder, context: str, loading: str) -> None:
    found = load(f"folder:{make_folder()}", "train", loading=loading)  # type: ignore[arg-type]
    loader = DataLoader(Torch(found), batch_size=3, num_workers=1, multiprocessing_context=context)
    images = torch.cat([batch for batch, _ in loader])
    assert torch.equal(images, torch.stack(found.images(range(6))))


def test_a_dataset_says_how_many_processes_read_it(make_folder: MakeFolder) -> None:
    spec = f"folder:{make_folder()}"
    found = load(spec, "train", loading="stream", workers=3)
    assert Renderer(found, "none", seed=0, geometry=None).workers == 3
    assert Renderer(found.subset([0]), "none", seed=0, geometry=None).workers == 3
    assert Renderer(found, "none", seed=0, geometry=None, workers=1).workers == 1
    with pytest.raises(DatasetError, match="workers is 0, expected at least 1"):
        load(spec, "train", workers=0)


def test_errors_come_back_from_workers(make_folder: MakeFolder) -> None:
    root = make_folder()
    path = root / "train/ant/1.png"
    found = load(f"folder:{root}", "train", loading="stream")
    path.write_bytes(path.read_bytes()[:-60])
    batches = iter(DataLoader(Torch(found), num_workers=1, multiprocessing_context="fork"))
    next(batches)
    with pytest.raises(DatasetError, match=r"1\.png changed after the dataset was loaded"):
        next(batches)
    assert len(list(batches)) == 4
    with pytest.raises(DatasetError) as caught:
        found.image(1)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)

"""Other people's datasets with soft targets: the right row, the right view, in every kind of worker."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from blake3 import blake3
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset
from torchvision.datasets import ImageFolder
from torchvision.transforms.v2 import functional

from kdpipe import attach
from kdpipe.dataset import Dataset, load
from kdpipe.errors import DatasetError, StaleStoreError, StoreError
from kdpipe.models import Preset
from kdpipe.pairing.shared import Origin, SharedTargets
from kdpipe.store.reader import LogitStore, open_store
from kdpipe.testing.stores import dataset_plan, small_store
from tests.conftest import ROOT

PRESET = Preset(size=12, resize=14, interpolation="bilinear", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
VIEWS = 3
PER_CLASS = 7
SAMPLES = 2 * PER_CLASS


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of which one has a name in decomposed Unicode, and each its own color."""
    root = tmp_path_factory.mktemp("attach") / "insects"
    for label, name in enumerate(("ant", "bee")):
        (root / "train" / name).mkdir(parents=True)
        for index in range(PER_CLASS):
            levels = np.random.default_rng([index, label]).integers(0, 256, (16, 18, 3), dtype=np.uint8)
            file = unicodedata.normalize("NFD", "é.png") if index == 0 else f"{index}.png"
            Image.fromarray(levels).save(root / "train" / name / file)
    return root


@pytest.fixture
def dataset(folder: Path) -> Dataset:
    return load(f"folder:{folder}", "train")


@pytest.fixture
def store(dataset: Dataset, tmp_path: Path) -> LogitStore:
    small_store(tmp_path / "insects.zarr", dataset_plan(dataset, preset=PRESET, views=VIEWS))
    return open_store(tmp_path / "insects.zarr")


@pytest.fixture
def images(folder: Path) -> ImageFolder:
    return ImageFolder(str(folder / "train"), transform=functional.pil_to_tensor)


class Pairs:
    """Items of nothing but their index, and what else a test gives it."""

    def __init__(self, items: Sequence[Any] | None = None, **attributes: Any) -> None:
        self.items = [(torch.tensor(index), index % 2) for index in range(SAMPLES)] if items is None else items
        self.__dict__.update(attributes)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


def pixel_hash(image: torch.Tensor) -> int:
    return int.from_bytes(blake3(image.numpy().tobytes()).digest(length=8), "little")


def soft_targets(items: Sequence[tuple[Any, ...]]) -> npt.NDArray[np.float32]:
    return torch.stack([item[-1] for item in items]).numpy()


@pytest.mark.parametrize("epoch", [0, 1, 2, 3, 7])
def test_images_are_those_that_the_teacher_saw(store: LogitStore, dataset: Dataset, epoch: int) -> None:
    attached = attach(store, dataset)
    attached.set_epoch(epoch)
    view = 1 + epoch % VIEWS
    assert attached.view == view
    items = attached[:]
    assert [label for _, label, _ in items] == dataset.labels.tolist()
    assert np.array_equal(soft_targets(items), store.plane(view))
    assert items[0][2].dtype == torch.float32
    assert items[0][0].dtype == torch.uint8
    assert [pixel_hash(items[row][0]) for row in store.probe_rows] == store.probe_hashes[view].tolist()


def test_the_first_epoch_needs_no_call(store: LogitStore, dataset: Dataset) -> None:
    assert np.array_equal(soft_targets(attach(store, dataset)[:]), store.plane(1))


def test_without_augmented_views_every_epoch_is_plain(dataset: Dataset, tmp_path: Path) -> None:
    small_store(tmp_path / "plain.zarr", dataset_plan(dataset, preset=PRESET, views=0))
    store = open_store(tmp_path / "plain.zarr")
    attached = attach(store, dataset)
    for epoch in range(3):
        attached.set_epoch(epoch)
        assert attached.view == 0
        assert np.array_equal(soft_targets(attached[:]), store.plane(0))


def test_a_view_can_be_fixed(store: LogitStore, dataset: Dataset) -> None:
    attached = attach(store, dataset, view=2)
    attached.set_epoch(5)
    items = attached[:]
    assert np.array_equal(soft_targets(items), store.plane(2))
    assert [pixel_hash(items[row][0]) for row in store.probe_rows] == store.probe_hashes[2].tolist()
    with pytest.raises(StoreError, match="views 0 to 3 of 'train', not 4"):
        attach(store, dataset, view=4)


def test_subsets_and_other_orders_join_by_id(store: LogitStore, dataset: Dataset) -> None:
    chosen = [9, 2, 13]
    attached = attach(store, dataset.subset(chosen))
    for epoch in range(4):
        attached.set_epoch(epoch)
        assert np.array_equal(soft_targets(attached[:]), store.plane(attached.view)[chosen])


def test_a_changed_image_is_refused(store: LogitStore, dataset: Dataset) -> None:
    dataset.content_digests[3] ^= 1
    with pytest.raises(DatasetError, match=rf"1 samples .* have changed .* {dataset.keys[3]}\."):
        attach(store, dataset)


def test_an_image_folder_keeps_its_images(store: LogitStore, images: ImageFolder, dataset: Dataset) -> None:
    attached = attach(store, images)
    attached.set_epoch(2)
    assert len(attached) == SAMPLES
    rows = {key: row for row, key in enumerate(dataset.keys)}
    for index, (path, label) in enumerate(images.samples):
        image, found, soft_target = attached[index]
        assert torch.equal(image, images[index][0])
        assert found == label
        key = f"train/{Path(path).parent.name}/{unicodedata.normalize('NFC', Path(path).name)}"
        assert np.array_equal(soft_target.numpy(), store.plane(0)[rows[key]])


def test_a_subset_of_an_image_folder_joins(store: LogitStore, images: ImageFolder) -> None:
    whole = soft_targets(attach(store, images)[:])
    part = attach(store, Subset(Subset(images, [11, 4, 0, 8]), [3, 0, 1]))
    assert np.array_equal(soft_targets(part[:]), whole[[8, 11, 4]])


def test_timms_dataset_joins_by_its_files(store: LogitStore, folder: Path, images: ImageFolder) -> None:
    reader = Pairs(
        samples=[(path, label) for path, label in images.samples[::-1]],
        root=str(folder / "train"),
        class_to_idx={"bee": 1, "ant": 0},
    )
    whole = soft_targets(attach(store, images)[:])
    assert np.array_equal(soft_targets(attach(store, Pairs(reader=reader))[:]), whole[::-1])
    reader.class_to_idx = {"bee": 0, "ant": 1}
    with pytest.raises(StaleStoreError, match="classes ant, bee; Pairs has bee, ant"):
        attach(store, Pairs(reader=reader))


def test_a_missing_sample_is_named(store: LogitStore, images: ImageFolder) -> None:
    images.samples[5] = (str(Path(images.root) / "ant" / "new.png"), 0)
    with pytest.raises(DatasetError, match=r"1 of the 14 samples of ImageFolder, first train/ant/new\.png"):
        attach(store, images)


def test_other_classes_are_refused(store: LogitStore, images: ImageFolder) -> None:
    images.classes = ["bee", "ant"]
    for attempt in ({}, {"by_index": True}, {"keys": ["x"] * SAMPLES}):
        with pytest.raises(StaleStoreError, match="classes ant, bee; ImageFolder has bee, ant"):
            attach(store, images, **attempt)


def test_keys_join_by_id_and_may_repeat(store: LogitStore, dataset: Dataset) -> None:
    chosen = [4, 4, 0, 12]
    attached = attach(store, Pairs([(0, 0)] * 4), keys=[dataset.keys[row] for row in chosen])
    assert np.array_equal(soft_targets(attached[:]), store.plane(0)[chosen])
    with pytest.raises(DatasetError, match="3 keys for the 14 samples of Pairs"):
        attach(store, Pairs(), keys=dataset.keys[:3])


def test_samples_without_names_need_keys_or_the_order(store: LogitStore) -> None:
    with pytest.raises(DatasetError, match=r"keys=\['train/cat/1.jpg'.*by_index=True"):
        attach(store, Pairs())
    assert np.array_equal(soft_targets(attach(store, Pairs(), by_index=True)[:]), store.plane(0))


def test_by_index_needs_equal_lengths_and_labels(store: LogitStore) -> None:
    with pytest.raises(StoreError, match=r"Pairs has 3 samples, .* has 14 of 'train'"):
        attach(store, Pairs([(0, 0)] * 3), by_index=True)
    attach(store, Pairs(targets=store.labels.tolist()), by_index=True)
    attach(store, Pairs(targets=torch.full((SAMPLES,), -1)), by_index=True)
    with pytest.raises(StoreError, match=r"label 1 at index 0, .* has 0 \(14 differ\)"):
        attach(store, Pairs(targets=store.labels[::-1].tolist()), by_index=True)


def test_ways_of_joining_do_not_mix(store: LogitStore, dataset: Dataset) -> None:
    for arguments in ({"by_index": True}, {"keys": dataset.keys}):
        with pytest.raises(TypeError, match="own sample ids"):
            attach(store, dataset, **arguments)
    with pytest.raises(TypeError, match="not by both"):
        attach(store, Pairs(), keys=dataset.keys, by_index=True)


class Stream(IterableDataset[Any]):
    def __len__(self) -> int:
        return SAMPLES

    def __iter__(self) -> Iterator[Any]:
        return iter(())


@pytest.mark.parametrize("stream", [iter([]), object(), Stream()])
def test_only_map_style_datasets_attach(store: LogitStore, stream: object) -> None:
    with pytest.raises(DatasetError, match="not a map-style dataset"):
        attach(store, stream, by_index=True)


@pytest.mark.parametrize("item", [{"image": 1, "label": 2}, (1,), "no"])
def test_an_item_is_a_tuple(store: LogitStore, item: object) -> None:
    attached = attach(store, Pairs([item] * SAMPLES), by_index=True)
    with pytest.raises(DatasetError, match=rf"Pairs\[2\] is a {type(item).__name__}, expected a tuple"):
        attached[2]


def test_what_else_an_item_holds_stays_before_the_soft_target(store: LogitStore) -> None:
    attached = attach(store, Pairs([(index, 1, "extra", 5) for index in range(SAMPLES)]), by_index=True)
    *item, soft_target = attached[3]
    assert item == [3, 1, "extra", 5]
    assert np.array_equal(soft_target.numpy(), store.plane(0)[3])


def test_indices_are_those_of_a_sequence(store: LogitStore) -> None:
    attached = attach(store, Pairs(), by_index=True)
    everything = list(attached)
    assert [int(item[0]) for item in everything] == list(range(SAMPLES))
    for index in (-1, np.int64(13), torch.tensor(13)):
        assert torch.equal(attached[index][2], everything[13][2])
    assert [int(item[0]) for item in attached[-2:]] == [12, 13]
    assert [int(item[0]) for item in attached.__getitems__([5, -14, 5])] == [5, 0, 5]
    for index in (SAMPLES, -SAMPLES - 1):
        with pytest.raises(IndexError, match=f"no index {index}, only 0 to 13"):
            attached[index]
    with pytest.raises(TypeError):
        attached[0.5]


def test_a_batch_is_asked_for_at_once(store: LogitStore) -> None:
    asked = []

    class Batched(Pairs):
        def __getitems__(self, indices: list[int]) -> list[Any]:
            asked.append(indices)
            return [self.items[index] for index in indices]

    loader = DataLoader(attach(store, Batched(), by_index=True), batch_size=5)
    batches = list(loader)
    assert asked == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [10, 11, 12, 13]]
    assert [len(batch) for batch in batches] == [3, 3, 3]
    assert np.array_equal(torch.cat([batch[2] for batch in batches]).numpy(), store.plane(0))
    (batch,) = DataLoader(Subset(attach(store, Batched(), by_index=True), [9, 3]), batch_size=2)
    assert np.array_equal(batch[2].numpy(), store.plane(0)[[9, 3]])


def test_the_transform_sees_images_only(store: LogitStore, dataset: Dataset) -> None:
    plain, halved = attach(store, dataset), attach(store, dataset, transform=lambda image: image.float() / 2)
    for (image, label, soft_target), (half, same_label, same_target) in zip(plain[:], halved[:], strict=True):
        assert torch.equal(half, image.float() / 2)
        assert same_label == label
        assert torch.equal(same_target, soft_target)


def test_a_dataset_that_counts_epochs_is_told(store: LogitStore) -> None:
    told: list[int] = []
    attach(store, Pairs(set_epoch=told.append), by_index=True).set_epoch(4)
    assert told == [4]


def test_a_tensor_dataset_attaches(store: LogitStore) -> None:
    tensors = TensorDataset(torch.arange(SAMPLES), torch.zeros(SAMPLES))
    attached = attach(store, tensors, by_index=True)
    assert np.array_equal(soft_targets(attached[:]), store.plane(0))


def test_a_pickle_holds_no_planes(store: LogitStore, dataset: Dataset) -> None:
    attached = attach(store, dataset)
    attached.set_epoch(1)
    few, origin = pickle.dumps(attached), Origin.of(store, np.zeros(100_000, dtype=np.int64))
    assert len(pickle.dumps(SharedTargets(origin, view=1, slots=2))) < len(pickle.dumps(origin)) + 1000
    again = pickle.loads(few)
    assert again.view == 2
    assert np.array_equal(soft_targets(again[:]), store.plane(2))
    attached.set_epoch(2)
    assert again.view == 2
    again.set_epoch(0)
    assert np.array_equal(soft_targets(again[:]), store.plane(1))
    assert np.array_equal(soft_targets(attached[:]), store.plane(3))


def test_a_store_that_was_made_anew_is_noticed(store: LogitStore, dataset: Dataset) -> None:
    attached = attach(store, dataset)
    small_store(store.path, dataset_plan(dataset, preset=PRESET, views=VIEWS + 1), overwrite=True)
    with pytest.raises(StaleStoreError, match="has been made anew"):
        attached.set_epoch(1)
    assert attached.view == 1


def test_a_view_is_whole_while_the_next_is_decoded(store: LogitStore) -> None:
    targets = SharedTargets(Origin.of(store, np.arange(SAMPLES)), view=1, slots=2)
    planes = [torch.from_numpy(store.plane(view)) for view in range(1 + VIEWS)]
    everything, torn, stop = list(range(SAMPLES)), [], threading.Event()

    def gather() -> None:
        while not stop.is_set():
            view, logits = targets.take(everything)
            if not torch.equal(logits, planes[view]):
                torn.append(view)

    thread = threading.Thread(target=gather)
    thread.start()
    for epoch in range(12):
        targets.switch(1 + epoch % VIEWS)
    stop.set()
    thread.join()
    assert torn == []


def test_two_views_stay_within_the_memory_limit(store: LogitStore) -> None:
    few = open_store(store.path, memory_limit=12_000)
    rows = np.zeros(1000, dtype=np.int64)
    bytes_per_row = 2 * 2 + 4
    assert SharedTargets(Origin.of(few, rows), view=1, slots=1).view == 1
    with pytest.raises(StoreError, match=f"2 views of 1,000 samples take {2000 * bytes_per_row:,} bytes .* 12,000"):
        SharedTargets(Origin.of(few, rows), view=1, slots=2)


def test_too_little_shared_memory_is_said(store: LogitStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(tensor: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("No space left on device (28)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    with pytest.raises(StoreError, match=r"no shared memory for 1 views of 14 samples .*--shm-size"):
        attach(store, Pairs(), by_index=True)


def python(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run Python with a time limit that only a deadlock reaches."""
    paths = os.pathsep.join([str(ROOT / "pipeline"), str(ROOT)])
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )


@pytest.mark.parametrize(
    ("method", "persistent"), [("fork", "persistent"), ("fork", "renewed"), ("spawn", "persistent")]
)
def test_workers_follow_the_epoch(
    store: LogitStore, dataset: Dataset, tmp_path: Path, method: str, persistent: str
) -> None:
    epochs = VIEWS + 1
    program, out = Path(__file__).with_name("read_attached.py"), tmp_path / "read.npz"
    ended = python(program, store.path, dataset.spec, out, epochs, 2, method, persistent)
    assert ended.returncode == 0, ended.stderr
    with np.load(out) as read:
        for epoch in range(epochs):
            view = 1 + epoch % VIEWS
            plane, images = store.plane(view), torch.from_numpy(read[f"images {epoch}"])
            rows = [int(np.flatnonzero((plane == soft).all(axis=1))[0]) for soft in read[f"soft {epoch}"]]
            assert sorted(rows) == list(range(SAMPLES))
            assert read[f"labels {epoch}"].tolist() == dataset.labels[rows].tolist()
            hashes = dict(zip(rows, map(pixel_hash, images), strict=True))
            assert [hashes[row] for row in store.probe_rows.tolist()] == store.probe_hashes[view].tolist()


def test_a_forked_process_can_turn_to_the_next_view(store: LogitStore, dataset: Dataset) -> None:
    program = """
import os, sys
from kdpipe import attach, open_store
from kdpipe.dataset import load
store = open_store(sys.argv[1])
attached = attach(store, load(sys.argv[2], "train"))
child = os.fork()
if child == 0:
    attached.set_epoch(1)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
assert attached.view == 2
assert (attached[3][2].numpy() == store.plane(2)[3]).all()
"""
    ended = python("-c", program, store.path, dataset.spec)
    assert ended.returncode == 0, ended.stderr

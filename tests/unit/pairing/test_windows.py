"""`attach` where views do not fit in memory: windows, in every kind of worker, and one copy for several ranks."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from kdpipe import attach
from kdpipe.dataset import Dataset, load
from kdpipe.errors import StoreError
from kdpipe.models import Preset
from kdpipe.pairing.attach import AttachedDataset
from kdpipe.pairing.join import join
from kdpipe.store.reader import LogitStore, open_store
from kdpipe.testing.stores import dataset_plan, small_store
from tests.conftest import ROOT
from tests.unit.pairing.pictures import insects

PRESET = Preset(size=12, resize=14, interpolation="bilinear", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
VIEWS = 2
EACH = 20

RANK = """
import sys
import torch.distributed as dist
from torch.utils.data import DataLoader
from kdpipe import attach, open_store
from kdpipe.dataset import load

dist.init_process_group("gloo")
rank = dist.get_rank()
store = open_store(sys.argv[1], memory_limit=int(sys.argv[3]))
attached = attach(store, load(sys.argv[2], "train"))
for epoch in range(3):
    attached.set_epoch(epoch)
    order = list(attached.sampler(rank, 2))
    items = [item for batch in DataLoader(attached, batch_size=3, sampler=order, collate_fn=list) for item in batch]
    assert len(items) == len(attached) // 2
dist.barrier()
print(*order)
print(*sorted({line.split()[4] for line in open("/proc/self/maps") if "memfd:kdpipe-" in line}), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return load(f"folder:{insects(tmp_path / 'insects', each=EACH)}", "train")


@pytest.fixture
def store(dataset: Dataset, tmp_path: Path) -> LogitStore:
    """A store of many chunks, of which the memory holds two."""
    plan = dataset_plan(dataset, preset=PRESET, views=VIEWS)
    small_store(tmp_path / "insects.zarr", plan)
    whole = open_store(tmp_path / "insects.zarr")
    assert whole.num_samples > 3 * whole.chunk_rows
    return open_store(whole.path, memory_limit=2 * whole.chunk_rows * whole.row_bytes)


def expected(store: LogitStore, dataset: Dataset, view: int) -> torch.Tensor:
    return torch.from_numpy(open_store(store.path).plane(view)[join(store, dataset)])


def test_every_sample_once_in_an_order_of_windows(store: LogitStore, dataset: Dataset) -> None:
    attached = attach(store, dataset, data_seed=5)
    orders = []
    for epoch in range(4):
        attached.set_epoch(epoch)
        order = list(attached.sampler())
        assert sorted(order) == list(range(len(dataset)))
        assert len(attached.sampler()) == len(dataset)
        soft = torch.stack([attached[index][2] for index in order])
        assert attached.view == 1 + epoch % VIEWS
        assert torch.equal(soft, expected(store, dataset, attached.view)[order])
        orders.append(order)
    assert len({tuple(order) for order in orders}) == 4
    again = attach(store, dataset, data_seed=5)
    again.set_epoch(2)
    assert list(again.sampler()) == orders[2]
    assert list(attach(store, dataset, data_seed=6).sampler()) != orders[0]
    copy: AttachedDataset = pickle.loads(pickle.dumps(attached))
    assert copy.view == attached.view
    assert torch.equal(copy[orders[3][0]][2], attached[orders[3][0]][2])


def test_ranks_divide_the_order(store: LogitStore, dataset: Dataset) -> None:
    attached = attach(store, dataset)
    parts = [list(attached.sampler(rank, 3)) for rank in range(3)]
    assert [len(part) for part in parts] == [len(dataset) // 3] * 3
    assert [index for row in zip(*parts, strict=True) for index in row] == list(attached.sampler())[: 3 * len(parts[0])]


def test_passes_of_one_epoch_may_be_many(store: LogitStore, dataset: Dataset) -> None:
    attached = attach(store, dataset)
    for _ in range(8):
        loader = DataLoader(attached, batch_size=3, sampler=attached.sampler(), collate_fn=list)
        assert sum(map(len, loader)) == len(dataset)


def test_another_order_is_refused_once_it_decodes_again_and_again(store: LogitStore, dataset: Dataset) -> None:
    attached = attach(store, dataset)
    order = np.random.default_rng(0).permutation(len(dataset)).tolist()
    with pytest.raises(StoreError, match=r"exceed the memory limit of .*sampler=dataset\.sampler\(\)"):
        list(DataLoader(attached, batch_size=1, sampler=8 * order, collate_fn=list))
    attached.set_epoch(1)
    assert len([attached[index] for index in attached.sampler()]) == len(dataset)


def test_less_memory_than_two_chunks_is_refused(store: LogitStore, dataset: Dataset) -> None:
    with pytest.raises(StoreError, match="two chunks of 'train' take"):
        attach(open_store(store.path, memory_limit=store.memory_limit - 1), dataset)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_persistent_workers_follow(store: LogitStore, dataset: Dataset, tmp_path: Path, method: str) -> None:
    program, out = ROOT / "tests" / "unit" / "pairing" / "read_attached.py", tmp_path / "read.npz"
    given = (store.path, dataset.spec, out, 3, 2, method, "persistent", store.memory_limit)
    subprocess.run([sys.executable, program, *map(str, given)], check=True, timeout=120, cwd=ROOT)
    read = np.load(out)
    for epoch in range(3):
        wanted = expected(store, dataset, 1 + epoch % VIEWS)
        rows = {tuple(row) for row in wanted.tolist()}
        assert len(read[f"soft {epoch}"]) == len(dataset)
        assert {tuple(row) for row in read[f"soft {epoch}"].tolist()} == rows


@pytest.mark.parametrize("fits", [True, False])
def test_two_ranks_share_what_they_map(store: LogitStore, dataset: Dataset, fits: bool) -> None:
    limit = 8 * 1024**3 if fits else store.memory_limit
    here = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 20_000 + (os.getpid() + fits) % 20_000, "WORLD_SIZE": 2}
    started = []
    for rank in (0, 1):
        place = {"RANK": rank, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": 2, **here}
        environment = os.environ | {name: str(value) for name, value in place.items()}
        command = [sys.executable, "-c", RANK, str(store.path), dataset.spec, str(limit)]
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdin=pipe, stdout=pipe, text=True))
    said = [(each.stdout.readline().split(), each.stdout.readline().split()) for each in started]  # type: ignore[union-attr]
    for each in started:
        each.communicate()
        assert each.returncode == 0
    assert not {*said[0][0]} & {*said[1][0]}
    assert len(said[0][0]) == len(said[1][0]) == len(dataset) // 2
    assert said[0][1] == said[1][1]
    assert len(said[0][1]) == (1 if fits else 2)

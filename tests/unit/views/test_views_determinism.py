"""Views are functions of recipe, seed, sample and view: nothing else that can be varied changes a pixel."""

from __future__ import annotations

import hashlib
import multiprocessing
import pickle
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from kdpipe.dataset import Dataset, load
from kdpipe.views import Geometry, Renderer, Renderers, render, resample
from tests.unit.views.pictures import EQUAL, MIXED, ORIENTED
from tests.unit.views.pictures import RECIPES as FIRST

SEED, VIEW = 7, 3
RECIPES = (*FIRST, "vflip+rotate:15", *ORIENTED[-2:])
SIZES = {EQUAL: None, MIXED: 24}
"""Pictures of one size at their own size, and pictures of many sizes at another."""
Wholes = dict[tuple[str, str], torch.Tensor]

every_recipe = pytest.mark.parametrize("recipe", RECIPES)


@pytest.fixture(scope="module")
def datasets() -> dict[str, Dataset]:
    return {spec: load(spec, "train", loading="memory") for spec in SIZES}


@pytest.fixture(scope="module")
def wholes(datasets: dict[str, Dataset]) -> Wholes:
    """All pixels of each dataset by each recipe, rendered in one batch."""
    return {
        (spec, recipe): renderer(datasets[spec], recipe)(np.arange(300), VIEW) for spec in SIZES for recipe in RECIPES
    }


def renderer(dataset: Dataset, recipe: str, *, device: str = "cpu") -> Renderer:
    size = SIZES[dataset.spec]
    geometry = None if size is None else Geometry(size, size, "bilinear")
    return Renderer(dataset, recipe, seed=SEED, geometry=geometry, device=device, workers=2)


def digest(images: torch.Tensor) -> str:
    return hashlib.sha256(images.numpy().tobytes()).hexdigest()


def some_batches() -> list[np.ndarray[tuple[int], np.dtype[np.int64]]]:
    """Cut a random order of 60 rows, two of them repeated, into unequal batches."""
    order = np.random.default_rng(1).permutation(300)[:60]
    return np.split(np.append(order, order[:2]), [1, 8, 9, 40])


def test_recipes_and_pictures_differ(wholes: Wholes) -> None:
    assert len({digest(images) for images in wholes.values()}) == len(wholes)


@every_recipe
@pytest.mark.parametrize("size", [1, 7, 257])
def test_batch_size(datasets: dict[str, Dataset], wholes: Wholes, recipe: str, size: int) -> None:
    for spec, dataset in datasets.items():
        draw = renderer(dataset, recipe)
        parts = [draw(rows, VIEW) for rows in np.split(np.arange(300), range(size, 300, size))]
        assert torch.equal(torch.cat(parts), wholes[spec, recipe]), spec


@every_recipe
def test_order_and_repeated_indices(datasets: dict[str, Dataset], wholes: Wholes, recipe: str) -> None:
    for spec, dataset in datasets.items():
        fixed = np.arange(40)
        fixed.flags.writeable = False
        orders = (np.random.default_rng(0).permutation(300), np.array([5, 5, 299, 0, 5]), np.arange(40)[::-1], fixed)
        for rows in orders:
            assert torch.equal(renderer(dataset, recipe)(rows, VIEW), wholes[spec, recipe][rows.copy()]), spec


@every_recipe
@pytest.mark.parametrize("view", [0, VIEW])
def test_no_samples(datasets: dict[str, Dataset], recipe: str, view: int) -> None:
    for spec, dataset in datasets.items():
        assert renderer(dataset, recipe)([], view).shape == (0, 3, *renderer(dataset, recipe)([0], view).shape[2:]), (
            spec
        )


@every_recipe
def test_a_second_call_and_a_second_renderer(datasets: dict[str, Dataset], wholes: Wholes, recipe: str) -> None:
    for spec, dataset in datasets.items():
        draw = renderer(dataset, recipe)
        draw(np.arange(20), VIEW + 1)
        draw(np.arange(20), 0)
        assert torch.equal(draw(np.arange(20), VIEW), wholes[spec, recipe][:20]), spec
        again = render(dataset, recipe, seed=SEED, indices=list(range(20)), view=VIEW, size=SIZES[spec])
        assert torch.equal(again, wholes[spec, recipe][:20]), spec


@every_recipe
def test_subsets(datasets: dict[str, Dataset], wholes: Wholes, recipe: str) -> None:
    for spec, dataset in datasets.items():
        outer = np.random.default_rng(2).permutation(300)[:50]
        inner = np.array([49, 3, 20, 0])
        part = dataset.subset(outer)
        assert torch.equal(renderer(part, recipe)(np.arange(50), VIEW), wholes[spec, recipe][outer]), spec
        nested = part.subset(inner)
        assert torch.equal(renderer(nested, recipe)(np.arange(4), VIEW), wholes[spec, recipe][outer[inner]]), spec
        assert torch.equal(renderer(nested, recipe)([2], VIEW), wholes[spec, recipe][outer[inner[[2]]]]), spec


@every_recipe
def test_loading(datasets: dict[str, Dataset], wholes: Wholes, recipe: str) -> None:
    for spec in datasets:
        stream = load(spec, "train", loading="stream")
        rows = np.arange(40)
        assert torch.equal(renderer(stream, recipe)(rows, VIEW), wholes[spec, recipe][rows]), spec
        part = stream.subset(rows[::-3])
        assert torch.equal(renderer(part, recipe)(range(14), VIEW), wholes[spec, recipe][rows[::-3].copy()]), spec


@every_recipe
def test_batches_from_memory(datasets: dict[str, Dataset], wholes: Wholes, recipe: str) -> None:
    for spec, dataset in datasets.items():
        rendered = list(renderer(dataset, recipe).batches(some_batches(), VIEW))
        assert torch.equal(torch.cat(rendered), wholes[spec, recipe][np.concatenate(some_batches())]), spec


@pytest.mark.parametrize("recipe", ["crop-flip+mask:0.5", RECIPES[-1]])
def test_batches_from_two_workers(wholes: Wholes, recipe: str) -> None:
    """Also after an unfinished run, and in the plain view."""
    draw = renderer(load(MIXED, "train", loading="stream"), recipe)
    next(draw.batches([np.arange(5), np.arange(9), np.arange(3)], VIEW))
    rendered = list(draw.batches(some_batches(), VIEW))
    assert torch.equal(torch.cat(rendered), wholes[MIXED, recipe][np.concatenate(some_batches())])
    plain = torch.cat(list(draw.batches(some_batches(), 0)))
    assert torch.equal(plain, draw(np.concatenate(some_batches()), 0))


def test_the_workers_of_one_training_serve_the_next() -> None:
    def workers() -> set[int | None]:
        return {process.pid for process in multiprocessing.active_children()}

    draw, others, seen = renderer(load(MIXED, "train", loading="stream"), RECIPES[-1]), workers(), []
    for _ in range(2):
        assert len(list(Renderers.of([draw]).batches(some_batches(), VIEW))) == len(some_batches())
        seen.append(workers() - others)
    assert seen[0] == seen[1]
    assert len(seen[0]) == 2


@pytest.mark.parametrize("loading", ["memory", "stream"])
def test_several_sizes(loading: Literal["memory", "stream"]) -> None:
    dataset, recipe = load(MIXED, "train", loading=loading), RECIPES[-1]
    geometries = Geometry(20, 22, "bilinear"), Geometry(12, 14, "bicubic")
    sizes = [Renderer(dataset, recipe, seed=SEED, geometry=geometry, workers=1) for geometry in geometries]
    together = Renderers(sizes)
    for view in (VIEW, 0):
        for rows, made in zip(some_batches(), together.batches(some_batches(), view), strict=True):
            assert all(torch.equal(images, each(rows, view)) for images, each in zip(made, sizes, strict=True))
            assert all(map(torch.equal, made, together(rows, view)))


COUNTED = """
from pathlib import Path
from tests.unit.views.pictures import SIZES, Pictures

class Counted(Pictures):
    def __getitem__(self, index):
        with Path({path!r}).open("a") as file:
            print(index, file=file)
        return super().__getitem__(index)

def build(split):
    return Counted("mixed", SIZES, 16)
"""


def test_images_of_several_sizes_are_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = tmp_path / "decoded"
    (tmp_path / "counted.py").write_text(COUNTED.format(path=str(decoded)))
    monkeypatch.syspath_prepend(tmp_path)
    dataset = load("counted:build", "train", loading="stream")
    geometries = Geometry(20, 22, "bilinear"), Geometry(12, 14, "bicubic")
    sizes = [Renderer(dataset, "none", seed=SEED, geometry=geometry, workers=1) for geometry in geometries]
    decoded.unlink()
    ((large, small),) = Renderers(sizes).batches([np.array([5, 2, 9])], 0)
    assert (large.shape[2:], small.shape[2:]) == ((20, 20), (12, 12))
    assert decoded.read_text().split() == ["5", "2", "9"]


@every_recipe
def test_without_torchs_own_kernel(
    datasets: dict[str, Dataset], wholes: Wholes, recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert resample.native_agrees()
    monkeypatch.setattr(resample, "native_agrees", lambda: False)
    for spec, dataset in datasets.items():
        assert torch.equal(renderer(dataset, recipe)(np.arange(60), VIEW), wholes[spec, recipe][:60]), spec


@pytest.fixture
def other_globals() -> Iterator[None]:
    """Another default dtype and other states of the global generators, put back afterwards."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(99)
    np.random.seed(99)
    torch.manual_seed(99)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])


@pytest.mark.usefixtures("other_globals")
@every_recipe
def test_global_generators_and_default_dtype(datasets: dict[str, Dataset], wholes: Wholes, recipe: str) -> None:
    before = random.getstate(), pickle.dumps(np.random.get_state()), torch.get_rng_state()
    for spec, dataset in datasets.items():
        draw = renderer(dataset, recipe)
        assert torch.equal(draw(np.arange(60), VIEW), wholes[spec, recipe][:60]), spec
        draw.second_labels(np.arange(60), VIEW)
    assert random.getstate() == before[0]
    assert pickle.dumps(np.random.get_state()) == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])


def render_share(job: tuple[list[Dataset], int, torch.dtype, int]) -> tuple[int, int, dict[tuple[str, str], str]]:
    """Hash what one of two processes renders, with its number of threads and default dtype."""
    datasets, threads, dtype, rank = job
    torch.set_num_threads(threads)
    torch.set_default_dtype(dtype)
    rows = np.arange(300)[rank::2]
    hashes = {
        (dataset.spec, recipe): digest(renderer(dataset, recipe)(rows, VIEW))
        for dataset in datasets
        for recipe in RECIPES
    }
    return torch.get_num_threads(), hash("kdpipe"), hashes


def shares(wholes: Wholes, rank: int) -> dict[tuple[str, str], str]:
    return {case: digest(images[rank::2]) for case, images in wholes.items()}


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")
def test_forked_processes(datasets: dict[str, Dataset], wholes: Wholes) -> None:
    with multiprocessing.get_context("fork").Pool(2) as pool:
        jobs = [(list(datasets.values()), 1, torch.float32, rank) for rank in range(2)]
        found = pool.map(render_share, jobs, chunksize=1)
    for rank, (_, _, hashes) in enumerate(found):
        assert hashes == shares(wholes, rank)


def test_spawned_processes_with_two_threads_and_other_hashes(
    datasets: dict[str, Dataset], wholes: Wholes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONHASHSEED", "4321")
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        jobs = [(list(datasets.values()), 2, torch.float64, rank) for rank in range(2)]
        found = pool.map(render_share, jobs, chunksize=1)
    for rank, (threads, hashed, hashes) in enumerate(found):
        assert threads == 2
        assert hashed != hash("kdpipe")
        assert hashes == shares(wholes, rank)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_devices_agree(datasets: dict[str, Dataset], wholes: Wholes) -> None:
    for (spec, recipe), expected in wholes.items():
        for size in (1, 7, 257):
            draw = renderer(datasets[spec], recipe, device="cuda")
            rows = np.arange(300 if size > 1 else 20)
            parts = [draw(part, VIEW).cpu() for part in np.split(rows, range(size, len(rows), size))]
            assert torch.equal(torch.cat(parts), expected[rows]), (spec, recipe, size)

"""Image files that are only listed at first, and learned of by the pass that reads them."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kdpipe.dataset import Dataset, load
from kdpipe.dataset.learning import Learned, arranged, is_unread, surveyed
from kdpipe.dataset.registry import Looking
from kdpipe.errors import DatasetError, UnreadError
from kdpipe.views import Geometry, Renderer

COUNT = 12
_opened: list[Counter[str]] = []


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and _opened and str(arguments[0]).endswith(".png"):
        _opened[-1][Path(str(arguments[0])).name] += 1


sys.addaudithook(_audit)


@contextmanager
def opened() -> Iterator[Counter[str]]:
    """Count how often each image file is opened by this process."""
    _opened.append(Counter())
    yield _opened[-1]
    _opened.pop()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of two sizes, which were not written just now."""
    root = tmp_path_factory.mktemp("files")
    for index in range(COUNT):
        path = root / "train" / ("ant" if index < 6 else "bee") / f"{index:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        levels = np.random.default_rng(index).integers(0, 256, (5 + index % 2, 5, 3), dtype=np.uint8)
        Image.fromarray(levels).save(path)
    time.sleep(2.1)
    return root


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDPIPE_CACHE", str(tmp_path / "cache"))


def passed(dataset: Dataset) -> Dataset:
    """Pass all images in one batch, and return what is known then."""
    learned = Learned(dataset)
    renderer = Renderer(dataset, "crop-flip", seed=0, geometry=Geometry(4, 4, "bilinear"), workers=1)
    source = dataset.source
    assert isinstance(source, Looking)
    with source.remembering() as remember:
        for _, looked in renderer.looks([np.arange(len(dataset))]):
            learned.add(np.arange(len(dataset)), looked, remember)
    return learned.dataset()


def test_each_image_is_opened_once_in_all(files: Path) -> None:
    """Listing opens none, the pass each once, and later commands none but to render them."""
    with opened() as by_list:
        unread = load(f"folder:{files}", "train", loading="stream", unread=True)
    with opened() as by_pass:
        known = passed(unread)
    with opened() as later:
        again = load(f"folder:{files}", "train", loading="stream")
    assert (by_list.total(), later.total()) == (0, 0)
    assert sorted(by_pass.values()) == [1] * COUNT
    assert known.fingerprint == again.fingerprint
    assert np.array_equal(known.content_digests, again.content_digests)
    assert np.array_equal(known.sizes, again.sizes)


def test_views_are_those_of_images_that_were_read_before(files: Path) -> None:
    unread = load(f"folder:{files}", "train", loading="stream", unread=True)
    assert is_unread(unread)
    whole = load(f"folder:{files}", "train", loading="memory")
    assert not is_unread(whole)
    for view in (0, 1, 2):
        mine, other = (
            Renderer(each, "rrc-flip", seed=3, geometry=Geometry(4, 4, "bilinear"))(range(COUNT), view)
            for each in (unread, whole)
        )
        assert mine.equal(other)


def test_what_must_be_known_is_asked_for(files: Path) -> None:
    unread = load(f"folder:{files}", "train", loading="stream", unread=True)
    with pytest.raises(UnreadError, match="unknown until they are read"):
        _ = unread.image_size
    with opened() as read:
        some = surveyed(unread, np.array([1, 4]))
    assert read == {"01.png": 1, "04.png": 1}
    assert some.content_digests.any(axis=1).tolist() == [index in (1, 4) for index in range(COUNT)]
    with opened() as read:
        other = load(f"folder:{files}", "train", loading="stream", unread=True)
    assert read.total() == 0
    assert np.array_equal(other.content_digests, some.content_digests)
    assert unread.fingerprint == some.fingerprint != load(f"folder:{files}", "train").fingerprint


def test_images_that_fit_in_memory_are_read_at_once(files: Path) -> None:
    """By the headers of some of them; with the default limit, and with one that is too small."""
    assert is_unread(load(f"folder:{files}", "train", memory_limit=100, unread=True))
    assert load(f"folder:{files}", "train", unread=True).in_memory
    assert load(f"folder:{files}", "train", loading="memory", unread=True).in_memory


def test_a_known_image_must_be_as_it_was(files: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    for path in files.rglob("*.png"):
        (copy / path.relative_to(files)).parent.mkdir(parents=True, exist_ok=True)
        (copy / path.relative_to(files)).write_bytes(path.read_bytes())
    known = passed(load(f"folder:{copy}", "train", loading="stream", unread=True))
    (copy / "train/ant/03.png").write_bytes((copy / "train/ant/04.png").read_bytes())
    with pytest.raises(DatasetError, match=r"03\.png changed after the dataset was loaded"):
        known.look([3])
    # What was written within two seconds before it was read is not remembered.
    assert is_unread(load(f"folder:{copy}", "train", loading="stream", unread=True))


def test_a_removed_image_keeps_its_place(files: Path) -> None:
    """It is black, has no label, and its content is nobody's; most images must be there."""
    whole = load(f"folder:{files}", "train", loading="stream")
    ids = whole.sample_ids.copy()
    ids[2] ^= 1
    found = arranged(whole.subset(range(COUNT - 1, -1, -1)), ids)
    assert found is not None
    images, looked = found.look(range(COUNT))
    assert not images[2].any()
    assert not looked["digest"][2].any()
    assert not looked["pixels"][2].any()
    assert found.labels.tolist() == [-1 if index == 2 else int(index >= 6) for index in range(COUNT)]
    for index in set(range(COUNT)) - {2}:
        assert images[index].equal(whole.image(index))
        assert found.keys[index] == whole.keys[index]
    assert arranged(whole, whole.sample_ids) is whole
    assert arranged(whole, ids ^ 1) is None

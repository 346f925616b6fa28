"""Decoding once, streaming, noticing changes, and living without a cache."""

from __future__ import annotations

import errno
import os
import pickle
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kdpipe import durable
from kdpipe.dataset import cache_directory, load
from kdpipe.errors import DatasetError

from .conftest import MakeFolder, Recorder, picture


def test_decoding_reports_its_progress(make_folder: MakeFolder, recorder: Recorder) -> None:
    load(f"folder:{make_folder(count=20)}", "train", progress=recorder)
    assert recorder.total["decoding train"] == recorder.done["decoding train"] == 40


def test_the_second_load_decodes_nothing(
    make_folder: MakeFolder, recorder: Recorder, settled: None, reads: list[Path]
) -> None:
    root = make_folder()
    first = load(f"folder:{root}", "train")
    assert set(reads) == set((root / "train").rglob("*.png"))
    reads.clear()
    second = load(f"folder:{root}", "train", progress=recorder)
    assert reads == []
    assert "decoding train" not in recorder.total
    assert second.fingerprint == first.fingerprint
    assert torch.equal(second.pixels, first.pixels)  # type: ignore[arg-type]


def test_streamed_files_are_read_once_and_only_new_ones_again(
    make_folder: MakeFolder, recorder: Recorder, settled: None, reads: list[Path]
) -> None:
    """They are read, decoded and known after one read of each; the first batch reads them again."""
    root = make_folder(count=20)
    load(f"folder:{root}", "train", loading="stream", progress=recorder)
    assert sorted(reads) == sorted((root / "train").rglob("*.png"))
    assert recorder.done == {"checking train": 40}
    reads.clear()
    load(f"folder:{root}", "train", loading="stream", progress=recorder)
    assert reads == []
    picture(1).save(root / "train/ant/0.png")
    picture(99).save(root / "train/ant/new.png")
    load(f"folder:{root}", "train", loading="stream", progress=recorder)
    assert reads == [root / "train/ant/0.png", root / "train/ant/new.png"]


def test_images_are_decoded_as_soon_as_they_exceed_the_memory(
    make_folder: MakeFolder, recorder: Recorder, settled: None, reads: list[Path]
) -> None:
    """Those that were read before, in the first blocks, are read again to be decoded."""
    root, each = make_folder(count=100), 3 * 12 * 10
    found = load(f"folder:{root}", "train", memory_limit=each * 150, progress=recorder)
    assert not found.in_memory
    assert recorder.total["checking train"] == 200
    assert 150 <= recorder.total["trying train"] <= 200
    assert len(reads) == 200 + recorder.total["trying train"]


def test_a_limit_decodes_only_its_samples(make_folder: MakeFolder, recorder: Recorder) -> None:
    load(f"folder:{make_folder(count=10)}", "train", 4, progress=recorder)
    assert recorder.total == {"checking train": 4, "decoding train": 4}


def test_files_written_a_moment_ago_are_read_again(make_folder: MakeFolder, reads: list[Path]) -> None:
    """An edit within one tick of the file system's clock leaves every time as it was."""
    spec = f"folder:{make_folder()}"
    load(spec, "train")
    reads.clear()
    load(spec, "train")
    assert len(reads) == 6


def rewrite(path: Path, content: bytes) -> None:
    """Write other content of the same size into the same file and put its times back."""
    before = path.stat()
    assert len(content) == before.st_size
    with path.open("r+b") as file:
        file.write(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns, after.st_ino) == (
        before.st_size,
        before.st_mtime_ns,
        before.st_ino,
    )


@pytest.mark.parametrize("remember", [True, False])
def test_an_edit_is_noticed_even_when_size_and_time_are_restored(
    make_folder: MakeFolder, remember: bool, request: pytest.FixtureRequest
) -> None:
    root = make_folder()
    path = root / "train/ant/1.bmp"
    picture(70).save(path)
    if remember:
        request.getfixturevalue("settled")
    before = load(f"folder:{root}", "train")
    time.sleep(0.02 if remember else 0)  # one tick of the file system's clock
    content = bytearray(path.read_bytes())
    content[60] ^= 1
    rewrite(path, bytes(content))
    after = load(f"folder:{root}", "train")
    index = after.keys.index("train/ant/1.bmp")
    assert after.fingerprint != before.fingerprint
    assert not torch.equal(after.image(index), before.image(index))
    changed = (after.content_digests != before.content_digests).any(axis=1)
    assert np.flatnonzero(changed).tolist() == [index]


def test_reencoding_without_a_change_of_pixels_is_noticed(make_folder: MakeFolder) -> None:
    root = make_folder()
    before = load(f"folder:{root}", "train").fingerprint
    path = root / "train/ant/1.png"
    with Image.open(path) as image:
        image.load()
    image.save(path, compress_level=0)
    assert load(f"folder:{root}", "train").fingerprint != before


def test_correcting_a_label_keeps_the_fingerprint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "relabeled.py").write_text(
        "import torch\n"
        "wrong = True\n"
        "class Data(list):\n    classes = ['a', 'b']\n"
        "def data(split):\n"
        "    pixels = torch.zeros((3, 4, 4), dtype=torch.uint8)\n"
        "    return Data((pixels + i, int(i > 2) ^ wrong) for i in range(6))\n"
    )
    before = load("relabeled:data", "train")
    import relabeled  # type: ignore[import-not-found]

    relabeled.wrong = False
    after = load("relabeled:data", "train")
    assert before.labels.tolist() != after.labels.tolist()
    assert before.fingerprint == after.fingerprint


def test_renaming_or_reordering_changes_the_fingerprint(make_folder: MakeFolder) -> None:
    root = make_folder()
    before = load(f"folder:{root}", "train")
    assert before.subset([1, 0, 2, 3, 4, 5]).fingerprint != before.fingerprint
    (root / "train/ant/0.png").rename(root / "train/ant/00.png")
    assert load(f"folder:{root}", "train").fingerprint != before.fingerprint


def test_class_names_are_part_of_the_fingerprint(make_folder: MakeFolder) -> None:
    root = make_folder(splits=("train",), classes=("ant", "bee"), count=1)
    only_ant = load(f"folder:{root}", "train").subset([0])
    (root / "train/bee").rename(root / "train/wasp")
    assert load(f"folder:{root}", "train").subset([0]).fingerprint != only_ant.fingerprint


def test_mixed_sizes_are_kept_as_they_are(make_folder: MakeFolder) -> None:
    root = make_folder(count=1)
    picture(8, height=31, width=7).save(root / "train/bee/tall.png")
    memory = load(f"folder:{root}", "train")
    stream = load(f"folder:{root}", "train", loading="stream")
    assert memory.in_memory
    assert not stream.in_memory
    assert memory.image_size is None
    assert memory.pixels is None
    assert memory.fingerprint == stream.fingerprint
    assert [tuple(image.shape) for image in memory.images([0, 1, 2])] == [
        (3, 12, 10),
        (3, 12, 10),
        (3, 31, 7),
    ]
    for index in range(3):
        assert torch.equal(memory.image(index), stream.image(index))
    assert memory.statistics() == stream.statistics()
    assert memory.subset([0, 1]).image_size == (12, 10)


def test_what_exceeds_the_memory_limit_streams(make_folder: MakeFolder) -> None:
    spec = f"folder:{make_folder()}"
    total = 6 * 3 * 12 * 10
    assert load(spec, "train", memory_limit=total).in_memory
    streaming = load(spec, "train", memory_limit=total - 1)
    assert not streaming.in_memory
    assert streaming.pixels is None
    assert streaming.image_size == (12, 10)
    assert load(spec, "train", memory_limit=1, loading="memory").in_memory


@pytest.mark.parametrize("damage", ["truncate", "flip", "garbage"])
def test_a_damaged_cache_is_rebuilt(make_folder: MakeFolder, cache: Path, damage: str, settled: None) -> None:
    root = make_folder()
    before = load(f"folder:{root}", "train")
    expected = before.pixels.clone()  # type: ignore[union-attr]
    files_there = [path for path in cache.rglob("*") if path.is_file()]
    assert len(files_there) == 2
    for path in files_there:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 255
        whole = {"truncate": bytes(content[:-5]), "flip": bytes(content), "garbage": b"\x00\x01"}[damage]
        path.unlink()
        path.write_bytes(whole)
    after = load(f"folder:{root}", "train")
    assert after.fingerprint == before.fingerprint
    assert torch.equal(after.pixels, expected)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["a file", "read-only", "full"])
def test_without_a_writable_cache_pixels_are_in_ram(
    make_folder: MakeFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    place = tmp_path / "place"
    if kind == "a file":
        place.write_text("a file, so that no folder can be made here")
    else:
        reason = {"read-only": errno.EROFS, "full": errno.ENOSPC}[kind]

        def refuse(path: Path, write: Callable[[Path], object]) -> None:
            if kind == "full":
                path.parent.mkdir(parents=True, exist_ok=True)
                write(path.with_suffix(".part"))
            raise OSError(reason, os.strerror(reason))

        monkeypatch.setattr(durable, "replace", refuse)
    monkeypatch.setenv("KDPIPE_CACHE", str(place))
    found = load(f"folder:{make_folder()}", "train")
    assert found.in_memory
    assert found.pixels is not None
    again = pickle.loads(pickle.dumps(found))
    assert torch.equal(again.image(4), found.image(4))


def test_the_cache_directory_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDPIPE_CACHE", "/a")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    monkeypatch.setenv("HOME", "/c")
    assert cache_directory() == Path("/a")
    monkeypatch.delenv("KDPIPE_CACHE")
    assert cache_directory() == Path("/b/kdpipe")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_directory() == Path("/c/.cache/kdpipe")


def test_writing_into_pixels_does_not_reach_the_cache(make_folder: MakeFolder, cache: Path) -> None:
    found = load(f"folder:{make_folder()}", "train")
    (path,) = (cache / "pixels").iterdir()
    before = path.read_bytes()
    found.image(0).zero_()
    assert path.read_bytes() == before


def test_a_file_that_changes_while_streaming_is_noticed(make_folder: MakeFolder) -> None:
    root = make_folder()
    found = load(f"folder:{root}", "train", loading="stream")
    picture(99).save(root / "train/ant/0.png")
    with pytest.raises(DatasetError, match="changed after the dataset was loaded"):
        found.image(0)
    (root / "train/ant/1.png").unlink()
    with pytest.raises(DatasetError, match=r"1\.png cannot be read"):
        found.image(1)

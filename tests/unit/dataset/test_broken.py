"""Image files that cannot be decoded: all named before anything is made of the others, or left out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdpipe.dataset import Loading, decode, load

from .conftest import MakeFolder, Recorder, picture
from .test_folder import message

LOADINGS: tuple[Loading, ...] = ("memory", "stream")


def truncate(path: Path) -> None:
    picture(5, height=64, width=64).save(path)
    path.write_bytes(path.read_bytes()[:-2000])


@pytest.fixture
def damaged(make_folder: MakeFolder) -> Path:
    root = make_folder()
    truncate(root / "train/ant/cut.jpg")
    truncate(root / "train/bee/cut.png")
    (root / "train/bee/text.png").write_bytes(b"not a picture at all")
    (root / "train/bee/empty.png").touch()
    return root


@pytest.mark.parametrize("loading", LOADINGS)
def test_all_broken_images_are_named_at_once(damaged: Path, cache: Path, loading: Loading) -> None:
    text = message(f"folder:{damaged}", loading=loading)
    for name in ("ant/cut.jpg", "bee/cut.png", "bee/text.png", "bee/empty.png"):
        assert f"{damaged}/train/{name} cannot be decoded" in text
    assert "4 of 10 images" in text
    assert "--skip-broken" in text
    # No pixel cache of these samples, whole or not, is left behind.
    assert not list(cache.rglob("*.tmp"))


@pytest.mark.parametrize("loading", LOADINGS)
def test_many_broken_images_are_listed_in_a_file(make_folder: MakeFolder, cache: Path, loading: Loading) -> None:
    root = make_folder()
    for index in range(30):
        truncate(root / f"train/ant/cut{index}.jpg")
    text = message(f"folder:{root}", loading=loading)
    (listing,) = (cache / "broken").iterdir()
    assert "30 of 36 images" in text
    assert str(listing) in text
    assert len(text) < 2000
    assert len(listing.read_text().splitlines()) == 30


@pytest.mark.parametrize("loading", LOADINGS)
def test_broken_images_are_skipped_on_request(damaged: Path, make_folder: MakeFolder, loading: Loading) -> None:
    found = load(f"folder:{damaged}", "train", loading=loading, skip_broken=True)
    assert len(found) == 6
    assert not any("cut" in key or "text" in key for key in found.keys)
    assert any("4 of 10 images" in note and "text.png" in note for note in found.notes)
    for path in damaged.glob("train/*/*"):
        if path.stem in ("cut", "text", "empty"):
            path.unlink()
    clean = load(f"folder:{damaged}", "train", loading=loading)
    assert clean.fingerprint == found.fingerprint
    assert clean.notes == ()
    np.testing.assert_array_equal(clean.image(3).numpy(), found.image(3).numpy())


def test_a_streamed_image_is_tried_once(make_folder: MakeFolder, recorder: Recorder, settled: None) -> None:
    root = make_folder()
    load(f"folder:{root}", "train", loading="memory", progress=recorder)
    assert "trying train" not in recorder.done
    load(f"folder:{root}", "train", loading="stream", progress=recorder)
    assert recorder.done["trying train"] == 6
    picture(99).save(root / "train/ant/new.png")
    load(f"folder:{root}", "train", loading="stream", progress=recorder)
    assert recorder.done["trying train"] == 6  # the new one was decoded when it was read


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_a_quick_decode_finds_every_cut_that_a_whole_one_does(tmp_path: Path, options: dict[str, bool]) -> None:
    path = tmp_path / "a.jpg"
    picture(5, height=64, width=48).save(path, **options)
    content = path.read_bytes()
    for kept in range(0, len(content), 97):
        refused = []
        for function in (decode.check, decode.decode):
            try:
                function(content[:kept], "a.jpg")
                refused.append("")
            except decode.DatasetError as error:
                refused.append("refused" if error else "")
        assert refused[0] == refused[1]


def test_orientations_are_counted_and_not_applied(make_folder: MakeFolder) -> None:
    root = make_folder()
    for name, orientation in (("turned.jpg", 6), ("straight.jpg", 1)):
        exif = Image.Exif()
        exif[0x0112] = orientation
        picture(1).save(root / "train/ant" / name, exif=exif)
    for _ in range(2):
        found = load(f"folder:{root}", "train")
        assert found.notes == (
            "1 images of train carry an EXIF orientation, which is not applied: pixels are as stored.",
        )
    assert found.image_size == (12, 10)


def test_twelve_bits_stored_as_sixteen_are_noticed(make_folder: MakeFolder) -> None:
    root = make_folder()
    levels = np.random.default_rng(0).integers(0, 4096, (12, 10)).astype(np.uint16)
    Image.fromarray(levels).save(root / "train/ant/dark.png")
    Image.fromarray(levels * 16).save(root / "train/ant/bright.png")
    (note,) = load(f"folder:{root}", "train").notes
    assert note.startswith("warning: 1 images of train have 16 bits but no level above 4,095")

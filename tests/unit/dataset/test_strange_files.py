"""Image folders with what is no image file: FIFOs, devices, loops of links, thumbnails, and images that grow."""

from __future__ import annotations

import os
import socket
import struct
import zlib
from pathlib import Path

import pytest

from kdpipe.dataset import load
from kdpipe.dataset.encoded import EncodedSource
from kdpipe.dataset.names import Names
from kdpipe.dataset.sources import Files
from kdpipe.errors import DatasetError

from .conftest import MakeFolder, picture
from .test_folder import message


def strange(kind: str, path: Path) -> None:
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "socket":
        # The path of a socket is bounded to about 100 characters.
        with socket.socket(socket.AF_UNIX) as made:
            here = Path.cwd()
            os.chdir(path.parent)
            try:
                made.bind(path.name)
            finally:
                os.chdir(here)
    elif kind == "link to a device":
        path.symlink_to("/dev/zero")
    elif kind == "link to a FIFO":
        os.mkfifo(path.with_suffix(".pipe"))
        path.symlink_to(path.with_suffix(".pipe"))
    else:
        path.symlink_to("nowhere.png")


@pytest.mark.parametrize("kind", ["FIFO", "socket", "link to a device", "link to a FIFO", "link to nothing"])
def test_only_regular_files_are_images(make_folder: MakeFolder, kind: str) -> None:
    root = make_folder()
    strange(kind, root / "train/ant/z.png")
    text = message(f"folder:{root}")
    assert f"{root}/train/ant/z.png" in text
    assert "remove" in text


@pytest.mark.parametrize("kind", ["FIFO", "link to a device"])
def test_a_file_that_becomes_something_else_is_not_read(make_folder: MakeFolder, kind: str) -> None:
    root = make_folder()
    found = load(f"folder:{root}", "train", loading="stream")
    (root / "train/ant/0.png").unlink()
    strange(kind, root / "train/ant/0.png")
    with pytest.raises(DatasetError, match=r"0\.png cannot be read: not a regular file"):
        found.image(0)


def test_links_to_images_and_to_class_folders_are_followed(make_folder: MakeFolder, tmp_path: Path) -> None:
    root = make_folder(count=2, splits=("train",))
    (tmp_path / "elsewhere").mkdir()
    for name in ("0.png", "1.png"):
        (root / "train/ant" / name).rename(tmp_path / "elsewhere" / name)
        (root / "train/ant" / name).symlink_to(tmp_path / "elsewhere" / name)
    (root / "train/cow").symlink_to(tmp_path / "elsewhere")
    found = load(f"folder:{root}", "train")
    assert found.classes == ("ant", "bee", "cow")
    assert found.keys[4:] == ("train/cow/0.png", "train/cow/1.png")
    assert found.content_digests[:2].tobytes() == found.content_digests[4:].tobytes()


@pytest.mark.parametrize("place", ["train/ant/loop", "train/ant/deep/loop", "train/loop"])
@pytest.mark.parametrize("up", ["itself", "the class", "the split", "the dataset", "the root"])
def test_a_link_to_a_folder_above_is_refused(make_folder: MakeFolder, place: str, up: str) -> None:
    root = make_folder(splits=("train",))
    link = root / place
    link.parent.mkdir(exist_ok=True)
    targets = {"itself": link.parent, "the class": link.parent, "the split": root / "train", "the dataset": root}
    link.symlink_to(targets.get(up, Path("/")))
    text = message(f"folder:{root}")
    assert f"'{link}'" in text
    assert "a folder above it" in text
    assert "remove the link" in text


def test_links_of_two_folders_to_each_other_are_refused(make_folder: MakeFolder) -> None:
    root = make_folder(splits=("train",))
    (root / "train/ant/bees").symlink_to(root / "train/bee")
    (root / "train/bee/ants").symlink_to(root / "train/ant")
    assert "remove the link" in message(f"folder:{root}")


def test_links_that_multiply_are_refused(make_folder: MakeFolder, tmp_path: Path) -> None:
    root = make_folder(splits=("train",))
    levels = [tmp_path / f"level{depth}" for depth in range(25)]
    for below, above in zip([*levels[1:], root / "train/bee"], levels, strict=True):
        above.mkdir()
        for name in ("left", "right"):
            (above / name).symlink_to(below)
    (root / "train/ant/tree").symlink_to(levels[0])
    text = message(f"folder:{root}")
    assert "links to folders" in text
    assert f"'{root}/train/ant'" in text


def test_what_devices_and_viewers_leave_behind_is_passed_over(make_folder: MakeFolder) -> None:
    root = make_folder()
    before = load(f"folder:{root}", "train")
    for folder in ("train/@eaDir", "train/__MACOSX", "train/ant/@eaDir", "train/ant/__MACOSX", "train/ant/.thumbnails"):
        (root / folder).mkdir()
        picture(1).save(root / folder / "0.png")
    for folder in ("train/ant/thumbnails", "train/bee/Thumbs", "@eaDir", "__MACOSX/train/ant"):
        (root / folder).mkdir(parents=True)
        picture(1).save(root / folder / "0.png")
    (root / "train/ant/._0.png").write_bytes(b"\0\5\26\7")
    (root / "train/ant/Thumbs.db").write_bytes(b"no image")
    assert load(f"folder:{root}", "train").fingerprint == before.fingerprint


def test_a_class_may_be_called_thumbs(make_folder: MakeFolder) -> None:
    root = make_folder(classes=("fists", "thumbs"))
    assert load(f"folder:{root}", "train").classes == ("fists", "thumbs")


def test_a_picture_that_grows_to_too_many_pixels_is_refused(make_folder: MakeFolder) -> None:
    root = make_folder()
    path = root / "train/ant/bomb.png"

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
    text = message(f"folder:{root}")
    assert f"{path} cannot be decoded: it has more than 178,956,970 pixels" in text


def test_a_file_that_is_too_large_is_not_read(make_folder: MakeFolder) -> None:
    root = make_folder()
    path = root / "train/ant/huge.png"
    with path.open("wb") as file:
        file.truncate(1 << 42)
    assert f"{path} cannot be read" in message(f"folder:{root}")


def test_a_source_of_files_opens_no_fifo(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "z.png")
    source = EncodedSource(Files(Names.of([str(tmp_path / "z.png")])), memory="a test")
    with pytest.raises(DatasetError, match="not a regular file"):
        source.read(0, b"")

"""Labels that were corrected since the teacher's pass: files in another folder keep their logits and their pixels."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder

from kdpipe.dataset import Dataset, hold_out, load
from kdpipe.errors import DatasetError
from kdpipe.models import Preset
from kdpipe.pairing.attach import attach
from kdpipe.pairing.join import join, join_checked, remarks, verify_data, with_store_ids
from kdpipe.pairing.probes import replay
from kdpipe.stages import cli
from kdpipe.store.reader import LogitStore, open_store
from kdpipe.testing.stores import dataset_plan, small_store
from tests.unit.pairing.pictures import insects

PRESET = Preset(size=12, resize=14, interpolation="bilinear", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
VIEWS = 2


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return insects(tmp_path / "insects", each=6, splits=("train", "test"))


def correct(folder: Path, before: str, after: str) -> None:
    (folder / "train" / before).rename(folder / "train" / after)


def make(folder: Path, recipe: str = "crop-flip") -> LogitStore:
    path = folder.parent / "insects.zarr"
    small_store(path, dataset_plan(load(f"folder:{folder}", "train"), preset=PRESET, views=VIEWS, recipe=recipe))
    return open_store(path)


def by_content(dataset: Dataset) -> dict[bytes, int]:
    return {digest.tobytes(): index for index, digest in enumerate(dataset.content_digests)}


@pytest.mark.parametrize("recipe", ["crop-flip", "rrc-flip", "rrc-flip+mixup:0.8", "crop-flip+cutmix:1"])
def test_a_moved_file_keeps_its_logits_and_its_pixels(folder: Path, recipe: str) -> None:
    """In every view the pixels and the row of the store are the pair that the teacher made."""
    store = make(folder, recipe)
    before = load(f"folder:{folder}", "train")
    rows_before, rendered_before = join_checked(store, before), replay(store, before)
    correct(folder, "ant/3.png", "bee/corrected.png")
    correct(folder, "bee/0.png", "ant/0.png.png")
    loaded = load(f"folder:{folder}", "train")
    with pytest.raises(DatasetError, match="no logits for 2 of the 12"):
        join(store, loaded)
    moved = with_store_ids(store, loaded)
    rows, rendered = join_checked(store, moved), replay(store, moved)
    place = by_content(before)
    same = [place[digest.tobytes()] for digest in moved.content_digests]
    assert same != list(range(12))
    assert rows.tolist() == rows_before[same].tolist()
    for view in range(VIEWS + 1):
        assert torch.equal(rendered(range(12), view), rendered_before(same, view))
    assert moved.fingerprint == loaded.fingerprint
    assert moved.labels[moved.keys.index("train/bee/corrected.png")] == 1


def test_what_changed_is_said_with_its_number(folder: Path) -> None:
    store = make(folder)
    correct(folder, "ant/3.png", "bee/3b.png")
    correct(folder, "bee/1.png", "bee/renamed.png")
    moved = with_store_ids(store, load(f"folder:{folder}", "train"))
    lines = remarks(store, moved, join(store, moved))
    assert lines[0].startswith("2 of 12 'train' samples have other names than in")
    assert "matched by content" in lines[0]
    assert lines[1].startswith("warning: 1 of 12 'train' samples have other labels than when")
    assert "train/bee/3b.png (ant then, bee now)" in lines[1]
    said: list[str] = []
    assert verify_data(store, load(f"folder:{folder}", "train"), say=said.append) == []
    assert said == lines


def test_nothing_is_said_of_an_unchanged_dataset(folder: Path) -> None:
    store, dataset = make(folder), load(f"folder:{folder}", "train")
    assert with_store_ids(store, dataset) is dataset
    assert remarks(store, dataset, join(store, dataset)) == []


def test_parts_of_a_dataset_keep_the_ids(folder: Path) -> None:
    """Also after a subset was taken or held out, and in another process, where mixing looks up the whole."""
    store = make(folder, "crop-flip+mixup:0.8")
    correct(folder, "ant/3.png", "bee/3b.png")
    loaded = load(f"folder:{folder}", "train")
    subset = loaded.subset(range(11, 3, -1))
    matched = with_store_ids(store, subset)
    assert sorted(join(store, matched).tolist()) != []
    assert matched.whole.sample_ids.tolist() != loaded.sample_ids.tolist()
    again = pickle.loads(pickle.dumps(matched))
    assert np.array_equal(again.sample_ids, matched.sample_ids)
    assert torch.equal(replay(store, again)(range(8), 1), replay(store, matched)(range(8), 1))
    for part in hold_out(with_store_ids(store, loaded), 0.25):
        assert (join(store, part) >= 0).all()
        assert part.subset([0]).sample_ids.tolist() == part.sample_ids[:1].tolist()


def test_copies_are_given_a_row_each(folder: Path) -> None:
    """Two files with the same bytes: each has a row; a third that the teacher never saw has none."""
    shutil.copy(folder / "train/ant/0.png", folder / "train/ant/same.png")
    store = make(folder)
    correct(folder, "ant/0.png", "bee/one.png")
    correct(folder, "ant/same.png", "bee/two.png")
    moved = with_store_ids(store, load(f"folder:{folder}", "train"))
    assert sorted(join(store, moved).tolist()) == list(range(13))
    shutil.copy(folder / "train/bee/one.png", folder / "train/bee/three.png")
    with pytest.raises(DatasetError, match=r"no logits for 1 of the 14 .*three\.png|no logits for 1 of the 14"):
        join(store, with_store_ids(store, load(f"folder:{folder}", "train")))


def test_a_moved_file_whose_bytes_differ_has_no_logits(folder: Path) -> None:
    store = make(folder)
    correct(folder, "ant/3.png", "bee/3b.png")
    pixels = np.asarray(Image.open(folder / "train/bee/3b.png")).copy()
    pixels[0, 0] ^= 255
    Image.fromarray(pixels).save(folder / "train/bee/3b.png")
    with pytest.raises(DatasetError, match=r"no logits for 1 .*bee/3b\.png"):
        join(store, with_store_ids(store, load(f"folder:{folder}", "train")))


def test_attached_datasets_find_moved_files(folder: Path) -> None:
    store = make(folder)
    correct(folder, "ant/3.png", "bee/3b.png")
    own = attach(store, load(f"folder:{folder}", "train"), view=0)
    theirs = attach(store, ImageFolder(str(folder / "train")))
    whole = load(f"folder:{folder}", "train")
    for index in range(12):
        assert torch.equal(own[index][2], theirs[index][2])
    assert own[whole.keys.index("train/bee/3b.png")][1] == 1
    assert np.array_equal(own[whole.keys.index("train/bee/3b.png")][2].numpy(), store.plane(0)[3])


def test_the_stages_say_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--data", f"folder:{folder}"]
    store, run = folder.parent / "a.zarr", folder.parent / "run"
    half = ["--mean", "0.5,0.5,0.5", "--std", "0.5,0.5,0.5"]
    made = ["--teacher", "resnet8", "--input-size", 16, *half, "--device", "cpu"]
    command(capsys, "cache-teacher", *small, *made, "--views", 1, "--out", store)
    correct(folder, "ant/3.png", "bee/3b.png")
    (folder / "test/ant/2.png").rename(folder / "test/bee/2b.png")
    fit = ["--student", "resnet8", "--input-size", 16, "--epochs", 1, "--batch-size", 4, "--device", "cpu"]
    trained = command(capsys, "train-student", *small, "--store", store, *fit, "--out", run)
    checked = command(capsys, "verify", store, *small)
    measured = command(
        capsys, "benchmark", *small, "--run", run, "--out", run.parent / "r", "--rounds", 5, "--no-cold-starts"
    )
    for said, split in ((trained, "train"), (checked, "train"), (checked, "test"), (measured, "test")):
        assert f"1 of 12 '{split}' samples have other names" in said
        assert f"warning: 1 of 12 '{split}' samples have other labels than when" in said


def command(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    with pytest.raises(SystemExit) as ended:
        cli.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert ended.value.code == 0, captured.err
    return captured.out + captured.err

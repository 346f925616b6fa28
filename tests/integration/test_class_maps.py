"""Teachers of other classes than the dataset's: 1,000 for two, by a file, by names and by WordNet ids."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from kdpipe import dataset, models, open_store
from kdpipe.store.manifest import read
from tests.conftest import Outcome, refused
from tests.integration.test_ensemble import save_teacher
from tests.integration.test_growth import Kdpipe, images, picture

__all__ = ["images"]

SIZE = 3 * 16 * 16


@pytest.fixture(autouse=True, scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A linear teacher of ImageNet's 1,000 classes, whatever number is asked for, and one of as many as asked for."""
    folder = tmp_path_factory.mktemp("code")
    (folder / "thousand_teacher.py").write_text(
        "import torch\n"
        "class Thousand(torch.nn.Module):\n"
        "    def __init__(self, classes):\n"
        "        super().__init__()\n"
        "        drawn = torch.randint(-9, 9, (classes, 3 * 16 * 16), generator=torch.Generator().manual_seed(1))\n"
        "        self.weight = torch.nn.Parameter(drawn.double())\n"
        "    def forward(self, x):\n"
        "        return (x.flatten(1).double() @ self.weight.double().T / 100).float()\n"
        "def build(classes): return Thousand(1000)\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield


def cached(kdpipe: Kdpipe, images: Path, out: Path, *more: object, views: int = 2) -> Outcome:
    return kdpipe(
        *("cache-teacher", "--data", f"folder:{images}", "--teacher", "thousand_teacher:build", "--views", views),
        *("--mean", "0,0,0", "--std", "1,1,1", "--input-size", 16, "--device", "cpu", "--batch-size", 3),
        *("--recipe", "crop-flip", "--out", out, *more),
    )


def expected(images: Path, split: str) -> npt.NDArray[np.float64]:
    """Return the teacher's 1,000 logits of the plain view, computed with numpy."""
    drawn = torch.randint(-9, 9, (1000, SIZE), generator=torch.Generator().manual_seed(1)).numpy().astype(float)
    keys = dataset.load(f"folder:{images}", split).keys
    pixels = np.stack([np.asarray(Image.open(images / key)).transpose(2, 0, 1).ravel() for key in keys])
    return pixels / 255 @ drawn.T / 100


def plain(path: Path, split: str, images: Path) -> npt.NDArray[np.float64]:
    store, samples = open_store(path, split), dataset.load(f"folder:{images}", split)
    rows = dataset.find_ids(samples.sample_ids, store.sample_ids)
    logits: npt.NDArray[np.float64] = store.gather(0, rows).logits(slice(None)).double().numpy()
    return logits


def test_a_thousand_classes_become_two(kdpipe: Kdpipe, images: Path, tmp_path: Path) -> None:
    out, given = tmp_path / "logits.zarr", tmp_path / "classes.csv"
    refused(cached(kdpipe, images, out), "the model has 1000 outputs, the dataset has 2 classes", "--class-map FILE")
    (tmp_path / "letters.txt").write_text("".join(f"letter {number}\n" for number in range(1000)))
    named = ("--teacher-classes", tmp_path / "letters.txt")
    refused(cached(kdpipe, images, out, *named), "the model has 1000 outputs, the dataset has 2 classes", "--class-map")
    given.write_text("class,teacher_class\nant,310\nbee,309,cricket,fly\n")
    refused(cached(kdpipe, images, out, "--class-map", given), "class 'cricket'", "--teacher-classes imagenet")
    assert not out.exists()
    more = ("--class-map", given, "--teacher-classes", "imagenet", "--encoding", "fp32")
    outcome = cached(kdpipe, images, out, *more)
    assert outcome.code == 0, outcome.err
    assert "The 2 classes of" in outcome.err
    assert "2 by --class-map, 996 of its outputs are not used." in outcome.err
    assert "  bee  309 bee + 312 cricket + 308 fly" in outcome.err

    assert read(out).fingerprint.teacher.class_maps == (((310,), (309, 312, 308)),)
    for split in ("train", "test"):
        whole = expected(images, split)
        wanted = np.stack([whole[:, 310], np.logaddexp.reduce(whole[:, [309, 312, 308]], axis=1)], axis=1)
        np.testing.assert_allclose(plain(out, split, images), wanted, atol=2e-4)

    again = cached(kdpipe, images, out, *more)
    assert "nothing to do" in again.err or "has all of these samples" in again.err
    given.write_text("class,teacher_class\nant,310\nbee,309\n")
    refused(cached(kdpipe, images, out, *more), "teacher.class_maps")
    shown = json.loads(kdpipe("inspect", out, "--json").out)
    assert shown["class_map"] == {"ant": [[310]], "bee": [[309, 312, 308]]}
    verified = kdpipe("verify", out, "--data", f"folder:{images}", "--teacher", "thousand_teacher:build")
    assert verified.code == 0, verified.err
    picture(images / "train" / "bee" / "new.png", seed=77)
    given.write_text("class,teacher_class\nant,310\nbee,309,312,308\n")
    grown = cached(kdpipe, images, out, *more)
    assert grown.code == 0, grown.err
    assert "has grown" in grown.err


def test_names_and_wordnet_ids_are_mapped_without_a_file(kdpipe: Kdpipe, images: Path, tmp_path: Path) -> None:
    by_name = cached(kdpipe, images, tmp_path / "name.zarr", "--teacher-classes", "imagenet", views=0)
    assert by_name.code == 0, by_name.err
    assert "2 by name, 998 of its outputs are not used." in by_name.err
    for split in ("train", "test"):
        (images / split / "ant").rename(images / split / "n02219486_ant")
        (images / split / "bee").rename(images / split / "n02206856")
    by_id = cached(kdpipe, images, tmp_path / "id.zarr", views=0)
    assert by_id.code == 0, by_id.err
    assert read(tmp_path / "id.zarr").fingerprint.teacher.class_maps == (((309,), (310,)),)
    assert read(tmp_path / "name.zarr").fingerprint.teacher.class_maps == (((310,), (309,)),)


def test_published_networks_know_the_names_of_imagenet(kdpipe: Kdpipe, images: Path, tmp_path: Path) -> None:
    weights, out = tmp_path / "shufflenet.pth", tmp_path / "logits.zarr"
    torch.manual_seed(0)
    torch.save(models.create("torchvision:shufflenet_v2_x0_5", 1000).state_dict(), weights)
    outcome = kdpipe(
        *("cache-teacher", "--data", f"folder:{images}", "--teacher", "torchvision:shufflenet_v2_x0_5"),
        *("--weights", weights, "--recipe", "none", "--device", "cpu", "--out", out),
    )
    assert outcome.code == 0, outcome.err
    assert "  ant  310 ant" in outcome.err
    assert read(out).fingerprint.teacher.class_maps == (((310,), (309,)),)


def test_a_plan_and_a_live_teacher_are_mapped(kdpipe: Kdpipe, images: Path, tmp_path: Path) -> None:
    given = tmp_path / "classes.csv"
    given.write_text("ant,310\nbee,309\n")
    same = ("--data", f"folder:{images}", "--teacher", "thousand_teacher:build", "--mean", "0,0,0", "--std", "1,1,1")
    planned = kdpipe("plan", *same, "--input-size", 16, "--class-map", given, "--device", "cpu", "--pilot", 32)
    assert planned.code == 0, planned.err
    assert "2 classes" in planned.out
    command = (
        *("train-student", *same, "--teacher-size", 16, "--class-map", given, "--student", "resnet8", "--epochs", 1),
        *("--batch-size", 4, "--input-size", 16, "--device", "cpu", "--out", tmp_path / "run"),
    )
    live = kdpipe(*command)
    assert live.code == 0, live.err
    assert "2 by --class-map, 998 of its outputs are not used." in live.err
    given.write_text("ant,309\nbee,310\n")
    refused(kdpipe(*command, "--resume"), "was started with other lineage", "teachers")


def test_imported_logits_of_a_thousand_classes(kdpipe: Kdpipe, images: Path, tmp_path: Path) -> None:
    given, out = tmp_path / "classes.csv", tmp_path / "imported.zarr"
    given.write_text("ant,310\nbee,309,308\n")
    whole = {split: expected(images, split).astype(np.float32) for split in ("train", "test")}
    for split, logits in whole.items():
        np.save(tmp_path / f"{split}.npy", logits)
    files = ("--logits", tmp_path / "train.npy", "--test-logits", tmp_path / "test.npy", "--teacher-name", "ViT")
    command = ("import-logits", "--data", f"folder:{images}", *files, "--encoding", "fp32", "--out", out)
    refused(kdpipe(*command), "expected (8, 2)", "--class-map FILE")
    outcome = kdpipe(*command, "--class-map", given)
    assert outcome.code == 0, outcome.err
    assert "998 of its outputs" not in outcome.err
    assert "997 of its outputs are not used." in outcome.err
    assert read(out).fingerprint.teacher.class_maps == (((310,), (309, 308)),)
    for split, logits in whole.items():
        wide = logits.astype(np.float64)
        wanted = np.stack([wide[:, 310], np.logaddexp(wide[:, 309], wide[:, 308])], axis=1)
        np.testing.assert_allclose(plain(out, split, images), wanted, atol=1e-4)


def test_classes_that_are_paired_by_their_order_alone_are_said(kdpipe: Kdpipe, tmp_path: Path) -> None:
    common = ("cache-teacher", "--data", "digits", "--limit-train", 20, "--limit-test", 20, "--device", "cpu")
    known = dataset.load("digits", "test", 20).classes
    for name, classes, lines in (("same", known, 0), ("other", ("nought", *known[1:-1], "n\ne"), 1)):
        weights = save_teacher(tmp_path / f"{name}.safetensors", classes=classes)
        outcome = kdpipe(
            *(*common, "--teacher", "resnet14", "--weights", weights, "--views", 0, "--out", tmp_path / f"{name}.zarr")
        )
        assert outcome.code == 0, outcome.err
        assert outcome.err.count("taken for the same by their order") == lines
    expected = f"resnet14 has other names for 2 of the 10 classes of digits, such as 'nought' for '{known[0]}'"
    assert expected in outcome.err

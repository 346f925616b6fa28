"""The commands as a user runs them, on a few digits."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kdpipe import open_store
from kdpipe.stages import cli
from kdpipe.stages.listing import KINDS
from tests.conftest import LIMITS, ROOT, Built, Outcome, refused

Kdpipe = Callable[..., Outcome]

STUDENT = ("train-student", *LIMITS, "--student", "resnet8", "--epochs", 1, "--device", "cpu")


def test_students_are_trained_and_compared(built: Built, kdpipe: Kdpipe, tmp_path: Path) -> None:
    for name, extra in {
        "kd": ("--store", built.store),
        "live": ("--distill", "live", "--teacher", "resnet8", "--weights", built.weights, "--views", 2),
        "none": (),
    }.items():
        assert kdpipe(*STUDENT, *extra, "--out", tmp_path / name).code == 0
        assert {path.name for path in (tmp_path / name).iterdir()} == {
            *("model.safetensors", "checkpoint.pt", "run.json", "history.csv", "metrics.json"),
        }
    metrics = json.loads((tmp_path / "kd" / "metrics.json").read_text())
    assert set(metrics) == {"test", "weights", "epochs", "seconds", "images_per_second"}
    assert set(metrics["test"]) == {"top1", "top5", "loss"}
    assert 0 <= metrics["test"]["top1"] <= metrics["test"]["top5"] <= 1
    record = json.loads((tmp_path / "kd" / "run.json").read_text())
    assert record["distill"] == "cache"
    assert record["views"] == 2
    digest = open_store(built.store).digest
    assert record["lineage"]["stores"] == [{"path": str(built.store), "digest": digest, "weight": 1.0}]
    assert [teacher["name"] for teacher in record["lineage"]["teachers"]] == ["resnet8"]

    runs = [part for name in ("kd", "live", "none") for part in ("--run", tmp_path / name)]
    compared = kdpipe(
        "benchmark",
        "--data",
        "digits",
        "--limit-test",
        60,
        *runs,
        "--out",
        tmp_path / "reports",
        *("--rounds", 5, "--no-cold-starts"),
    )
    assert compared.code == 0
    assert {path.name for path in (tmp_path / "reports").iterdir()} == {
        *("metrics.json", "results.csv", "timings.csv", "pareto.svg", "report.html", "summary.txt"),
        *("predictions.npz", "quality.json"),
    }
    result = json.loads((tmp_path / "reports" / "metrics.json").read_text())
    assert result["students"]["kd"]["top1"] == pytest.approx(metrics["test"]["top1"])
    assert 0 <= result["students"]["kd"]["agreement"] <= 1
    assert result["teacher"]["top1"] == pytest.approx(
        float(
            (
                open_store(built.store, split="test").plane(0).argmax(1) == open_store(built.store, split="test").labels
            ).mean()
        )
    )


def test_inspect_speaks_json(built: Built, kdpipe: Kdpipe) -> None:
    found = json.loads(kdpipe("inspect", built.store, "--json").out)
    assert found["state"] == "sealed"
    assert (found["format"], found["samples"], found["classes"], found["views"]) == (1, 200, 10, 2)
    assert found["shards_done"] == found["shards_total"] == 4
    files = [path for name in ("codes", "row_max") for path in (built.store / "train" / name / "c").rglob("*")]
    on_disk = sum(path.stat().st_size for path in files if path.is_file())
    assert found["bytes_per_sample"] == pytest.approx(on_disk / (200 * 3))
    assert "sealed" in kdpipe("inspect", built.store).out


def test_verify_accepts_an_intact_store_and_its_data(built: Built, kdpipe: Kdpipe) -> None:
    assert kdpipe("verify", built.store, "--data", "digits").code == 0


def test_a_sealed_store_is_left_alone(built: Built, kdpipe: Kdpipe) -> None:
    before = {path: path.stat().st_mtime_ns for path in built.store.rglob("*")}
    again = (
        *("cache-teacher", *LIMITS, "--teacher", "resnet8", "--weights", built.weights),
        *("--out", built.store, "--views", 2, "--device", "cpu"),
    )
    assert kdpipe(*again).code == 0
    assert kdpipe(*again, "--overwrite").code == 0
    assert {path: path.stat().st_mtime_ns for path in built.store.rglob("*")} == before
    refused(kdpipe(*again, "--seed", 1), "recipe.seed", "--overwrite")
    refused(kdpipe(*again[:-4], "--views", 1, "--device", "cpu"), "views")


def test_overwrite_rebuilds_a_store_of_other_ingredients(built: Built, kdpipe: Kdpipe, tmp_path: Path) -> None:
    store = shutil.copytree(built.store, tmp_path / "copy.zarr")
    changed = kdpipe(
        *("cache-teacher", *LIMITS, "--teacher", "resnet8", "--weights", built.weights, "--out", store),
        *("--views", 2, "--device", "cpu", "--seed", 7, "--overwrite"),
    )
    assert changed.code == 0
    assert open_store(store).digest != open_store(built.store).digest
    found, before = open_store(store), open_store(built.store)
    order, other = (np.lexsort(each.sample_ids.T) for each in (found, before))  # which the seed shuffles, too
    np.testing.assert_allclose(found.plane(0)[order], before.plane(0)[other], atol=1e-3)
    assert not np.allclose(found.plane(1)[order], before.plane(1)[other], atol=1e-3)


def test_a_bad_teacher_is_stopped_before_the_training_views(built: Built, kdpipe: Kdpipe, tmp_path: Path) -> None:
    out = tmp_path / "bad.zarr"
    stopped = kdpipe(
        *("cache-teacher", *LIMITS, "--teacher", "resnet8", "--weights", built.weights, "--out", out),
        *("--mean", "9,9,9", "--std", "1,1,1", "--min-top1", 0.9, "--device", "cpu"),
    )
    refused(stopped, "top-1", "below --min-top1")
    found = json.loads(kdpipe("inspect", out, "--json").out)
    assert (found["state"], found["shards_done"]) == ("building", 1)
    refused(kdpipe(*STUDENT, "--store", out, "--out", tmp_path / "run"), "is not sealed")


class TestRefusals:
    """Wrong stores and wrong data: one clear line, exit code 1, and no run directory."""

    def test_store_of_another_dataset(self, kdpipe: Kdpipe, built: Built, tmp_path: Path) -> None:
        make_folder(tmp_path / "images")
        outcome = kdpipe(
            *("train-student", "--data", f"folder:{tmp_path / 'images'}", "--student", "resnet8", "--epochs", 1),
            *("--store", built.store, "--out", tmp_path / "run"),
        )
        refused(outcome, "classes")

    def test_samples_the_store_lacks(self, kdpipe: Kdpipe, built: Built, tmp_path: Path) -> None:
        more = ("train-student", "--data", "digits", "--limit-test", 20, "--student", "resnet8", "--epochs", 1)
        trained = kdpipe(*more, "--store", built.store, "--out", tmp_path / "run")
        assert trained.code == 0, trained.err
        assert "training on 200 of 1,438 'train' samples" in trained.err
        assert "no logits for 1,238 in" in trained.err
        assert json.loads((tmp_path / "run" / "run.json").read_text())["samples"] == 200

    def test_another_recipe_seed(self, kdpipe: Kdpipe, built: Built, tmp_path: Path) -> None:
        live = ("--distill", "live", "--teacher", "resnet8", "--weights", built.weights)
        for mode in ((), live):
            outcome = kdpipe(*STUDENT, *mode, "--store", built.store, "--recipe-seed", 5, "--out", tmp_path / "run")
            refused(outcome, "recipe-seed 0", "asked for 5")
        refused(kdpipe(*STUDENT, "--store", built.store, "--recipe", "none", "--out", tmp_path / "run"), "recipe")

    def test_more_views_than_cached(self, kdpipe: Kdpipe, built: Built, tmp_path: Path) -> None:
        outcome = kdpipe(*STUDENT, "--store", built.store, "--views", 3, "--out", tmp_path / "run")
        refused(outcome, "holds 2 augmented views, asked for 3")

    def test_another_live_teacher(self, kdpipe: Kdpipe, built: Built, tmp_path: Path) -> None:
        outcome = kdpipe(
            *STUDENT, "--distill", "live", "--teacher", "resnet14", "--store", built.store, "--out", tmp_path / "run"
        )
        refused(outcome, "resnet8@", "resnet14@")

    def test_a_removed_shard(self, kdpipe: Kdpipe, built: Built, tmp_path: Path) -> None:
        store = shutil.copytree(built.store, tmp_path / "copy.zarr")
        (store / "train" / "codes" / "c" / "1" / "0" / "0").unlink()
        refused(kdpipe(*STUDENT, "--store", store, "--out", tmp_path / "run"), "train/codes/c/1/0/0 is missing")
        verified = kdpipe("verify", store)
        assert verified.code == 1
        assert "train/codes/c/1/0/0 is missing" in verified.err

    def test_no_store(self, kdpipe: Kdpipe, tmp_path: Path) -> None:
        refused(kdpipe(*STUDENT, "--store", tmp_path / "none.zarr", "--out", tmp_path / "run"), "holds no logit store")
        refused(kdpipe("inspect", tmp_path / "none.zarr"), "holds no logit store")

    def test_a_directory_that_is_not_a_run(self, kdpipe: Kdpipe, tmp_path: Path) -> None:
        (tmp_path / "thesis.txt").write_text("keep me")
        refused(kdpipe(*STUDENT, "--out", tmp_path), "is not a run: it holds thesis.txt")
        assert (tmp_path / "thesis.txt").read_text() == "keep me"

    def test_a_store_path_that_is_not_a_store(self, kdpipe: Kdpipe, tmp_path: Path) -> None:
        folder = tmp_path / "photos.zarr"
        folder.mkdir()
        (folder / "keep.txt").write_text("keep me")
        outcome = kdpipe("cache-teacher", *LIMITS, "--teacher", "resnet8", "--out", folder, "--overwrite")
        refused(outcome, "is not a logit store")
        assert (folder / "keep.txt").read_text() == "keep me"

    def test_typing_errors_suggest_the_nearest(self, kdpipe: Kdpipe, built: Built, tmp_path: Path) -> None:
        refused(kdpipe(*STUDENT[:3], "--student", "resnet88", "--out", tmp_path / "run"), "did you mean")
        refused(kdpipe(*STUDENT, "--store", built.store, "--loss", "kdd", "--out", tmp_path / "run"), "'kd'")
        refused(
            kdpipe(
                "cache-teacher", *LIMITS, "--teacher", "resnet8", "--recipe", "cropflip", "--out", tmp_path / "a.zarr"
            ),
            "crop-flip",
        )
        refused(
            kdpipe("train-student", "--data", "digit", "--student", "resnet8", "--out", tmp_path / "run"), "'digits'"
        )
        refused(kdpipe(*STUDENT, "--epoch", 3), "--epochs")

    def test_a_device_that_is_not_there(self, kdpipe: Kdpipe, tmp_path: Path) -> None:
        refused(kdpipe(*STUDENT[:-1], "cuda:63", "--out", tmp_path / "run"), "cuda:63")

    def test_benchmark_of_an_unfinished_run(self, kdpipe: Kdpipe, tmp_path: Path) -> None:
        (tmp_path / "run").mkdir()
        refused(
            kdpipe("benchmark", "--data", "digits", "--run", tmp_path / "run", "--out", tmp_path / "reports"),
            "is not a finished run",
        )


def test_changed_images_are_noticed(kdpipe: Kdpipe, tmp_path: Path) -> None:
    images = make_folder(tmp_path / "images")
    data = ("--data", f"folder:{images}")
    assert kdpipe("cache-teacher", *data, "--teacher", "resnet8", "--out", tmp_path / "l.zarr", "--views", 1).code == 0
    assert kdpipe("verify", tmp_path / "l.zarr", *data).code == 0
    make_image(images / "train" / "ant" / "1.png", seed=99)
    student = ("train-student", *data, "--student", "resnet8", "--store", tmp_path / "l.zarr", "--epochs", 1)
    refused(kdpipe(*student, "--out", tmp_path / "run"), "train/ant/1.png", "changed")
    verified = kdpipe("verify", tmp_path / "l.zarr", *data)
    assert verified.code == 1
    assert "train/ant/1.png: its content has changed" in verified.err


def test_corrected_labels_do_not_void_the_store(
    kdpipe: Kdpipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "corrected.py").write_text(
        "import numpy as np, torch\n"
        "class Images(list):\n    classes = ('a', 'b')\n"
        "def build(split, flip):\n"
        "    g = np.random.default_rng(len(split))\n"
        "    pixels = torch.from_numpy(g.integers(0, 256, (12, 3, 32, 32), dtype=np.uint8))\n"
        "    items = Images((image, (i + flip * (i == 0)) % 2) for i, image in enumerate(pixels))\n"
        "    items.keys = [f'{split}-{i}' for i in range(12)]\n"
        "    return items\n"
        "def before(split): return build(split, 0)\n"
        "def after(split): return build(split, 1)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    cached = ("cache-teacher", "--teacher", "resnet8", "--out", tmp_path / "l.zarr", "--views", 1, "--data")
    assert kdpipe(*cached, "corrected:before").code == 0
    student = ("train-student", "--student", "resnet8", "--store", tmp_path / "l.zarr", "--epochs", 1)
    assert kdpipe(*student, "--data", "corrected:after", "--out", tmp_path / "run").code == 0
    again = kdpipe(*cached, "corrected:after")
    assert "nothing to do" in again.err


def test_interrupted_training_resumes(built: Built, kdpipe: Kdpipe, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert kdpipe(*STUDENT, "--store", built.store, "--out", run).code == 0
    refused(kdpipe(*STUDENT, "--store", built.store, "--out", run, "--resume", "--lr", 0.3), "lr: 0.1 then, 0.3 now")
    weights = (run / "model.safetensors").read_bytes()
    assert kdpipe(*STUDENT, "--store", built.store, "--out", run, "--resume").code == 0
    assert (run / "model.safetensors").read_bytes() == weights


def test_help_imports_neither_torch_nor_zarr() -> None:
    script = (
        "import sys\n"
        "from kdpipe.stages.cli import main\n"
        "for command in ([], ['train-student'], ['benchmark'], ['inspect']):\n"
        "    try: main([*command, '--help'])\n"
        "    except SystemExit as done: assert not done.code\n"
        "    assert not {'torch', 'zarr', 'torchvision'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.lower().count("example:") == 3


LOOKING = {
    **{f"list {kind}": ["list", kind] for kind in KINDS},
    "list --json": ["list", "losses", "--json"],
    "cache": ["cache"],
    "inspect": ["inspect", str(ROOT / "tests/golden/format1.zarr")],
    "stores": ["stores", str(ROOT / "tests/golden")],
    "help of all stages": [*cli.EXAMPLES],
}
"""Arguments of commands that only look; of the last, the commands whose help is printed."""


def test_commands_that_look_import_no_torch(tmp_path: Path) -> None:
    script = (
        "import json, sys\n"
        "from kdpipe.stages.cli import main\n"
        "for case, arguments in json.loads(sys.argv[1]).items():\n"
        "    for each in [[one, '--help'] for one in arguments] if case.startswith('help') else [arguments]:\n"
        "        try: main(each)\n"
        "        except SystemExit as done: assert not done.code, each\n"
        "        assert not {'torch', 'torchvision'} & set(sys.modules), each\n"
    )
    environment = os.environ | {"KDPIPE_CACHE": str(tmp_path)}
    command = [sys.executable, "-c", script, json.dumps(LOOKING)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr


def test_module_and_models(kdpipe: Kdpipe) -> None:
    done = subprocess.run([sys.executable, "-m", "kdpipe", "--help"], capture_output=True, text=True, check=True)
    assert "cache-teacher" in done.stdout
    listed = kdpipe("models", "resnet20").out.splitlines()
    assert listed[1].split()[:2] == ["resnet20", "272,474"]


def make_image(path: Path, *, seed: int) -> None:
    from PIL import Image

    levels = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(levels).save(path)


def make_folder(root: Path) -> Path:
    for split in ("train", "test"):
        for number, name in enumerate(("ant", "bee")):
            for index in range(4):
                make_image(root / split / name / f"{index}.png", seed=8 * number + index + (split == "test") * 100)
    return root


def test_views_are_added_to_a_sealed_store(built: Built, kdpipe: Kdpipe, tmp_path: Path) -> None:
    grown = shutil.copytree(built.store, tmp_path / "grown.zarr")
    before = open_store(grown)
    shards = {path: path.read_bytes() for path in (grown / "train" / "codes" / "c").rglob("*") if path.is_file()}
    command = ("cache-teacher", *LIMITS, "--teacher", "resnet8", "--weights", built.weights, "--device", "cpu")
    assert kdpipe(*command, "--views", 5, "--out", grown).code == 0
    assert kdpipe(*command, "--views", 5, "--out", tmp_path / "direct.zarr").code == 0
    after = open_store(grown)
    assert (before.num_views, after.num_views) == (2, 5)
    assert all(path.read_bytes() == content for path, content in shards.items())
    assert after.manifest.planes.items() >= before.manifest.planes.items()
    assert after.digest == open_store(tmp_path / "direct.zarr").digest
    assert kdpipe("verify", grown, "--data", "digits").code == 0
    refused(kdpipe(*command, "--views", 2, "--out", grown), "train views: the store has 5, asked for 2")


@pytest.mark.skipif("KDPIPE_PHOTOS" not in os.environ, reason="KDPIPE_PHOTOS does not name a folder of photographs")
def test_photographs_of_many_sizes(kdpipe: Kdpipe, tmp_path: Path) -> None:
    data = ("--data", f"folder:{os.environ['KDPIPE_PHOTOS']}", "--device", "cpu")
    teacher = ("cache-teacher", *data, "--teacher", "torchvision:resnet18", "--views", 1, "--input-size", 64)
    digests = []
    for loading in ("memory", "stream"):
        store = tmp_path / f"{loading}.zarr"
        assert kdpipe(*teacher, "--loading", loading, "--out", store).code == 0
        digests.append(open_store(store).digest)
    assert digests[0] == digests[1]
    assert kdpipe("verify", tmp_path / "stream.zarr", "--data", data[1]).code == 0
    student = ("train-student", *data, "--student", "resnet8", "--input-size", 32, "--epochs", 1)
    assert kdpipe(*student, "--store", tmp_path / "stream.zarr", "--out", tmp_path / "run").code == 0


def test_a_teacher_that_is_not_finite_is_named_by_sample(
    kdpipe: Kdpipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_teacher.py").write_text(
        "import torch\n"
        "class Broken(torch.nn.Module):\n"
        "    def __init__(self, classes):\n"
        "        super().__init__()\n"
        "        self.classes = torch.nn.Parameter(torch.zeros(classes))\n"
        "    def forward(self, x):\n"
        "        bright = (x.mean((1, 2, 3)) > 3).float()\n"
        "        return self.classes + torch.log(1 - bright)[:, None].abs()\n"
        "def build(classes): return Broken(classes)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    images = make_folder(tmp_path / "images")
    from PIL import Image

    Image.new("RGB", (32, 32), "white").save(images / "train" / "bee" / "2.png")
    outcome = kdpipe(
        *("cache-teacher", "--data", f"folder:{images}", "--teacher", "broken_teacher:build", "--views", 1),
        *("--mean", "0,0,0", "--std", "0.3,0.3,0.3", "--out", tmp_path / "l.zarr"),
    )
    refused(outcome, "train/bee/2.png", "not finite")
    found = json.loads(kdpipe("inspect", tmp_path / "l.zarr", "--json").out)
    assert found["state"] == "building"
    assert not (tmp_path / "l.zarr" / "train" / "codes" / "c" / "0").exists()

"""Compression beside distillation: smaller networks from a trained student, recovered in three ways, and trained anew.

    python benchmarks/compression.py --data folder:PATH/cifar10 --weights PATH/cifar10-resnet20.safetensors

For each seed a student is distilled from the teacher's store, and made smaller: by pruning 30, 50 and 70 % of its
multiply-accumulates, and by factoring layers until half of them are left. Each of the smaller networks is then

    none      tested as it is
    labels    trained on with the labels alone
    cache     trained on against the same store
    anew      trained from random weights against the same store, for the epochs of parent and recovery together

Every step is a command of the command line, in this process. Accuracies are of the test images, after the last epoch.
What is finished is kept in --work and not repeated. Writes benchmarks/results/compression.json after each seed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from blake3 import blake3
from commands import in_process
from finished import spread
from timing import machine

from kdpipe import durable, models
from kdpipe.stages.provenance import git_revision, versions

RESULT = Path(__file__).parent / "results" / "compression.json"
SHAPES: Mapping[str, tuple[object, ...]] = {
    "prune 30 %": ("--prune", 0.3),
    "prune 50 %": ("--prune", 0.5),
    "prune 70 %": ("--prune", 0.7),
    "low-rank 50 %": ("--low-rank", 0.5),
}
WAYS = ("none", "labels", "cache", "anew")


class Study:
    """Makes the store and the runs that are not there yet."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        """Keep the store and the runs below ``folder``."""
        self._options, self._folder = options, folder
        self._store = folder / "teacher.zarr"

    def store(self) -> None:
        """Cache the teacher."""
        if not self._store.exists():
            options = self._options
            in_process(
                *("cache-teacher", *self._data(), "--recipe", options.recipe, "--views", options.views),
                *("--teacher", options.teacher, "--weights", options.weights, "--out", self._store),
            )

    def parent(self, seed: int) -> Path:
        """Train the student that is made smaller."""
        options = self._options
        flags = ("--student", options.student, "--epochs", options.epochs, "--lr", options.lr, *self._taught())
        return self._run("train-student", f"parent-{seed}", seed, *flags)

    def smaller(self, parent: Path, shape: str, way: str, seed: int) -> Path:
        """Make a smaller network, and recover it in one of the ways."""
        options, name = self._options, f"{shape.replace(' %', '').replace(' ', '-')}-{way}-{seed}"
        if way == "anew":
            model = _read(self.smaller(parent, shape, "none", seed) / "run.json")["model"]
            epochs = options.epochs + options.recover_epochs
            flags = ("--student", model, "--epochs", epochs, "--lr", options.lr, *self._taught())
            return self._run("train-student", name, seed, *flags)
        how: tuple[object, ...] = ("--recover-epochs", 0 if way == "none" else options.recover_epochs)
        how += ("--lr", options.recover_lr)
        how += ("--store", self._store) if way == "cache" else ("--recipe", options.recipe)
        return self._run("compress", name, seed, "--run", parent, *SHAPES[shape], *how)

    def _run(self, command: str, name: str, seed: int, *flags: object) -> Path:
        out = self._folder / name
        if not (out / "metrics.json").exists():
            in_process(
                *(command, *self._data(), *flags, "--batch-size", self._options.batch_size, "--out", out),
                *("--seed", seed, "--data-seed", seed, "--checkpoint-every", 1e9),
                *(("--overwrite",) if (out / "run.json").exists() else ()),
            )
        return out

    def _taught(self) -> tuple[object, ...]:
        return ("--store", self._store, "--input-size", self._options.input_size)

    def _data(self) -> tuple[object, ...]:
        options = self._options
        limits = ("--limit-train", options.samples, "--limit-test", options.test_samples)
        return ("--data", options.data, *limits, "--device", "cpu")


def main() -> None:
    """Train what is not trained yet, and write the figures after each seed."""
    options = _options()
    torch.set_num_threads(1)
    settings = _settings(options)
    folder = options.work / blake3(json.dumps(settings, sort_keys=True).encode()).hexdigest(length=4)
    folder.mkdir(parents=True, exist_ok=True)
    study, found = Study(options, folder), {}
    study.store()
    for seed in options.seeds:
        parent = study.parent(seed)
        found[seed] = {"parent": _figures(parent)} | {
            shape: {way: _figures(study.smaller(parent, shape, way, seed)) for way in WAYS} for shape in SHAPES
        }
        durable.write_json(options.result, _result(found, options))
    print(json.dumps(_result(found, options)["shapes"], indent=1))


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def _figures(run: Path) -> dict[str, Any]:
    """Return the accuracy of a run, the cost of its network, and the duration of its training."""
    record, metrics = _read(run / "run.json"), _read(run / "metrics.json")
    module = models.create(record["model"], len(record["classes"]))
    return {
        "top1": metrics["test"]["top1"],
        "seconds": metrics["seconds"],
        "macs": models.macs(module, record["preset"]["size"]),
        "parameters": record["num_parameters"],
    }


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    names = (
        *("teacher", "student", "samples", "test_samples", "input_size", "recipe", "views", "batch_size"),
        *("epochs", "lr", "recover_epochs", "recover_lr"),
    )
    return {
        **{name: getattr(options, name) for name in names},
        "weights": options.weights.name,
        "data": options.data.rsplit("/", 1)[-1],
        "torch": torch.__version__,
    }


def _result(found: Mapping[int, dict[str, Any]], options: argparse.Namespace) -> dict[str, Any]:
    parents = [found[seed]["parent"] for seed in found]
    shapes = {}
    for shape in SHAPES:
        of_each = [found[seed][shape] for seed in found]
        shapes[shape] = {
            "macs": spread([each["none"]["macs"] / parents[0]["macs"] for each in of_each]),
            "parameters": spread([each["none"]["parameters"] / parents[0]["parameters"] for each in of_each]),
            **{way: spread([each[way]["top1"] for each in of_each]) for way in WAYS},
            "cache_minus_labels": spread([each["cache"]["top1"] - each["labels"]["top1"] for each in of_each]),
            "cache_minus_anew": spread([each["cache"]["top1"] - each["anew"]["top1"] for each in of_each]),
            "cache_minus_parent": spread(
                [each["cache"]["top1"] - parent["top1"] for each, parent in zip(of_each, parents, strict=True)]
            ),
        }
    return {
        "command": (
            f"python benchmarks/compression.py --data folder:CIFAR10 --weights {options.weights.name} "
            f"--samples {options.samples} --epochs {options.epochs} --recover-epochs {options.recover_epochs}"
        ),
        "settings": _settings(options),
        "machine": machine(),
        "versions": versions(),
        "git_revision": git_revision(),
        "seeds": list(found),
        "parent": {
            "top1": spread([parent["top1"] for parent in parents]),
            "macs": parents[0]["macs"],
            "parameters": parents[0]["parameters"],
        },
        "shapes": shapes,
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", required=True, help="CIFAR-10 as kdpipe takes it")
    parser.add_argument("--weights", type=Path, required=True, help="the teacher's")
    parser.add_argument("--teacher", default="resnet20")
    parser.add_argument("--student", default="resnet8")
    parser.add_argument("--samples", type=int, default=1_500, help="size of the class-balanced training subset")
    parser.add_argument("--test-samples", type=int, default=2_000)
    parser.add_argument("--input-size", type=int, default=16, help="of the students, in pixels")
    parser.add_argument("--recipe", default="crop-flip")
    parser.add_argument("--views", type=int, default=6, help="cached views")
    parser.add_argument("--batch-size", type=int, default=50)
    parser.add_argument("--epochs", type=int, default=10, help="of the parent")
    parser.add_argument("--lr", type=float, default=0.05, help="of the parent, and of trainings from random weights")
    parser.add_argument("--recover-epochs", type=int, default=3)
    parser.add_argument("--recover-lr", type=float, default=0.02)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--work", type=Path, default=Path("benchmarks/scratch/compression"), help="store and runs")
    parser.add_argument("--result", type=Path, default=RESULT)
    return parser.parse_args()


if __name__ == "__main__":
    main()

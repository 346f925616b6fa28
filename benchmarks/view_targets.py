"""Accuracy of students whose soft targets are means over the cached views of a sample, on CIFAR-10.

    python benchmarks/view_targets.py --data folder:PATH/cifar10 --weights PATH/cifar10-resnet20.safetensors

The teacher's views of a class-balanced subset are cached once per recipe. Every arm is a store of logits made of these,
imported with the same recipe and seed, so that students of equal seed start from equal weights and see equal pixels in
equal order: only the soft targets differ. All arms train with ``kd`` at T = 4. Finished runs in ``--work`` are kept.
Writes benchmarks/results/view_targets.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from commands import kdpipe

from kdpipe import dataset, open_store
from kdpipe.stages.provenance import git_revision, versions

Logits = npt.NDArray[np.float64]
TEMPERATURE = 4.0
RECIPES = ("crop-flip", "rrc-flip:0.5")
RESULT = Path(__file__).parent / "results" / "view_targets.json"


def log_mean_probabilities(logits: Logits, temperature: float) -> Logits:
    """Return ``T`` times the log of the mean over views ``(views, n, classes)`` of the probabilities at ``T``."""
    scaled = logits / temperature
    scaled = scaled - scaled.max(axis=2, keepdims=True)
    probabilities = np.exp(scaled) / np.exp(scaled).sum(axis=2, keepdims=True)
    found: Logits = temperature * np.log(probabilities.mean(axis=0))
    return found


ARMS: dict[str, Callable[[Logits], Logits]] = {
    "view": lambda logits: logits,
    "mean of logits": lambda logits: np.broadcast_to(logits.mean(axis=0), logits.shape),
    "mean of probabilities at T = 1": lambda logits: np.broadcast_to(log_mean_probabilities(logits, 1), logits.shape),
    "mean of probabilities at T = 4": lambda logits: np.broadcast_to(
        log_mean_probabilities(logits, TEMPERATURE), logits.shape
    ),
    "half view, half mean of logits": lambda logits: (logits + logits.mean(axis=0)) / 2,
    "plain view": lambda logits: np.broadcast_to(logits[0], logits.shape),
}
"""The logits of every view that an arm learns from, made of those of all views, ``(1 + views, n, classes)``."""


def main() -> None:
    """Cache, train, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="CIFAR-10 as kdpipe takes it")
    parser.add_argument("--teacher", default="resnet20")
    parser.add_argument("--weights", required=True)
    parser.add_argument("--student", default="resnet8")
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--views", type=int, default=4)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--work", type=Path, default=Path("benchmarks/scratch/view_targets"))
    parser.add_argument("--result", type=Path, default=RESULT)
    options = parser.parse_args()
    kept = ("teacher", "student", "samples", "epochs", "views", "seeds")
    result: dict[str, Any] = {
        "command": "python benchmarks/view_targets.py --data folder:CIFAR10 --weights cifar10-resnet20.safetensors",
        "settings": {name: getattr(options, name) for name in kept} | {"loss": "kd", "temperature": TEMPERATURE},
        "recipes": {},
        "versions": versions(),
        "git_revision": git_revision(),
    }
    for recipe in RECIPES:
        result["recipes"][recipe] = measured(recipe, options)
        options.result.write_text(json.dumps(result, indent=1) + "\n")


def measured(recipe: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of every arm for one recipe."""
    work = options.work / recipe.replace(":", "-")
    cached = work / "cached.zarr"
    kdpipe(
        *("cache-teacher", "--data", options.data, "--teacher", options.teacher, "--weights", options.weights),
        *("--limit-train", options.samples, "--views", options.views, "--recipe", recipe, "--encoding", "fp32"),
        *("--out", cached),
    )
    logits, test = (planes(options, cached, split) for split in ("train", "test"))
    arms: dict[str, Any] = {}
    for name, make in ARMS.items():
        top1 = trained(name, make(logits), test[0], recipe=recipe, work=work, options=options)
        pairs = zip(top1, arms["view"]["top1"] if arms else top1, strict=True)
        arms[name] = {
            "top1": top1,
            "mean_top1": statistics.mean(top1),
            "deviation": statistics.stdev(top1),
            "minus_view": [own - its for own, its in pairs],
        }
        print(f"{recipe}, {name}: {arms[name]['mean_top1']:.2%} (deviation {arms[name]['deviation']:.2%})", flush=True)
    return arms


def planes(options: argparse.Namespace, path: Path, split: str) -> Logits:
    """Return a store's logits in the order of the dataset, float64 ``(1 + views, n, classes)``."""
    samples = dataset.load(options.data, split, options.samples if split == "train" else None)
    store = open_store(path, split=split)
    rows = dataset.find_ids(samples.sample_ids, store.sample_ids)
    return np.stack([store.logits(rows, view).astype(np.float64) for view in range(store.num_views + 1)])


def trained(
    name: str, logits: Logits, test: Logits, *, recipe: str, work: Path, options: argparse.Namespace
) -> list[float]:
    """Import an arm's logits, train a student for each seed, and return their test accuracies."""
    folder = work / name.replace(" ", "-").replace("=", "").replace(",", "")
    runs = [folder / "runs" / f"seed-{seed}" for seed in options.seeds.split(",")]
    if not all((run / "metrics.json").exists() for run in runs):
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / "train.npy", logits.astype(np.float32))
        np.save(folder / "test.npy", test.astype(np.float32))
        kdpipe(
            *("import-logits", "--data", options.data, "--limit-train", options.samples, "--encoding", "fp32"),
            *("--logits", folder / "train.npy", "--test-logits", folder / "test.npy", "--teacher-name", name),
            *("--input-size", 32, "--recipe", recipe, "--views", options.views, "--out", folder / "logits.zarr"),
        )
        kdpipe(
            *("train-student", "--overwrite", "--data", options.data, "--limit-train", options.samples),
            *("--store", folder / "logits.zarr", "--student", options.student, "--loss", "kd"),
            *("--epochs", options.epochs, "--temperature", TEMPERATURE, "--seeds", options.seeds),
            *("--out", folder / "runs"),
        )
    return [json.loads((run / "metrics.json").read_text())["test"]["top1"] for run in runs]


if __name__ == "__main__":
    main()

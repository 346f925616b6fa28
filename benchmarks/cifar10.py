"""CIFAR-10, three ways: resnet8 with a cached teacher, with the same teacher live, and with none.

    python benchmarks/cifar10.py --data folder:PATH/cifar10 --weights PATH/cifar10-resnet20.safetensors

The teacher's 4 views of all training images are cached once. Accuracies come from full runs with the same
seeds, after the last epoch. Seconds per epoch come from epochs on a subset that alternate between the three
ways in one process, as medians, because long runs on a shared machine say more about the machine's other
guests. Writes benchmarks/results/cifar10.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from commands import describe, kdpipe

from kdpipe.stages.provenance import git_revision, versions

WAYS = ("cache", "live", "none")
RESULT = Path(__file__).parent / "results" / "cifar10.json"


def main() -> None:
    """Cache, train three ways, time three ways, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="CIFAR-10 as kdpipe takes it")
    parser.add_argument("--teacher", default="resnet20")
    parser.add_argument("--weights", required=True)
    parser.add_argument("--student", default="resnet8")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--views", type=int, default=4)
    parser.add_argument("--timing-samples", type=int, default=10_000)
    parser.add_argument("--timing-rounds", type=int, default=5)
    parser.add_argument("--work", type=Path, default=Path("benchmarks/scratch/cifar10"), help="where store and runs go")
    parser.add_argument("--only", choices=("accuracy", "timing"), help="refresh one part of the result")
    options = parser.parse_args()

    result = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    result["command"] = "python benchmarks/cifar10.py --data folder:CIFAR10 --weights cifar10-resnet20.safetensors"
    cache(options)
    if options.only != "timing":
        result["accuracy"] = accuracies(options)
    if options.only != "accuracy":
        result["timing"] = timings(options)
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


def cache(options: argparse.Namespace) -> None:
    """Cache the teacher, or find it cached."""
    kdpipe(
        *("cache-teacher", "--data", options.data, "--teacher", options.teacher, "--weights", options.weights),
        *("--views", options.views, "--min-top1", 0.8, "--out", options.work / "logits.zarr"),
    )


def train(options: argparse.Namespace, way: str, out: Path, *extra: object) -> None:
    """Train the student one way; the recipe, its seed and the views are the store's in all three."""
    live = ("--teacher", options.teacher, "--weights", options.weights) if way == "live" else ()
    kdpipe(
        *("train-student", "--overwrite", "--data", options.data, "--student", options.student, "--out", out),
        *("--store", options.work / "logits.zarr", "--distill", way, "--views", options.views, *live, *extra),
    )


def accuracies(options: argparse.Namespace) -> dict[str, Any]:
    """Train on everything, each way once, and return the test accuracy after the last epoch."""
    found: dict[str, Any] = {"epochs": options.epochs, "student": options.student, "teacher": options.teacher}
    store = describe(options.work / "logits.zarr")
    found["store"] = {key: store[key] for key in ("samples", "views", "bytes", "bytes_per_sample")}
    found["store"] |= {key: store["about"][key] for key in ("seconds", "teacher_test_top1")}
    for way in WAYS:
        out = options.work / way
        train(options, way, out, "--epochs", options.epochs)
        found[way] = json.loads((out / "metrics.json").read_text())["test"]
    return found | {"versions": versions(), "git_revision": git_revision()}


def timings(options: argparse.Namespace) -> dict[str, Any]:
    """Alternate one epoch of each way and return median seconds per epoch and their ratios."""
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(options.timing_rounds):
        for way in WAYS:
            out = options.work / f"timing-{way}"
            train(options, way, out, "--epochs", 2, "--limit-train", options.timing_samples, "--limit-test", 100)
            history = (out / "history.csv").read_text().splitlines()
            column = history[0].split(",").index("seconds")
            seconds[way].append(float(history[-1].split(",")[column]))
    median = {way: statistics.median(values) for way, values in seconds.items()}
    return {
        "samples": options.timing_samples,
        "seconds": seconds,
        "median_seconds_per_epoch": median,
        "median_seconds_per_epoch_of_50000": {way: 50_000 / options.timing_samples * median[way] for way in WAYS},
        "live_over_cache": median["live"] / median["cache"],
        "cache_over_none": median["cache"] / median["none"],
        "versions": versions(),
    }


if __name__ == "__main__":
    main()

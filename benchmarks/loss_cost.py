"""Cost of each distillation loss: the seconds of an epoch with it, against one without any.

    python benchmarks/loss_cost.py --data folder:PATH/cifar10 --weights PATH/cifar10-resnet20.safetensors

The same student trains from the same store in interleaved rounds of ``train-student``, with the settings of losses.py;
each time is that of one epoch, without start-up and test. The machine should have nothing else to do. The store has
the signals that the losses on layers read; it is kept in --work. Writes benchmarks/results/loss_cost.json.
"""

from __future__ import annotations

import argparse
import csv
import functools
import shutil
from pathlib import Path
from typing import Any

import torch
from commands import describe, in_process
from losses import SIGNALS, arms
from published_losses import ARMS
from timing import interleaved, machine, ratio

from kdpipe import durable
from kdpipe.stages import console
from kdpipe.stages.provenance import git_revision, versions

RESULT = Path(__file__).parent / "results" / "loss_cost.json"
NONE: dict[str, Any] = {"distill": "none"}


def main() -> None:
    """Measure an epoch of each loss in interleaved rounds and write the figures."""
    options = _options()
    torch.set_num_threads(options.threads)
    store = options.store or cached(options)
    console.quiet()  # each command has the same messages
    every = {"none": NONE} | {
        arm: {"store": store, **own} for arm, own in arms(options.student, "cached", 1, left_out=()).items()
    }
    chosen = {arm: own for arm, own in every.items() if options.losses is None or arm in ("none", *options.losses)}
    seconds("none", NONE, options)  # the first command reads all images
    taken = interleaved(
        {arm: functools.partial(seconds, arm, own, options) for arm, own in chosen.items()}, rounds=options.rounds
    )
    over_none = {arm: ratio(found, taken["none"]) for arm, found in taken.items() if arm != "none"}
    result = {
        "command": (
            "python benchmarks/loss_cost.py --data folder:CIFAR10 "
            + (f"--weights {Path(options.weights).name}" if options.store is None else f"--store {store.name}")
            + f" --samples {options.samples} --rounds {options.rounds}"
        ),
        "machine": machine(),
        "versions": versions(),
        "git_revision": git_revision(),
        "student": options.student,
        "encoding": describe(store)["encoding"],
        "samples": options.samples,
        "batch_size": options.batch_size,
        "settings": {arm: {key: value for key, value in own.items() if key != "store"} for arm, own in chosen.items()},
        "seconds_per_epoch": taken,
        "over_none": over_none,
    }
    durable.write_json(options.result, result)
    for arm, found in over_none.items():
        low, high = found["interval_95"] or (None, None)
        print(f"{arm}: {found['median']:.3f} times an epoch without [{low}, {high}]")


def cached(options: argparse.Namespace) -> Path:
    """Cache the teacher with one augmented view and the signals of all losses, unless that is there."""
    store: Path = options.work / "logits.zarr"
    in_process(
        *("cache-teacher", *_data(options), "--teacher", options.teacher, "--weights", options.weights),
        *("--recipe", options.recipe, "--views", 1, "--out", store, "--signals", SIGNALS),
    )
    return store


def seconds(arm: str, own: dict[str, Any], options: argparse.Namespace) -> float:
    """Train a student for an epoch; return the seconds that the epoch took."""
    out = options.work / "runs" / arm
    shutil.rmtree(out, ignore_errors=True)
    flags = [(f"--{key.replace('_', '-')}", value) for key, value in own.items()]
    in_process(
        *("train-student", *_data(options), "--student", options.student, *(word for flag in flags for word in flag)),
        *("--recipe", options.recipe, "--views", 1, "--epochs", 1, "--batch-size", options.batch_size, "--lr", 0.01),
        *("--no-dvclive", "--out", out),
    )
    with (out / "history.csv").open(encoding="utf-8", newline="") as stream:
        (epoch,) = csv.DictReader(stream)
    return float(epoch["seconds"])


def _data(options: argparse.Namespace) -> tuple[object, ...]:
    return (
        *("--data", options.data, "--limit-train", options.samples, "--limit-test", options.test_samples),
        *("--device", options.device),
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", required=True, help="CIFAR-10 as kdpipe takes it")
    parser.add_argument("--weights", help="the teacher's")
    parser.add_argument("--teacher", default="resnet20")
    parser.add_argument("--store", type=Path, help="a store with these signals, instead of one that is made")
    parser.add_argument("--student", default="resnet8")
    parser.add_argument("--losses", nargs="+", choices=ARMS, help="measure these only")
    parser.add_argument("--samples", type=int, default=1_024, help="size of the class-balanced training subset")
    parser.add_argument("--test-samples", type=int, default=20, help="each command tests its student once")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--recipe", default="rrc-flip:0.5")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--work", type=Path, default=Path("benchmarks/scratch/loss_cost"), help="store and runs")
    parser.add_argument("--result", type=Path, default=RESULT)
    options = parser.parse_args()
    if options.store is None and options.weights is None:
        parser.error("give --weights, or a --store")
    return options


if __name__ == "__main__":
    main()

"""Ants and bees without labels: a teacher of ImageNet's 1,000 classes, two of which are the student's.

    python benchmarks/ants_and_bees.py --data folder:PHOTOS --teacher lite_teacher:lite0 --weights lite0.pth \
        --mean 0.498,0.498,0.498 --std 0.502,0.502,0.502 --ant ants --bee bees

The teacher's outputs 310, ant, and 309, bee, become the logits of the two classes. Students of equal steps and views
learn in three ways, for each seed:

    labels    from the labels alone
    teacher   from the teacher alone: no label is used
    both      from the teacher and the labels

Every command is one of the command line's. Accuracies are of the whole test split after the last epoch, nothing is
chosen by them; the teacher's own is of all photographs. Finished runs are kept in --work and not repeated. Writes
benchmarks/results/ants_and_bees.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
from commands import describe, kdpipe
from timing import machine

from kdpipe import durable
from kdpipe.stages.provenance import git_revision, versions
from kdpipe.store.reader import open_store

RESULT = Path(__file__).parent / "results" / "ants_and_bees.json"
OUTPUTS = {"ant": 310, "bee": 309}
ARMS: dict[str, tuple[object, ...]] = {
    "labels": ("--distill", "none"),
    "teacher": ("--loss", "kd", "--kd-weight", 1, "--ce-weight", 0),
    "both": ("--loss", "kd"),
}


def main() -> None:
    """Make the store, train all students, and write the figures."""
    options = _options()
    options.work.mkdir(parents=True, exist_ok=True)
    store, classes = options.work / "logits.zarr", options.work / "classes.csv"
    classes.write_text(f"class,teacher_class\n{options.ant},{OUTPUTS['ant']}\n{options.bee},{OUTPUTS['bee']}\n")
    kdpipe(
        *("cache-teacher", "--data", options.data, "--teacher", options.teacher, "--weights", options.weights),
        *("--mean", options.mean, "--std", options.std, "--input-size", options.teacher_size, "--batch-size", 8),
        *("--class-map", classes, "--recipe", "rrc", "--views", options.views, "--encoding", "fp16"),
        *("--device", "cpu", "--out", store),
    )
    top1: dict[str, list[float]] = {}
    for arm, flags in ARMS.items():
        top1[arm] = []
        for seed in options.seeds:
            run = options.work / f"{options.student}-{options.size}-{options.epochs}-{options.lr}" / f"{arm}-{seed}"
            if not (run / "metrics.json").exists():
                kdpipe(
                    *("train-student", "--data", options.data, "--store", store, "--student", options.student, *flags),
                    *("--input-size", options.size, "--epochs", options.epochs, "--batch-size", 8, "--lr", options.lr),
                    *("--views", options.views, "--seed", seed, "--data-seed", seed, "--device", "cpu"),
                    *("--out", run, *(("--resume",) if (run / "run.json").exists() else ())),
                )
            top1[arm].append(json.loads((run / "metrics.json").read_text())["test"]["top1"])
            print(f"{arm}, seed {seed}: {top1[arm][-1]:.1%}", flush=True)
            durable.write_json(options.result, _result(options, store, top1))


def _result(options: argparse.Namespace, store: Path, top1: dict[str, list[float]]) -> dict[str, Any]:
    samples = {split: each["samples"] for split, each in describe(store)["splits"].items()}
    return {
        "command": "python benchmarks/ants_and_bees.py --data folder:PHOTOS --teacher lite_teacher:lite0 --weights "
        "lite0.pth --mean 0.498,0.498,0.498 --std 0.502,0.502,0.502 --ant ants --bee bees",
        "student": options.student,
        "size": options.size,
        "epochs": options.epochs,
        "views": options.views,
        "learning_rate": options.lr,
        "batch_size": 8,
        "seeds": options.seeds,
        "samples": samples,
        "teacher": {split: _right(store, split) for split in samples},
        "top1": {arm: {"each": each, "mean": fmean(each), "deviation": _deviation(each)} for arm, each in top1.items()},
        "machine": machine(),
        "versions": versions(),
        "git_revision": git_revision(),
    }


def _right(store: Path, split: str) -> dict[str, int]:
    """Count the plain photographs whose class has the larger logit of the two."""
    opened = open_store(store, split)
    logits = opened.logits(np.arange(opened.num_samples))
    return {"right": int((logits.argmax(axis=1) == opened.labels).sum()), "of": opened.num_samples}


def _deviation(values: list[float]) -> float | None:
    return stdev(values) if len(values) > 1 else None


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", required=True, help="photographs of two classes, in train and test")
    parser.add_argument("--teacher", required=True, help="a network of ImageNet's classes in their usual order")
    parser.add_argument("--weights", required=True)
    parser.add_argument("--mean", required=True)
    parser.add_argument("--std", required=True)
    parser.add_argument("--ant", default="ants", help="name of the class of ants in the data")
    parser.add_argument("--bee", default="bees", help="name of the class of bees")
    parser.add_argument("--teacher-size", type=int, default=224)
    parser.add_argument("--student", default="resnet8")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--views", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--lr", default="0.02")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--work", type=Path, default=Path("ants-and-bees"))
    parser.add_argument("--result", type=Path, default=RESULT)
    return parser.parse_args()


if __name__ == "__main__":
    main()

"""Gain by an auxiliary task: the same student with and without --aux rotation, of labels alone and of a teacher.

    python benchmarks/auxiliary.py --data folder:PATH/cifar10 --weights PATH/cifar10-resnet20.safetensors

The teacher's views are cached once, and all students go through the same ones in the same order. Every step is a
command of the command line with its defaults. Accuracies are of the whole test split, after the last epoch. What is
finished is kept in --work and not repeated, so once the store is there several processes may each train some of the
--seeds. Writes benchmarks/results/auxiliary.json after each run.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from commands import kdpipe
from finished import Finished, Run, paired, spread
from timing import machine

from kdpipe import durable
from kdpipe.stages.provenance import git_revision, versions
from kdpipe.training.runs import RunDirectory

ARMS = {
    "none": ("--distill", "none"),
    "none+rotation": ("--distill", "none", "--aux", "rotation"),
    "kd": (),
    "kd+rotation": ("--aux", "rotation"),
}
RESULT = Path(__file__).parent / "results" / "auxiliary.json"


def main() -> None:
    """Train what is not trained yet, and write the figures after each run."""
    options = _options()
    store = options.work / "logits.zarr"
    kdpipe(
        *("cache-teacher", *_common(options), "--teacher", options.teacher, "--weights", options.weights),
        *("--recipe", options.recipe, "--views", options.views, "--out", store),
    )
    done = Finished(options.work / "runs.jsonl", _settings(options))
    for seed in options.seeds:
        for arm in ARMS:
            if not done.has(arm, seed):
                run = _run(arm, seed, store, options)
                done.add(run)
                durable.write_json(options.result, _result(done.read(), options))
                print(f"seed {seed}, {arm}: top-1 {run['top1']:.2%}, {run['seconds']:.0f} s", flush=True)
    durable.write_json(options.result, _result(done.read(), options))


def _run(arm: str, seed: int, store: Path, options: argparse.Namespace) -> Run:
    """Train and test one student."""
    out = options.work / f"{arm}-{seed}"
    if not (out / "metrics.json").exists():
        kdpipe(
            *("train-student", *_common(options), "--store", store, "--views", options.views, *ARMS[arm]),
            *("--student", options.student, "--epochs", options.epochs, "--lr", options.lr),
            *("--seed", seed, "--data-seed", seed, "--checkpoint-every", 1e9, "--out", out),
            *(("--resume",) if (out / "run.json").exists() else ()),
        )
    metrics = json.loads((out / "metrics.json").read_text())
    turns = RunDirectory(out).history()[-1].get("rotation_top1")
    found = {"top1": metrics["test"]["top1"], "rotation_top1": turns}
    return {"arm": arm, "seed": seed, **found, "seconds": metrics["seconds"]}


def _common(options: argparse.Namespace) -> tuple[object, ...]:
    limits = () if options.limit_test is None else ("--limit-test", options.limit_test)
    return ("--data", options.data, "--limit-train", options.samples, *limits, "--device", options.device)


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    names = ("teacher", "student", "samples", "limit_test", "epochs", "views", "recipe", "lr", "device")
    return {**{name: getattr(options, name) for name in names}, "torch": torch.__version__}


def _result(runs: list[Run], options: argparse.Namespace) -> dict[str, Any]:
    found = {arm: {run["seed"]: run for run in runs if run["arm"] == arm} for arm in ARMS}
    return {
        "command": f"python benchmarks/auxiliary.py --data folder:CIFAR10 --weights {options.weights.name}",
        "settings": _settings(options),
        "machine": machine(),
        "versions": versions(),
        "git_revision": git_revision(),
        "arms": {
            arm: {
                "seeds": sorted(by_seed),
                "top1": spread([by_seed[seed]["top1"] for seed in sorted(by_seed)]),
                **({"top1_minus_without": paired(by_seed, found[base])} if base != arm else {}),
                "rotation_top1_of_the_last_epoch": [by_seed[seed]["rotation_top1"] for seed in sorted(by_seed)],
                "seconds": [round(by_seed[seed]["seconds"], 1) for seed in sorted(by_seed)],
            }
            for arm, by_seed in found.items()
            if by_seed and (base := arm.removesuffix("+rotation"))
        },
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", required=True, help="CIFAR-10 as kdpipe takes it")
    parser.add_argument("--weights", type=Path, required=True, help="the teacher's")
    parser.add_argument("--teacher", default="resnet20")
    parser.add_argument("--student", default="resnet8")
    parser.add_argument("--samples", type=int, default=5_000, help="size of the class-balanced training subset")
    parser.add_argument("--limit-test", type=int)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--views", type=int, default=16)
    parser.add_argument("--recipe", default="rrc-flip:0.5")
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--work", type=Path, default=Path("benchmarks/scratch/auxiliary"), help="store and runs")
    parser.add_argument("--result", type=Path, default=RESULT)
    return parser.parse_args()


if __name__ == "__main__":
    main()

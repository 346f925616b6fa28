"""Robust distillation: what a student learns of withstanding attacks, from labels, and from teachers that do or do not.

    python benchmarks/robust.py --data PATH/cifar10 --weights PATH/cifar10-resnet20.safetensors

A robust teacher is trained on attacked images of a class-balanced training subset; its answers on clean ones are cached
once, and so are those of the given teacher, which was trained on clean images alone. Students of the same subset:

    none           labels, clean images
    adversarial    labels, attacked images
    kd             the robust teacher, clean images
    ard            the robust teacher, ard with its published temperature and weights
    rslad          the robust teacher, rslad with its published temperature and weights
    rslad given    the given teacher, as rslad

Every command is one of the command line's. Accuracies are those after the last epoch, clean on the test split and under
attack on a class-balanced part of it. Finished runs are kept in --work and not repeated. Writes
benchmarks/results/robust.json after each run.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from commands import describe, kdpipe
from finished import Finished, Run, spread
from timing import machine

from kdpipe import durable
from kdpipe.stages.provenance import git_revision, versions

PUBLISHED = {"ard": ("--temperature", 30), "rslad": ("--temperature", 1)}
"""Of either paper, beside a weight of 1 for distillation and 0 for cross-entropy."""
ARMS = ("none", "adversarial", "kd", "ard", "rslad", "rslad given")
RESULT = Path(__file__).parent / "results" / "robust.json"


def main() -> None:
    """Train what is not trained yet, and write the figures after each run."""
    options = _options()
    done = Finished(options.work / "runs.jsonl", _settings(options))
    for seed in options.seeds:
        for arm in options.arms:
            if done.has(arm, seed):
                continue
            run = {"arm": arm, "seed": seed, **_run(arm, seed, options)}
            done.add(run)
            durable.write_json(options.result, _result(done.read(), options))
            shown = f"top-1 {run['top1']:.2%}, under attack {run['adversarial_top1']:.2%}"
            print(f"seed {seed}, {arm}: {shown}, {run['seconds']:.0f} s", flush=True)
    durable.write_json(options.result, _result(done.read(), options))


def _run(arm: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Train one student, and what it needs to, and attack it."""
    out = options.work / "runs" / f"{arm.replace(' ', '-')}-{seed}"
    if not (out / "metrics.json").exists():
        kdpipe(
            *("train-student", "--overwrite", *_data(options), "--student", options.student, *_learning(arm, options)),
            *("--recipe", options.recipe, "--epochs", options.epochs, "--batch-size", options.batch_size),
            *("--lr", options.lr, "--seed", seed, "--data-seed", seed, "--checkpoint-every", 1e9, "--out", out),
        )
    return {**_measured(out, options), "seconds": json.loads((out / "metrics.json").read_text())["seconds"]}


def _learning(arm: str, options: argparse.Namespace) -> tuple[object, ...]:
    """Return the flags that make an arm what it is."""
    attacked = ("--adversarial", options.attack)
    if arm in ("none", "adversarial"):
        return attacked if arm == "adversarial" else ()
    store = ("--store", _given_store(options) if arm == "rslad given" else _robust_store(options))
    if arm == "kd":
        return store
    loss = arm.split()[0]
    return (*store, *attacked, "--robust-loss", loss, *PUBLISHED[loss], "--kd-weight", 1, "--ce-weight", 0)


def _robust_store(options: argparse.Namespace) -> Path:
    """Return the store of the robust teacher, both made where they are missing."""
    teacher = _teacher(options)
    if not (teacher / "metrics.json").exists():
        kdpipe(
            *(
                "train-teacher",
                "--overwrite",
                *_data(options),
                "--model",
                options.robust_teacher,
                "--adversarial",
                options.attack,
            ),
            *("--recipe", options.recipe, "--epochs", options.teacher_epochs, "--batch-size", options.batch_size),
            *("--lr", options.lr, "--checkpoint-every", 1e9, "--out", teacher),
        )
    return _store("robust", ("--teacher", f"run:{teacher}"), options)


def _given_store(options: argparse.Namespace) -> Path:
    return _store("given", ("--teacher", options.teacher, "--weights", options.weights), options)


def _store(name: str, teacher: tuple[object, ...], options: argparse.Namespace) -> Path:
    path = Path(options.work / f"{name}.zarr")
    views = ("--views", options.views, "--recipe", options.recipe)
    kdpipe("cache-teacher", *_data(options), *teacher, *views, "--out", path)
    return path


def _teacher(options: argparse.Namespace) -> Path:
    return Path(options.work / "runs" / "teacher")


def _measured(run: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Return the accuracies of a finished run, clean and under attack."""
    out = options.work / "reports" / run.name
    kdpipe(
        *("benchmark", *_data(options), "--run", run, "--out", out, "--rounds", 5, "--no-cold-starts"),
        *("--adversarial", options.measure, "--adversarial-samples", options.attacked),
    )
    found = json.loads((out / "metrics.json").read_text())["students"][run.name]
    return {key: found[key] for key in ("top1", "adversarial_top1")}


def _data(options: argparse.Namespace) -> tuple[object, ...]:
    limit = () if options.limit_test is None else ("--limit-test", options.limit_test)
    return (
        *("--data", f"folder:{options.data.absolute()}", "--limit-train", options.samples, *limit),
        *("--device", options.device),
    )


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    names = (
        *("teacher", "robust_teacher", "student", "samples", "limit_test", "attacked", "attack", "measure", "views"),
        *("recipe", "epochs", "teacher_epochs", "batch_size", "lr", "device"),
    )
    return {**{name: getattr(options, name) for name in names}, "torch": torch.__version__}


def _result(runs: list[Run], options: argparse.Namespace) -> dict[str, Any]:
    by_arm: dict[str, dict[int, Run]] = {}
    for run in sorted(runs, key=lambda run: run["seed"]):
        by_arm.setdefault(run["arm"], {})[run["seed"]] = run
    return {
        "command": f"python benchmarks/robust.py --data cifar10 --weights {Path(options.weights).name}",
        "settings": _settings(options),
        "machine": machine(),
        "versions": versions(),
        "git_revision": git_revision(),
        "teachers_test_top1": {
            path.stem: describe(path)["about"]["teacher_test_top1"] for path in sorted(options.work.glob("*.zarr"))
        },
        "arms": {
            arm: {
                "seeds": list(found),
                **{name: spread([run[name] for run in found.values()]) for name in ("top1", "adversarial_top1")},
                "seconds": [round(run["seconds"], 1) for run in found.values()],
            }
            for arm in ARMS
            if (found := by_arm.get(arm))
        },
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="CIFAR-10 as an image folder")
    parser.add_argument("--weights", type=Path, required=True, help="the given teacher's")
    parser.add_argument("--teacher", default="resnet20", help="architecture of the given teacher")
    parser.add_argument("--robust-teacher", default="resnet14", help="architecture of the one that is trained")
    parser.add_argument("--student", default="resnet8")
    parser.add_argument("--samples", type=int, default=5_000, help="size of the class-balanced training subset")
    parser.add_argument("--limit-test", type=int, help="size of a class-balanced test subset; default: the whole split")
    parser.add_argument("--attacked", type=int, default=1_000, help="test images that are attacked")
    parser.add_argument("--attack", default="pgd:8/255,2", help="in training")
    parser.add_argument("--measure", default="pgd:8/255,20", help="in the test")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--teacher-epochs", type=int, default=15)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--views", type=int, default=8)
    parser.add_argument("--recipe", default="crop-flip")
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--work", type=Path, default=Path("benchmarks/scratch/robust"), help="stores, runs and reports")
    parser.add_argument("--result", type=Path, default=RESULT)
    return parser.parse_args()


if __name__ == "__main__":
    main()

"""Settings that ``kdpipe tune`` finds against those that are published, for the same student, store and steps.

    python benchmarks/tuning.py --data folder:PATH/cifar10 --weights PATH/cifar10-resnet20.safetensors

Each search is a command, on a validation tenth of the training samples. Then the student is trained on all of them from
each of the --seeds, with what was found and with what the authors of the loss publish (the learning rate of their
ResNets, 0.05, and batches of 64), and tested after the last epoch. The test split chooses nothing. What is finished is
kept in --work and not repeated. Writes benchmarks/results/tuning.json.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path
from typing import Any

import torch
import yaml
from commands import describe, kdpipe
from finished import interval
from timing import machine

from kdpipe import durable
from kdpipe.stages.provenance import git_revision, versions

Settings = dict[str, Any]

RESULT = Path(__file__).parent / "results" / "tuning.json"
PUBLISHED_LR = 0.05
LR = "lr=0.01..0.3,log"
SEARCHES: dict[str, tuple[Settings, tuple[str, ...]]] = {
    "kd": ({"loss": "kd"}, (LR, "temperature=1..8", "ce_weight=0..1")),
    "dkd": ({"loss": "dkd", "kd_weight": 1}, (LR, "temperature=1..8", "loss=dkd:beta=0.5|dkd:beta=2|dkd:beta=8")),
    "any loss": ({"loss": "kd"}, (LR, "loss=kd|dist|dkd:beta=2|mlkd|wttm|kd:standardize=true|kd+dist")),
}
"""The published settings of each search, and what is searched."""


def main() -> None:
    """Search, train, and write the figures."""
    options = _options()
    store = options.work / "logits.zarr"
    if not store.exists() or describe(store)["state"] != "sealed":
        kdpipe(
            *("cache-teacher", *_data(options), "--teacher", options.teacher, "--weights", options.weights),
            *("--recipe", options.recipe, "--views", options.views, "--out", store),
        )
    common = (*_data(options), "--store", store, "--epochs", options.epochs, "--batch-size", 64)
    found = {name: _searched(name, common, options) for name in SEARCHES}
    members = {
        f"{name}, {how}": settings
        for name, (published, _) in SEARCHES.items()
        for how, settings in (("published", {"lr": PUBLISHED_LR, **published}), ("tuned", found[name]["settings"]))
    }
    top1: dict[str, list[float]] = {name: [] for name in members}
    for seed in options.seeds:
        out = options.work / "compared" / f"seed-{seed}"
        fleet = options.work / f"fleet-{seed}.json"
        durable.write_json(
            fleet, [{"student": options.student, "name": name, **each} for name, each in members.items()]
        )
        if not all((out / name / "metrics.json").exists() for name in members):
            kdpipe(*("train-student", *common, "--fleet", fleet, "--seed", seed, "--data-seed", seed, "--out", out))
        for name in members:
            top1[name].append(json.loads((out / name / "metrics.json").read_text())["test"]["top1"])
    result = _result(found, top1, options)
    durable.write_json(options.result, result)
    print(table(result))


def _searched(name: str, common: tuple[object, ...], options: argparse.Namespace) -> dict[str, Any]:
    """Run a search that is not finished, and return what it found."""
    published, space = SEARCHES[name]
    out = options.work / "searches" / name.replace(" ", "-")
    keys = [text.partition("=")[0] for text in space]
    fixed = [f"--{key.replace('_', '-')}={value}" for key, value in published.items() if key not in keys]
    if not (out / "best.yaml").exists():
        searches = [part for text in space for part in ("--search", text)]
        kdpipe(
            *("tune", *common, *fixed, "--student", options.student, *searches, "--trials", options.trials),
            *("--out", out, *(("--resume",) if (out / "rung-1").exists() else ())),
        )
    best = yaml.safe_load((out / "best.yaml").read_text())["train_student"]
    with (out / "trials.csv").open() as file:
        trials = list(csv.DictReader(file))
    last = list(trials[0])[-1]
    return {
        "settings": {key: best[key] for key in dict.fromkeys([*published, *keys])},
        "validation_top1": max(float(trial[last]) for trial in trials if trial[last]),
    }


def _result(found: dict[str, Any], top1: dict[str, list[float]], options: argparse.Namespace) -> dict[str, Any]:
    kept = ("teacher", "student", "samples", "epochs", "views", "recipe", "trials", "seeds")
    return {
        "command": (
            f"python benchmarks/tuning.py --data folder:CIFAR10 --weights {Path(options.weights).name} --samples "
            f"{options.samples} --epochs {options.epochs} --trials {options.trials}"
        ),
        "settings": {name: getattr(options, name) for name in kept} | {"torch": torch.__version__},
        "machine": machine(),
        "versions": versions(),
        "git_revision": git_revision(),
        "searches": {
            name: {
                "searched": list(space),
                "published": {
                    "settings": {"lr": PUBLISHED_LR, **published},
                    "top1": interval(top1[f"{name}, published"]),
                },
                "tuned": {**found[name], "top1": interval(top1[f"{name}, tuned"])},
                "tuned_minus_published": interval(
                    [
                        ours - theirs
                        for ours, theirs in zip(top1[f"{name}, tuned"], top1[f"{name}, published"], strict=True)
                    ]
                ),
            }
            for name, (published, space) in SEARCHES.items()
        },
    }


def table(result: dict[str, Any]) -> str:
    """Return the figures as a table in Markdown."""
    lines = ["| search | published | tuned | difference | settings found |", "|---|---:|---:|---:|---|"]
    for name, each in result["searches"].items():
        published, tuned = (
            f"{100 * each[how]['top1']['mean']:.1f} ± {100 * each[how]['top1']['std']:.1f}"
            for how in ("published", "tuned")
        )
        gain = each["tuned_minus_published"]
        low, high = gain["interval_95"]
        settings = ", ".join(f"`{key} {value}`" for key, value in each["tuned"]["settings"].items())
        lines.append(
            f"| {name} | {published} | {tuned} | {100 * gain['mean']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}] | "
            f"{settings} |"
        )
    return "\n".join(lines)


def _data(options: argparse.Namespace) -> tuple[object, ...]:
    return ("--data", options.data, "--limit-train", options.samples, "--device", options.device)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", required=True, help="CIFAR-10 as kdpipe takes it")
    parser.add_argument("--weights", required=True, help="the teacher's")
    parser.add_argument("--teacher", default="resnet20")
    parser.add_argument("--student", default="resnet8")
    parser.add_argument("--samples", type=int, default=4_000, help="size of the class-balanced training subset")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--views", type=int, default=3)
    parser.add_argument("--recipe", default="rrc-flip:0.5")
    parser.add_argument("--trials", type=int, default=9)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--work", type=Path, default=Path("benchmarks/scratch/tuning"), help="store and runs")
    parser.add_argument("--result", type=Path, default=RESULT)
    return parser.parse_args()


if __name__ == "__main__":
    main()

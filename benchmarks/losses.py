"""Every distillation loss against none: two students, from a store and from a live teacher, in equal steps.

    python benchmarks/losses.py --data folder:PATH/cifar10 --weights PATH/cifar10-resnet20.safetensors

For each seed, student and source of soft targets one fleet trains with all losses: the same weights at the start, the
same images in the same order. From the store they are its --views in turn, from the live teacher new ones in every
epoch. Each loss has its published settings and weights; lengths in epochs, dkd's warm-up and CTKD's curriculum, are in
proportion to the 240 of the authors. Losses on layers, and ``wkd``, need a store. ``soft-ce`` has the gradient of kd
and is left out; standardized-kd is kd:standardize=true, ctkd is kd at a learned temperature, dot is kd with separate
momenta.

Accuracies are of the whole test split, after the last epoch. What is finished is kept in --work and not repeated, so
several processes may each train some of the --students and --seeds. Writes benchmarks/results/losses.json after each
fleet, with the published figures of each loss (published_losses.py) and the rank correlation with them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from commands import describe, kdpipe
from finished import interval
from published_losses import ARMS as PUBLISHED
from published_losses import ON_LAYERS, PAIRS, as_json, published
from scipy import stats
from timing import machine

from kdpipe import durable
from kdpipe.stages.provenance import git_revision, versions

Run = dict[str, Any]
Figures = dict[str, Any]

RESULT = Path(__file__).parent / "results" / "losses.json"
SOURCES = ("cached", "live")
LEARNING_RATES = {"MobileNetV2": 0.01}
"""Those of the networks of RepDistiller that do not have 0.05."""
MAPS = {"resnet8": "layer1,layer2,layer3", "MobileNetV2": "blocks.1:layer2,blocks.2:layer3"}
"""Pairs of layers for ``attention``: the last ones of equal height and width."""
NEED_STORE = ("wkd", *ON_LAYERS)
SIGNALS = "features:penultimate+attention:layer1,layer2,layer3"
"""Signals that the losses on layers read."""
LEFT_OUT = ("soft-ce",)


def arms(student: str, source: str, epochs: int, *, left_out: Sequence[str] = LEFT_OUT) -> dict[str, Figures]:
    """Return the settings of each student with a teacher, as a fleet's file takes them, by loss."""
    settings: dict[str, Figures] = {arm: {"loss": arm} for arm in PUBLISHED if arm not in left_out}
    settings["dkd"] |= {"kd_weight": f"constant:1,warmup={max(1, epochs // 12)}"}
    settings["standardized-kd"] = {"loss": "kd:standardize=true"}
    settings["ctkd"] = {"loss": "kd", "temperature": f"learned:1,21,over={max(1, epochs // 24)}"}
    settings["dot"] = {"loss": "kd", "dot": 0.075}
    settings |= {name: {"loss": f"{name}:penultimate"} for name in ON_LAYERS}
    settings["attention"] = {"loss": f"attention:{MAPS[student]}"}
    return {arm: each for arm, each in settings.items() if source == "cached" or arm not in NEED_STORE}


def main() -> None:
    """Train what is not trained yet, and write the figures after each fleet."""
    options = _options()
    store = options.work / "logits.zarr"
    if not store.exists() or describe(store)["state"] != "sealed":
        kdpipe(
            *("cache-teacher", *_data(options), "--teacher", options.teacher, "--weights", options.weights),
            *("--recipe", options.recipe, "--views", options.views, "--out", store),
            *("--signals", SIGNALS),
        )
    for seed in options.seeds:
        for student in options.students:
            for source in SOURCES:
                _train(student, source, seed, store, options)
                durable.write_json(options.result, _result(store, options))
    print(summary(_result(store, options)))


def _train(student: str, source: str, seed: int, store: Path, options: argparse.Namespace) -> None:
    """Train the students of one fleet and the one without a teacher, on the same views."""
    out = options.work / student / source / f"seed-{seed}"
    out.mkdir(parents=True, exist_ok=True)
    views = ("--views", options.views) if source == "cached" else ()
    teacher = ("--store", store) if source == "cached" else ("--teacher", options.teacher, "--weights", options.weights)
    common = (
        *("train-student", *_data(options), "--recipe", options.recipe, *views, "--seed", seed, "--data-seed", seed),
        *("--epochs", options.epochs, "--batch-size", 64, "--lr", LEARNING_RATES.get(student, 0.05)),
        *("--checkpoint-every", 3600),
    )
    members = [{"student": student, "name": arm, **each} for arm, each in arms(student, source, options.epochs).items()]
    written = out / "fleet.json"
    durable.write_json(written, members)
    for runs, folder, flags in (
        ([out / "none"], out / "none", ("--distill", "none", "--student", student)),
        ([out / each["name"] for each in members], out, (*teacher, "--fleet", written)),
    ):
        if not all((run / "metrics.json").exists() for run in runs):
            started = any((run / "run.json").exists() for run in runs)
            kdpipe(*common, *flags, "--out", folder, *(("--resume",) if started else ()))


def _data(options: argparse.Namespace) -> tuple[object, ...]:
    return ("--data", options.data, "--limit-train", options.samples, "--device", options.device)


def _result(store: Path, options: argparse.Namespace) -> Figures:
    kept = ("teacher", "samples", "epochs", "views", "recipe", "device")
    students = {
        student: {source: _figures(options.work / student / source, options) for source in SOURCES}
        for student in MAPS
        if (options.work / student).exists()
    }
    return {
        "command": (
            f"python benchmarks/losses.py --data folder:CIFAR10 --weights {Path(options.weights).name} --recipe "
            f"{options.recipe} --samples {options.samples} --epochs {options.epochs} --views {options.views}"
        ),
        "settings": {name: getattr(options, name) for name in kept} | {"batch_size": 64, "torch": torch.__version__},
        "machine": machine(),
        "versions": versions(),
        "git_revision": git_revision(),
        "teacher_test_top1": describe(store)["about"]["teacher_test_top1"],
        "students": students,
        "published": {arm: as_json(arm) for arm in PUBLISHED if published(arm)},
        "rank_correlation": {
            student: {source: _correlations(found) for source, found in by_source.items()}
            for student, by_source in students.items()
        },
    }


def _figures(folder: Path, options: argparse.Namespace) -> Figures:
    """Return the figures of each loss that was trained."""
    found: dict[str, dict[int, Run]] = {}
    for path in sorted(folder.glob("seed-*/*/metrics.json")):
        seed = int(path.parent.parent.name.removeprefix("seed-"))
        found.setdefault(path.parent.name, {})[seed] = json.loads(path.read_text())
    none = found.get("none", {})
    order = ["none", *arms(folder.parent.name, folder.name, options.epochs)]
    return {
        arm: {
            "seeds": list(found[arm]),
            "top1": interval([run["test"]["top1"] for run in found[arm].values()]),
            "top1_minus_none": interval(
                [run["test"]["top1"] - none[seed]["test"]["top1"] for seed, run in found[arm].items() if seed in none]
            ),
        }
        for arm in order
        if arm in found
    }


def _correlations(found: Mapping[str, Figures]) -> dict[str, Figures]:
    """Return Spearman's correlation of the gains over none with those published, for each pair of several losses."""
    result: dict[str, Figures] = {}
    for pair in PAIRS:
        both = [arm for arm in found if pair in published(arm)]
        if len(both) < 4:
            continue
        ours = [found[arm]["top1"]["mean"] for arm in both]
        theirs = [published(arm)[pair].top1 - published(arm)[pair].student_alone for arm in both]
        test = stats.permutation_test(
            (ours,), lambda drawn, theirs=theirs: stats.spearmanr(drawn, theirs).statistic, permutation_type="pairings"
        )
        result[pair] = {"rho": float(test.statistic), "p_value": float(test.pvalue), "losses": len(both)}
    return result


def summary(result: Figures) -> str:
    """Return all figures as lines for a person."""
    lines: list[str] = []
    for student, by_source in result["students"].items():
        for source, found in by_source.items():
            for arm, each in found.items():
                low, high = each["top1"].get("interval_95", (None, None))
                gain = each["top1_minus_none"]["mean"]
                lines.append(f"{student}, {source}, {arm}: {each['top1']['mean']:.2%} [{low}, {high}], {gain:+.2%}")
            for pair, each in result["rank_correlation"][student][source].items():
                lines.append(f"  rank correlation with {pair}: {each['rho']:.2f} of {each['losses']} losses")
    return "\n".join(lines)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", required=True, help="CIFAR-10 as kdpipe takes it")
    parser.add_argument("--weights", required=True, help="the teacher's")
    parser.add_argument("--teacher", default="resnet20")
    parser.add_argument("--students", nargs="+", default=list(MAPS), choices=list(MAPS))
    parser.add_argument("--samples", type=int, default=4_000, help="size of the class-balanced training subset")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--views", type=int, default=3)
    parser.add_argument("--recipe", default="rrc-flip:0.5")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--work", type=Path, default=Path("benchmarks/scratch/losses"), help="store and runs")
    parser.add_argument("--result", type=Path, default=RESULT)
    return parser.parse_args()


if __name__ == "__main__":
    main()

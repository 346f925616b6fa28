"""Every distillation loss against none: the same student, store, views, order, epochs and optimizer.

    python benchmarks/losses.py --data folder:PATH/cifar10 --weights PATH/cifar10-resnet20.safetensors

The teacher's views are cached once; every student trains on them in turn, with the published settings and weights of
its loss (docs/guides/losses.md); standardized-kd is kd:standardize=true. dkd's weight is warmed up over a twelfth of
the epochs, as 20 of 240 are. Accuracies are of the whole test split, after the last epoch. Finished runs are kept in
--work and not repeated, so several processes may each train some of the --seeds. Writes benchmarks/results/losses.json
after each run, with the published figures of each loss (published_losses.py) beside the measured ones.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from commands import describe, kdpipe
from consistency_report import Finished, Run, spread
from published_losses import ARMS as LOSS_ARMS
from published_losses import as_json, published
from timing import machine

from kdpipe import dataset, durable, models
from kdpipe.distil.curves import Curve
from kdpipe.distil.losses import make
from kdpipe.distil.objective import Distillation, DistillationObjective
from kdpipe.distil.relations import class_relations
from kdpipe.distil.targets import CachedTargets
from kdpipe.metrics.accuracy import accuracy, agreement
from kdpipe.pairing.join import join_checked
from kdpipe.pairing.probes import replay
from kdpipe.stages.provenance import git_revision, versions
from kdpipe.stages.sources import load_model
from kdpipe.store.reader import open_store
from kdpipe.training.evaluation import predict
from kdpipe.training.loop import train
from kdpipe.training.runs import RunDirectory
from kdpipe.training.schedule import Order
from kdpipe.training.settings import Optimization
from kdpipe.training.trainee import Student
from kdpipe.views import Geometry, Renderer

ARMS = ("none", *LOSS_ARMS)
RESULT = Path(__file__).parent / "results" / "losses.json"
OPTIMIZER: dict[str, Any] = {"batch_size": 128, "lr": 0.05, "weight_decay": 5e-4, "warmup_epochs": 1.0}


def main() -> None:
    """Train what is not trained yet, and write the figures after each run."""
    options = _options()
    torch.set_num_threads(options.threads)
    store = options.work / "logits.zarr"
    kdpipe(
        *("cache-teacher", "--data", options.data, "--teacher", options.teacher, "--weights", options.weights),
        *("--limit-train", options.samples, "--views", options.views, "--recipe", options.recipe, "--out", store),
        *("--device", options.device),
    )
    done = Finished(options.work / "runs.jsonl", _settings(options, open_store(store).digest))
    for seed in options.seeds:
        for arm in ARMS:
            if not done.has(arm, seed):
                run = _run(arm, seed, store, options)
                done.add(run)
                durable.write_json(options.result, _result(done.read(), store, options))
                print(f"seed {seed}, {arm}: top-1 {run['top1']:.2%}, {run['seconds']:.0f} s", flush=True)
    result = _result(done.read(), store, options)
    durable.write_json(options.result, result)
    for arm, figures in result["losses"].items():
        others = [
            f"{pair} {their.top1:.2f} (alone {their.student_alone:.2f})" for pair, their in published(arm).items()
        ]
        print(f"{arm}: top-1 {figures['top1']['mean']:.2%}; published: {'; '.join(others) or 'none known'}")


def _run(arm: str, seed: int, path: Path, options: argparse.Namespace) -> Run:
    """Train and test one student."""
    store, answers = open_store(path), open_store(path, "test")
    train_set = dataset.load(options.data, "train", options.samples)
    test_set = dataset.load(options.data, "test")
    device = models.resolve_device(options.device)
    model = load_model(options.student, train_set, seed=seed)
    geometry = Geometry.of(model.preset)
    distillation = None
    if arm != "none":
        loss = make("kd", standardize=True) if arm == "standardized-kd" else make(arm)
        if loss.definition.needs_relations:
            loss = loss.among(class_relations(store, join_checked(store, train_set), train_set.labels))
        warmup = round(options.epochs * loss.warmup_epochs / 240)
        distillation = Distillation(loss, kd_weight=Curve("constant", loss.kd_weight, warmup=warmup))
    directory = RunDirectory(options.work / "runs" / f"{arm}-{seed}")
    directory.path.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    student = Student(
        model.module.to(device),
        replay(store, train_set, geometry=geometry, device=device),
        DistillationObjective(model.preset, distillation),
        Optimization(epochs=options.epochs, **OPTIMIZER),
        directory,
    )
    cost = train(
        student,
        None if distillation is None else CachedTargets(store, join_checked(store, train_set)),
        order=Order(data_seed=seed, views=options.views),
        checkpoint_every=float("inf"),
    )
    tester = Renderer(test_set, "none", seed=0, geometry=geometry, device=device)
    logits = predict(model.module, tester, preset=model.preset)
    return {
        "arm": arm,
        "seed": seed,
        "top1": accuracy(logits, test_set.labels).top1,
        "agreement": agreement(logits, answers.logits(join_checked(answers, test_set))),
        "seconds": cost.seconds,
    }


def _settings(options: argparse.Namespace, digest: str) -> dict[str, Any]:
    names = ("teacher", "student", "samples", "epochs", "views", "recipe", "device", "threads")
    kept = {name: getattr(options, name) for name in names}
    return {**kept, **OPTIMIZER, "torch": torch.__version__, "store_digest": digest}


def _result(runs: list[Run], store: Path, options: argparse.Namespace) -> dict[str, Any]:
    by_arm = {arm: {run["seed"]: run for run in runs if run["arm"] == arm} for arm in ARMS}
    none = by_arm["none"]
    return {
        "command": (
            f"python benchmarks/losses.py --data folder:CIFAR10 --weights {Path(options.weights).name} --recipe "
            f"{options.recipe} --samples {options.samples} --epochs {options.epochs} --views {options.views}"
        ),
        "settings": _settings(options, open_store(store).digest),
        "machine": machine(),
        "versions": versions(),
        "git_revision": git_revision(),
        "teacher_test_top1": describe(store)["about"]["teacher_test_top1"],
        "losses": {
            arm: {
                "top1": spread([found[seed]["top1"] for seed in sorted(found)]),
                "top1_minus_none": spread([found[s]["top1"] - none[s]["top1"] for s in sorted(found) if s in none]),
                "agreement": spread([found[seed]["agreement"] for seed in sorted(found)]),
                "seconds": [round(found[seed]["seconds"], 1) for seed in sorted(found)],
                "published": as_json(arm),
            }
            for arm, found in by_arm.items()
            if found
        },
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", required=True, help="CIFAR-10 as kdpipe takes it")
    parser.add_argument("--weights", required=True, help="the teacher's")
    parser.add_argument("--teacher", default="resnet20")
    parser.add_argument("--student", default="resnet8")
    parser.add_argument("--samples", type=int, default=5_000, help="size of the class-balanced training subset")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--views", type=int, default=16)
    parser.add_argument("--recipe", default="rrc-flip:0.5")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--work", type=Path, default=Path("benchmarks/scratch/losses"), help="store and runs")
    parser.add_argument("--result", type=Path, default=RESULT)
    return parser.parse_args()


if __name__ == "__main__":
    main()

"""Chains of teachers: what each way of composing them is worth to the same student.

    python benchmarks/chains.py --data folder:PATH/cifar10 --weights PATH/cifar10-resnet20.safetensors

The last student of every chain is the same network, trained on the same images and views for as many epochs with the
same loss and optimizer, from each of the --seeds:

    alone         no teacher
    one-way       the given teacher
    longer        one-way, for twice the epochs: what the time of another training buys without another teacher
    multi-level   an assistant, which learned from the given teacher
    two-way       the given teacher after a fine-tuning on the logits of one-way's student
    second        another teacher alone, which was trained on the labels of the same images
    mean          both teachers, the mean of their logits with equal weights
    weighted      both, with 0.7 for the given one
    confidence    both, weighed sample by sample by --store-mix confidence
    draw          both, one of them for each batch

Every step is a command of the command line. Accuracies are of the whole test split, after the last epoch. What is
finished is kept in --work and not repeated. Writes benchmarks/results/chains.json after each run, and prints it as a
table.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from blake3 import blake3
from commands import kdpipe
from finished import Finished, Run, spread
from timing import machine

from kdpipe import durable
from kdpipe.stages.provenance import git_revision, versions
from kdpipe.store.inspect import summary

ARMS = (
    *("alone", "one-way", "longer", "multi-level", "two-way"),
    *("second", "mean", "weighted", "confidence", "draw"),
)
RESULT = Path(__file__).parent / "results" / "chains.json"
GIVEN = "given"


@dataclass(frozen=True)
class Chains:
    """Trains and caches what is not there yet; a run or a store is known by its name."""

    options: argparse.Namespace
    folder: Path

    def learn(self, name: str, model: str, seed: int, *flags: object, epochs: int | None = None) -> str:
        """Train ``model`` on the images, with soft targets if the flags name stores; return its name as a teacher."""
        out, options = self.folder / name, self.options
        if not (out / "metrics.json").exists():
            kdpipe(
                *("train-student", *self._common(), "--recipe", options.recipe, "--student", model, *flags),
                *("--epochs", options.epochs if epochs is None else epochs, "--seed", seed, "--data-seed", seed),
                *(() if "--lr" in flags else ("--lr", options.lr)),
                *("--checkpoint-every", 1e9, "--out", out, *(("--resume",) if (out / "run.json").exists() else ())),
            )
        return f"run:{out}"

    def cached(self, name: str, *teacher: object) -> Path:
        """Cache a teacher; return its store."""
        out = self.folder / f"{name}.zarr"
        if not (out.exists() and summary(out)["state"] == "sealed"):
            kdpipe(
                *("cache-teacher", *self._common(), "--recipe", self.options.recipe, "--views", self.options.epochs),
                *("--teacher", *teacher, "--out", out),
            )
        return out

    def given(self) -> Path:
        """Return the store of the given teacher."""
        return self.cached(GIVEN, self.options.teacher, "--weights", self.options.weights)

    def second(self) -> Path:
        """Return the store of the other teacher, which is the same for all seeds."""
        return self.cached("second", self.learn("second-teacher", self.options.assistant, 0))

    def stores(self, arm: str, seed: int) -> list[object]:
        """Return what the last student of a chain learns from, as flags, having made it."""
        given = self.given() if arm not in ("alone", "second") else None
        if arm == "alone":
            return []
        if arm in ("one-way", "longer"):
            return ["--store", given]
        if arm == "multi-level":
            assistant = self.learn(f"assistant-{seed}", self.options.assistant, seed, "--store", given)
            return ["--store", self.cached(f"assistant-{seed}", assistant)]
        if arm == "two-way":
            student = self.learn(f"one-way-{seed}", self.options.student, seed, "--store", given)
            said = self.cached(f"student-{seed}", student)
            tuning = ("--init-weights", self.options.weights, "--store", said, "--lr", self.options.tune_lr)
            weights = ("--kd-weight", self.options.tune_kd_weight, "--ce-weight", 1 - self.options.tune_kd_weight)
            epochs = self.options.tune_epochs
            tuned = self.learn(f"tuned-{seed}", self.options.teacher, seed, *tuning, *weights, epochs=epochs)
            return ["--store", self.cached(f"tuned-{seed}", tuned)]
        if arm == "second":
            return ["--store", self.second()]
        shares = (0.7, 0.3) if arm == "weighted" else (0.5, 0.5)
        mix = arm if arm in ("confidence", "draw") else "mean"
        both = zip((given, self.second()), shares, strict=True)
        flags = [flag for store, share in both for flag in ("--store", store, "--store-weight", share)]
        return [*flags, "--store-mix", mix]

    def run(self, arm: str, seed: int) -> Run:
        """Train the last student of a chain."""
        stores = self.stores(arm, seed)
        epochs = self.options.epochs * (2 if arm == "longer" else 1)
        name = f"{arm}-{seed}"
        self.learn(name, self.options.student, seed, *stores, epochs=epochs)
        before = {"multi-level": [f"assistant-{seed}"], "two-way": [f"one-way-{seed}", f"tuned-{seed}"]}.get(arm, [])
        metrics = {run: json.loads((self.folder / run / "metrics.json").read_text()) for run in (name, *before)}
        taught = [summary(flag)["about"]["teacher_test_top1"] for flag in stores if isinstance(flag, Path)]
        return {
            "arm": arm,
            "seed": seed,
            "top1": metrics[name]["test"]["top1"],
            "teachers_test_top1": taught,
            "seconds": metrics[name]["seconds"],
            "chain_seconds": sum(each["seconds"] for each in metrics.values()),
        }

    def _common(self) -> tuple[object, ...]:
        options = self.options
        limits = () if options.limit_test is None else ("--limit-test", options.limit_test)
        return ("--data", options.data, "--limit-train", options.samples, *limits, "--device", options.device)


def main() -> None:
    """Train what is not trained yet, and write the figures after each run."""
    options = _options()
    settings = _settings(options)
    # Runs and stores of other settings are other runs and stores.
    folder = options.work / blake3(json.dumps(settings, sort_keys=True).encode()).hexdigest(length=4)
    folder.mkdir(parents=True, exist_ok=True)
    chains, done = Chains(options, folder), Finished(folder / "runs.jsonl", settings)
    for seed in options.seeds:
        for arm in options.arms:
            if not done.has(arm, seed):
                run = chains.run(arm, seed)
                done.add(run)
                durable.write_json(options.result, _result(done.read(), options))
                print(f"seed {seed}, {arm}: top-1 {run['top1']:.2%}, {run['seconds']:.0f} s", flush=True)
    result = _result(done.read(), options)
    durable.write_json(options.result, result)
    print(_table(result))


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    names = (
        *("teacher", "assistant", "student", "samples", "limit_test", "epochs", "recipe", "lr"),
        *("tune_epochs", "tune_lr", "tune_kd_weight", "device"),
    )
    kept = {name: getattr(options, name) for name in names}
    return {
        **kept,
        "weights": options.weights.name,
        "data": options.data.rsplit("/", 1)[-1],
        "torch": torch.__version__,
    }


def _result(runs: list[Run], options: argparse.Namespace) -> dict[str, Any]:
    found = {arm: {run["seed"]: run for run in runs if run["arm"] == arm} for arm in ARMS}
    base = found["one-way"]
    return {
        "command": (
            f"python benchmarks/chains.py --data folder:CIFAR10 --weights {Path(options.weights).name} "
            f"--samples {options.samples} --epochs {options.epochs}"
        ),
        "settings": _settings(options),
        "machine": machine(),
        "versions": versions(),
        "git_revision": git_revision(),
        "arms": {
            arm: {
                "seeds": sorted(by_seed),
                "top1": spread([by_seed[seed]["top1"] for seed in sorted(by_seed)]),
                "top1_minus_one_way": spread(
                    [by_seed[seed]["top1"] - base[seed]["top1"] for seed in sorted(by_seed) if seed in base]
                ),
                "teachers_test_top1": [by_seed[seed]["teachers_test_top1"] for seed in sorted(by_seed)],
                "seconds": [round(by_seed[seed]["seconds"], 1) for seed in sorted(by_seed)],
                "chain_seconds": [round(by_seed[seed]["chain_seconds"], 1) for seed in sorted(by_seed)],
            }
            for arm, by_seed in found.items()
            if by_seed
        },
    }


def _table(result: dict[str, Any]) -> str:
    """Return the figures as a table in Markdown."""

    def percent(found: dict[str, Any], sign: str = "") -> str:
        deviation = "" if found["std"] is None else f" ± {100 * found['std']:.1f}"
        return "" if found["mean"] is None else f"{100 * found['mean']:{sign}.1f}{deviation}"

    rows = ["| chain | test top-1 % | minus one-way | training, s |", "|---|---|---|---|"]
    for arm, found in result["arms"].items():
        seconds = statistics.median(found["chain_seconds"])
        more = "" if arm == "one-way" else percent(found["top1_minus_one_way"], "+")
        rows.append(f"| {arm} | {percent(found['top1'])} | {more} | {seconds:.0f} |")
    return "\n".join(rows)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", required=True, help="CIFAR-10 as kdpipe takes it")
    parser.add_argument("--weights", type=Path, required=True, help="the given teacher's")
    parser.add_argument("--teacher", default="resnet20")
    parser.add_argument("--assistant", default="resnet14", help="also the second teacher")
    parser.add_argument("--student", default="resnet8")
    parser.add_argument("--samples", type=int, default=5_000, help="size of the class-balanced training subset")
    parser.add_argument("--limit-test", type=int)
    parser.add_argument("--epochs", type=int, default=10, help="of every training but the tuning; also cached views")
    parser.add_argument("--recipe", default="rrc-flip:0.5")
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--tune-epochs", type=int, default=3)
    parser.add_argument("--tune-lr", type=float, default=0.01)
    parser.add_argument("--tune-kd-weight", type=float, default=0.3)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--work", type=Path, default=Path("benchmarks/scratch/chains"), help="stores and runs")
    parser.add_argument("--result", type=Path, default=RESULT)
    return parser.parse_args()


if __name__ == "__main__":
    main()

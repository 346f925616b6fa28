"""Cost of keeping signals of a teacher's layers, and accuracy of students that learn from them, with or without logits.

    python benchmarks/signals.py --data folder:PATH/cifar10 --weights PATH/cifar10-resnet20.safetensors

One store keeps the teacher's logits, pooled features and attention maps. From it the same student learns with each
loss, from each of the --seeds: none, kd, the losses on layers alone, and these beside kd.

    features, rkd           the penultimate features
    attention               the maps of all three layers
    features-of-layers      the features of all --layers, each pair with a map of its own

Every step is a command of the command line with its defaults. Students of one seed are trained in one fleet, whose bits
are those of each alone; the one without a teacher goes through the same views in a run of its own. Accuracies are of
the whole test split, after the last epoch. What is finished is kept in --work and not repeated, so once the store is
there several processes may each train some of the --seeds. Writes benchmarks/results/signals.json after each run and
fleet, and prints it as two tables.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from blake3 import blake3
from commands import describe, kdpipe
from finished import Finished, Run, paired, spread
from timing import machine

from kdpipe import durable
from kdpipe.stages.provenance import git_revision, versions

PENULTIMATE = "penultimate"
MAPS = "layer1,layer2,layer3"
RESULT = Path(__file__).parent / "results" / "signals.json"
BASES = ("none", "kd")


def losses(layers: list[str]) -> dict[str, str]:
    """Return the losses of the students that have a teacher, as ``--loss`` takes them, by name."""
    alone = {"features": f"features:{PENULTIMATE}", "rkd": f"rkd:{PENULTIMATE}", "attention": f"attention:{MAPS}"}
    return {
        "kd": "kd",
        **alone,
        **{f"kd+{name}": f"kd+{loss}" for name, loss in alone.items()},
        "kd+features-of-layers": f"kd+features:{','.join(layers)}",
        "kd+features+attention": f"kd+{alone['features']}+{alone['attention']}",
    }


@dataclass(frozen=True)
class Trainer:
    """Caches and trains what is not there yet."""

    options: argparse.Namespace
    folder: Path

    @property
    def store(self) -> Path:
        """Path of the store."""
        return self.folder / "signals.zarr"

    def cache(self) -> None:
        """Keep everything that the losses learn from."""
        if self.store.exists() and describe(self.store)["state"] == "sealed":
            return
        options = self.options
        features = dict.fromkeys([PENULTIMATE, *options.layers])
        kdpipe(
            *("cache-teacher", *self._common(), "--teacher", options.teacher, "--weights", options.weights),
            *("--recipe", options.recipe, "--views", options.views, "--out", self.store),
            *("--signals", f"features:{','.join(features)}+attention:{MAPS}"),
        )

    def none(self, seed: int) -> list[Run]:
        """Train and test the student without a teacher, on the store's views."""
        out = self.folder / f"none-{seed}"
        self._train(seed, out, [out], "--distill", "none", "--student", self.options.student)
        return [_run("none", seed, out)]

    def fleet(self, seed: int) -> list[Run]:
        """Train and test the others, in one fleet."""
        out, written = self.folder / f"fleet-{seed}", self.folder / f"fleet-{seed}.yaml"
        arms = losses(self.options.layers)
        members = [{"student": self.options.student, "name": arm, "loss": loss} for arm, loss in arms.items()]
        durable.write_json(written, members)
        self._train(seed, out, [out / arm for arm in arms], "--fleet", written)
        return [_run(arm, seed, out / arm) for arm in arms]

    def _train(self, seed: int, out: Path, runs: list[Path], *flags: object) -> None:
        """Train one or several students into run directories, going on where they were stopped."""
        if all((run / "metrics.json").exists() for run in runs):
            return
        options = self.options
        started = any((run / "run.json").exists() for run in runs)
        kdpipe(
            *("train-student", *self._common(), "--store", self.store, "--views", options.views, *flags),
            *("--epochs", options.epochs, "--lr", options.lr, "--seed", seed, "--data-seed", seed),
            *("--out", out, *(("--resume",) if started else ())),
        )

    def _common(self) -> tuple[object, ...]:
        options = self.options
        limits = () if options.limit_test is None else ("--limit-test", options.limit_test)
        return ("--data", options.data, "--limit-train", options.samples, *limits, "--device", options.device)


def main() -> None:
    """Train what is not trained yet, and write the figures after each run and fleet."""
    options = _options()
    settings = _settings(options)
    # Runs and stores of other settings are other runs and stores.
    folder = options.work / blake3(json.dumps(settings, sort_keys=True).encode()).hexdigest(length=4)
    folder.mkdir(parents=True, exist_ok=True)
    trainer, done = Trainer(options, folder), Finished(folder / "runs.jsonl", settings)
    trainer.cache()
    for seed in options.seeds:
        for train in (trainer.none, trainer.fleet):
            new = [run for run in train(seed) if not done.has(run["arm"], seed)]
            for run in new:
                done.add(run)
                print(f"seed {seed}, {run['arm']}: top-1 {run['top1']:.2%}", flush=True)
            if new:
                durable.write_json(options.result, _result(done.read(), trainer.store, options))
    result = _result(done.read(), trainer.store, options)
    durable.write_json(options.result, result)
    print(_tables(result))


def _run(arm: str, seed: int, out: Path) -> Run:
    metrics = json.loads((out / "metrics.json").read_text())
    return {"arm": arm, "seed": seed, "top1": metrics["test"]["top1"], "seconds": metrics["seconds"]}


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    names = ("teacher", "student", "samples", "limit_test", "epochs", "views", "recipe", "lr", "layers", "device")
    kept = {name: getattr(options, name) for name in names}
    return {
        **kept,
        "weights": options.weights.name,
        "data": options.data.rsplit("/", 1)[-1],
        "torch": torch.__version__,
    }


def _result(runs: list[Run], store: Path, options: argparse.Namespace) -> dict[str, Any]:
    described = describe(store)
    arms = ("none", *losses(options.layers))
    found = {arm: {run["seed"]: run for run in runs if run["arm"] == arm} for arm in arms}
    found = {arm: dict(sorted(by_seed.items())) for arm, by_seed in found.items() if by_seed}
    seconds = {
        name: [round(run["seconds"], 1) for run in found.get(arm, {}).values()]
        for name, arm in (("none", "none"), ("fleet", "kd"))
    }
    return {
        "command": (
            f"python benchmarks/signals.py --data folder:CIFAR10 --weights {options.weights.name} --samples "
            f"{options.samples} --epochs {options.epochs} --views {options.views} --layers {' '.join(options.layers)}"
        ),
        "settings": _settings(options),
        "machine": machine(),
        "versions": versions(),
        "git_revision": git_revision(),
        "teacher_test_top1": described["about"]["teacher_test_top1"],
        **_sizes(described),
        "losses": {
            arm: {
                "seeds": list(by_seed),
                "top1": spread([run["top1"] for run in by_seed.values()]),
                **{f"top1_minus_{base}": paired(by_seed, found.get(base, {})) for base in BASES if base != arm},
            }
            for arm, by_seed in found.items()
        },
        "seconds": seconds,
    }


def _sizes(described: dict[str, Any]) -> dict[str, Any]:
    """Return rows, and bytes per row of all planes of both splits, of what the store keeps."""
    splits = described["splits"].values()
    rows = [split["samples"] * split["planes"] for split in splits]
    logits = sum(count * split["bytes_per_sample"] for count, split in zip(rows, splits, strict=True)) / sum(rows)
    kept = {name: (math.prod(each["shape"]), each["bytes_per_sample"]) for name, each in described["signals"].items()}
    return {
        "rows": sum(rows),
        "signals": {
            name: {"numbers": numbers, "bytes_per_row": size}
            for name, (numbers, size) in {"logits": (described["classes"], logits), **kept}.items()
        },
    }


def _tables(result: dict[str, Any]) -> str:
    """Return the figures as two tables in Markdown."""

    def percent(found: dict[str, Any] | None) -> str:
        if found is None or found["mean"] is None:
            return ""
        return f"{100 * found['mean']:.1f}" + ("" if found["std"] is None else f" ± {100 * found['std']:.1f}")

    rows = ["| signal | numbers | bytes per row |", "|---|---|---|"]
    for name, kept in result["signals"].items():
        rows.append(f"| `{name}` | {kept['numbers']:,} | {kept['bytes_per_row']:,.0f} |")
    rows += ["", "| loss | top-1 | more than none | more than `kd` |", "|---|---|---|---|"]
    for arm, found in result["losses"].items():
        more = " | ".join(percent(found.get(f"top1_minus_{base}")) for base in BASES)
        rows.append(f"| `{arm}` | {percent(found['top1'])} | {more} |")
    return "\n".join(rows)


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
    parser.add_argument("--layers", nargs="+", default=MAPS.split(","), help="of features-of-layers")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--work", type=Path, default=Path("benchmarks/scratch/signals"), help="store and runs")
    parser.add_argument("--result", type=Path, default=RESULT)
    return parser.parse_args()


if __name__ == "__main__":
    main()

"""Few labels and many images: what a teacher's answers on images without a label are worth to a student.

    python benchmarks/labels.py --data PATH/cifar10 --weights PATH/cifar10-resnet20.safetensors

For each share of labels a folder is laid out as kdpipe reads it: that share of a class-balanced training subset in
``train/<class>``, equally many of each class, the others in ``unlabeled``; links, not copies. Students train on it in
four ways, each for equally many images seen, whatever the number of different ones:

    none       on the labelled images, without a teacher
    labelled   on the labelled images, with the teacher's cached logits
    all        on all images, with the teacher's cached logits
    same       as all, with a teacher that was itself trained on these labels alone

Every command is one of the command line's. Accuracies are of the whole test split, after the last epoch. Finished runs
are kept in --work and not repeated. Writes benchmarks/results/labels.json after each run.
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

from kdpipe import dataset, durable
from kdpipe.stages.provenance import git_revision, versions

ARMS = ("none", "labelled", "all", "same")
RESULT = Path(__file__).parent / "results" / "labels.json"


def main() -> None:
    """Train what is not trained yet, and write the figures after each run."""
    options = _options()
    done = Finished(options.work / "runs.jsonl", _settings(options))
    for share in options.shares:
        _lay_out(share, options)
    for seed in options.seeds:
        for share in options.shares:
            for arm in options.arms:
                name = f"{arm} {share:g}"
                if (arm == "labelled" and share == 1) or done.has(name, seed):
                    continue
                run = {"arm": name, "seed": seed, **_run(arm, share, seed, options)}
                done.add(run)
                durable.write_json(options.result, _result(done.read(), options))
                print(f"seed {seed}, {name}: top-1 {run['top1']:.2%}, {run['seconds']:.0f} s", flush=True)
    durable.write_json(options.result, _result(done.read(), options))


def _lay_out(share: float, options: argparse.Namespace) -> None:
    """Link the images of a share into ``all``, and those with a label also into ``labelled``."""
    source = options.data.absolute()
    samples = dataset.load(f"folder:{source}", "train", options.samples)
    chosen = set(dataset.load(f"folder:{source}", "train", round(share * options.samples)).keys)
    for part in ("labelled", "all"):
        root = _folder(part, share, options)
        if root.exists():
            continue
        root.mkdir(parents=True)
        (root / "test").symlink_to(source / "test")
        for key in samples.keys:
            if key in chosen:
                link = root / key
            elif part == "all":
                link = root / "unlabeled" / key.removeprefix("train/").replace("/", "-")
            else:
                continue
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(source / key)


def _folder(part: str, share: float, options: argparse.Namespace) -> Path:
    return Path(options.work / "data" / f"{share:g}-{part}")


def _run(arm: str, share: float, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Train one student, and what it needs to."""
    part = "all" if arm in ("all", "same") else "labelled"
    data = f"folder:{_folder(part, share, options)}"
    images = options.samples if part == "all" else round(share * options.samples)
    out = options.work / "runs" / f"{arm}-{share:g}-{seed}"
    taught = () if arm == "none" else ("--store", _store(arm, share, options))
    kdpipe(
        *(
            "train-student",
            "--overwrite",
            "--data",
            data,
            "--student",
            options.student,
            *taught,
            "--recipe",
            options.recipe,
        ),
        *("--epochs", options.images // images, "--lr", options.lr, "--seed", seed, "--data-seed", seed),
        *("--checkpoint-every", 1e9, "--device", options.device, "--out", out),
    )
    metrics = json.loads((out / "metrics.json").read_text())
    return {"top1": metrics["test"]["top1"], "images": images, "seconds": metrics["seconds"]}


def _store(arm: str, share: float, options: argparse.Namespace) -> Path:
    """Return the store of a folder with all images, made where it is missing."""
    data = f"folder:{_folder('all', share, options)}"
    weights = _teacher(share, options) if arm == "same" else options.weights
    path = Path(options.work / f"{'same' if arm == 'same' else 'given'}-{share:g}.zarr")
    kdpipe(
        *("cache-teacher", "--data", data, "--teacher", options.teacher, "--weights", weights),
        *("--views", options.views, "--recipe", options.recipe, "--device", options.device, "--out", path),
    )
    return path


def _teacher(share: float, options: argparse.Namespace) -> Path:
    """Return the weights of a teacher of the labelled images alone, trained where it is missing."""
    out = options.work / "runs" / f"teacher-{share:g}"
    if not (out / "metrics.json").exists():
        kdpipe(
            *(
                "train-teacher",
                "--overwrite",
                "--data",
                f"folder:{_folder('labelled', share, options)}",
                "--model",
                options.teacher,
            ),
            *("--epochs", options.images // round(share * options.samples), "--lr", options.lr),
            *("--recipe", options.recipe, "--checkpoint-every", 1e9, "--device", options.device, "--out", out),
        )
    return Path(out / "model.safetensors")


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    names = ("teacher", "student", "samples", "images", "views", "recipe", "lr", "device")
    return {**{name: getattr(options, name) for name in names}, "torch": torch.__version__}


def _result(runs: list[Run], options: argparse.Namespace) -> dict[str, Any]:
    by_arm: dict[str, dict[int, Run]] = {}
    for run in sorted(runs, key=lambda run: run["seed"]):
        by_arm.setdefault(run["arm"], {})[run["seed"]] = run
    return {
        "command": f"python benchmarks/labels.py --data cifar10 --weights {Path(options.weights).name}",
        "settings": _settings(options),
        "machine": machine(),
        "versions": versions(),
        "git_revision": git_revision(),
        "teachers_test_top1": {
            path.stem: describe(path)["about"]["teacher_test_top1"] for path in sorted(options.work.glob("*.zarr"))
        },
        "arms": {
            f"{arm} {share:g}": {
                "images": next(iter(found.values()))["images"],
                "labels": round(share * options.samples),
                "seeds": list(found),
                "top1": spread([run["top1"] for run in found.values()]),
                "seconds": [round(run["seconds"], 1) for run in found.values()],
            }
            for share in sorted(options.shares)
            for arm in ARMS
            if (found := by_arm.get(f"{arm} {share:g}"))
        },
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="CIFAR-10 as an image folder")
    parser.add_argument("--weights", type=Path, required=True, help="the teacher's")
    parser.add_argument("--teacher", default="resnet20")
    parser.add_argument("--student", default="resnet8")
    parser.add_argument("--samples", type=int, default=5_000, help="size of the class-balanced training subset")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.01, 0.1, 1.0], help="of labels")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS)
    parser.add_argument("--images", type=int, default=100_000, help="images that each training sees")
    parser.add_argument("--views", type=int, default=16)
    parser.add_argument("--recipe", default="rrc-flip:0.5")
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--work", type=Path, default=Path("benchmarks/scratch/labels"), help="folders, stores and runs")
    parser.add_argument("--result", type=Path, default=RESULT)
    return parser.parse_args()


if __name__ == "__main__":
    main()

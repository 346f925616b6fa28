"""The digests that a change of the code's structure must leave as they are.

    python benchmarks/unchanged.py --out benchmarks/results/unchanged.json         # record, before the change
    python benchmarks/unchanged.py --compare benchmarks/results/unchanged.json     # compare, after it

Records, for ``digits`` on one thread: the digest of a store for each encoding and for three recipes; SHA-256 of
``model.safetensors`` and of ``history.csv`` without its times for short runs that use each part of training; SHA-256 of
the rendered pixels of view operations. ``--compare`` prints a table and fails where a digest differs. Weights depend on
the processor: compare records of one machine.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["DVC_NO_ANALYTICS"] = "1"

import numpy as np
import torch
from commands import in_process

from kdpipe import dataset
from kdpipe.store.reader import open_store
from kdpipe.views import Geometry, Renderer

ENCODINGS = ("fp32", "fp16", "fp16r7", "fp16r5", "sqrtp8@4", "sqrtp6@8", "tailp6@4", "tailp8@1", "topk5")
RECIPES = ("crop-flip", "rrc-flip:0.25+color+mixup:0.2", "trivial+erase+cutmix:1")
OPERATIONS = ("crop-flip", "rrc-flip", "rrc-flip:0.25", "rrc-flip+color", "trivial", "randaug:2,9", "erase", "mask:0.4")
TIMES = ("seconds", "images_per_second")
Flags = Sequence[str | Path]

SMALL = ["--data", "digits", "--limit-train", "300", "--limit-test", "100", "--device", "cpu"]
SHORT = [*SMALL, "--epochs", "2", "--batch-size", "64", "--no-dvclive"]
CONTIGUOUS = ["--no-channels-last"]
"""Flag of everything but a few digests in channels-last, the default."""


def of_run(path: Path) -> dict[str, str]:
    """Return the digests of a run's weights and of its history without times."""
    with (path / "history.csv").open(newline="") as stream:
        rows = [{key: value for key, value in row.items() if key not in TIMES} for row in csv.DictReader(stream)]
    return {
        "weights": hashlib.sha256((path / "model.safetensors").read_bytes()).hexdigest(),
        "history": hashlib.sha256(json.dumps(rows).encode()).hexdigest(),
    }


def stores(work: Path, teacher: Path) -> dict[str, str]:
    """Return the digest of a store for each encoding and each recipe."""
    fast = ["cache-teacher", *SMALL, "--order", "dataset", "--teacher", f"run:{teacher}", "--views", "2"]
    cache = [*fast, *CONTIGUOUS]
    found = {}
    for encoding in ENCODINGS:
        out = work / f"{encoding}.zarr"
        in_process(*cache, "--encoding", encoding, "--out", out)
        found[f"store {encoding}"] = open_store(out).digest
    for recipe in RECIPES:
        out = work / f"recipe{RECIPES.index(recipe)}.zarr"
        in_process(*cache, "--recipe", recipe, "--out", out)
        found[f"store {recipe}"] = open_store(out).digest
    out = work / "signals.zarr"
    in_process(*cache, "--signals", "features:penultimate,layer3+attention:layer2", "--out", out)
    found["store with signals"] = open_store(out).digest
    out = work / "fast.zarr"
    in_process(*fast, "--out", out)
    found["channels-last: store"] = open_store(out).digest
    return found


def students(work: Path, teacher: Path) -> dict[str, str]:
    """Return the digests of short trainings."""
    cached: Flags = ("--store", work / "fp16.zarr")
    fleet = work / "fleet.yaml"
    fleet.write_text("- {name: a, student: resnet8}\n- {name: b, student: resnet8, loss: dist, seed: 1}\n")
    alone: dict[str, Flags] = {
        "kd": cached,
        "kd, curves": [*cached, "--loss", "kd", "--temperature", "linear:4,2", "--kd-weight", "cosine:0.9,0.1"],
        "dkd, standardized": [*cached, "--loss", "dkd:alpha=1,beta=4,standardize=true"],
        "two losses": [*cached, "--loss", "kd:weight=0.5,temperature=2+dist:weight=1"],
        "features and attention": [
            *("--store", work / "signals.zarr"),
            *("--loss", "kd+features:layer3,weight=1+attention:layer2"),
        ],
        "mixup": ("--store", work / "recipe1.zarr"),
        "live": ["--teacher", f"run:{teacher}"],
        "adversarial": [*cached, "--adversarial", "pgd:8/255,2"],
        "rotation": [*cached, "--aux", "rotation"],
        "validation": [*cached, "--validation", "0.2"],
        "labels alone, adamw, ema": ["--optimizer", "adamw", "--ema", "0.9", "--label-smoothing", "0.1", "--balance"],
    }
    found = {"teacher": of_run(teacher)}
    for name, flags in alone.items():
        out = work / "runs" / name
        in_process("train-student", *SHORT, "--student", "resnet8", *flags, *CONTIGUOUS, "--out", out)
        found[name] = of_run(out)
    for name, flags in {"kd": cached, "adversarial": alone["adversarial"], "live": alone["live"]}.items():
        out = work / "fast" / name
        in_process("train-student", *SHORT, "--student", "resnet8", *flags, "--out", out)
        found[f"channels-last, {name}"] = of_run(out)
    found["resumed"] = resumed(work, cached)
    in_process("train-student", *SHORT, "--fleet", fleet, *cached, *CONTIGUOUS, "--out", work / "fleet")
    found |= {f"fleet member {name}": of_run(work / "fleet" / name) for name in ("a", "b")}
    return {f"{name}: {what}": digest for name, each in found.items() for what, digest in each.items()}


def resumed(work: Path, flags: Flags) -> dict[str, str]:
    """Return the digests of a run that was stopped after its first checkpoint, and resumed."""
    out = work / "runs/resumed"
    flags = [*flags, *CONTIGUOUS, "--checkpoint-every", "0"]
    command = ["train-student", *SHORT, "--student", "resnet8", *flags, "--out", out]
    process = subprocess.Popen([sys.executable, "-m", "kdpipe", *map(str, command)])
    while not (out / "checkpoint.pt").exists():
        if process.poll() is not None:
            raise RuntimeError("the run ended before it could be stopped")
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    if process.wait() != 128 + signal.SIGTERM:
        raise RuntimeError("the run was not stopped")
    in_process(*command, "--resume")
    return of_run(out)


def views() -> dict[str, str]:
    """Return the digest of the pixels of each recipe."""
    digits = dataset.load("digits", "train", 60)
    geometry = Geometry(24, 24, "bilinear")
    found = {}
    for recipe in (f"{name}{mixing}" for name in OPERATIONS for mixing in ("", "+mixup:0.2", "+cutmix:1")):
        pixels = Renderer(digits, recipe, seed=3, geometry=geometry, device=torch.device("cpu"))(np.arange(60), 1)
        found[f"pixels {recipe}"] = hashlib.sha256(pixels.numpy().tobytes()).hexdigest()
    return found


def record() -> dict[str, str]:
    """Return every digest by name."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        teacher = work / "teacher"
        in_process("train-teacher", *SHORT, *CONTIGUOUS, "--model", "resnet14", "--out", teacher)
        return {**stores(work, teacher), **students(work, teacher), **views()}


def table(before: dict[str, str], after: dict[str, str]) -> bool:
    """Print both records; return whether they are equal."""
    for name in {**before, **after}:
        old, new = (each.get(name, "missing")[:16] for each in (before, after))
        print(f"{name:60} {old:16} {new:16} {'same' if before.get(name) == after.get(name) else 'DIFFERS'}")
    same = sum(before.get(name) == after.get(name) for name in before)
    print(f"{same} of {len(before)} digests are the same")
    return before == after


def main() -> None:
    """Record or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--compare", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    found = record()
    if given.out is not None:
        command = f"python benchmarks/unchanged.py --out {given.out}"
        given.out.write_text(json.dumps({"command": command, "torch": torch.__version__, "digests": found}, indent=1))
    if given.compare is not None and not table(json.loads(given.compare.read_text())["digests"], found):
        sys.exit(1)


if __name__ == "__main__":
    main()

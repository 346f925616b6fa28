"""Planted wrong labels that `kdpipe audit` finds among the first samples that it shows.

    python benchmarks/audit.py --data folder:CIFAR10 --weights WEIGHTS --limit-train 10000

The teacher was trained on the right labels. Its store has 4 augmented views; labels of random samples are then replaced
by random others. For comparison the samples are also ordered by the margin in the plain view alone, and by the mean
probability of the label. Writes benchmarks/results/audit.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from timing import machine

from kdpipe import dataset, open_store
from kdpipe.pairing.audit import Margins, audit

RECIPES = ("crop-flip", "rrc-flip:0.5")


def cached(args: argparse.Namespace, recipe: str, out: Path) -> None:
    """Make a store with 4 augmented views."""
    command = ("cache-teacher", "--data", args.data, "--teacher", args.teacher, "--weights", args.weights)
    more = ("--limit-train", str(args.limit_train), "--limit-test", "1000", "--views", "4", "--recipe", recipe)
    subprocess.run([sys.executable, "-m", "kdpipe", *command, *more, "--out", str(out)], check=True)


def measure(args: argparse.Namespace, path: Path, seed: int) -> dict[str, Any]:
    """Return the numbers of planted labels among the first samples, by the score that orders them."""
    train, store = dataset.load(args.data, "train", args.limit_train), open_store(path)
    random = np.random.default_rng(seed)
    planted = random.choice(len(train), args.planted, replace=False)
    labels = train.labels.copy()
    labels[planted] = (labels[planted] + random.integers(1, len(train.classes), args.planted)) % len(train.classes)
    found = audit(store, replace(train, labels=labels))
    rows = dataset.find_ids(train.sample_ids, store.sample_ids)
    plain = Margins.of(store.logits(rows), labels)
    orders = {
        "audit": found.indices,
        "plain view": np.argsort(plain.margin, kind="stable"),
        "mean probability": found.indices[np.argsort(found.of_label, kind="stable")],
    }
    hits = {name: int(np.isin(order[: args.shown], planted).sum()) for name, order in orders.items()}
    return {"seed": seed, "found": hits, "suspects": found.suspects, "accuracies": found.accuracies}


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--teacher", default="resnet20")
    parser.add_argument("--weights", required=True)
    parser.add_argument("--limit-train", type=int, default=10_000)
    parser.add_argument("--planted", type=int, default=200)
    parser.add_argument("--shown", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "audit.json")
    args = parser.parse_args()
    command = "python benchmarks/audit.py --data folder:CIFAR10 --weights cifar10-resnet20.safetensors"
    result: dict[str, Any] = {"command": f"{command} --limit-train {args.limit_train}", "machine": machine()}
    result |= {"samples": args.limit_train, "planted": args.planted, "shown": args.shown, "recipes": {}}
    with tempfile.TemporaryDirectory() as folder:
        for number, recipe in enumerate(RECIPES):
            path = Path(folder) / f"{number}.zarr"
            cached(args, recipe, path)
            result["recipes"][recipe] = [measure(args, path, seed) for seed in range(args.seeds)]
            print(recipe, json.dumps(result["recipes"][recipe], indent=1))
    args.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""Accuracy of students that learn from ``klt``, against students that learn from float32, on CIFAR-10.

    python benchmarks/encoding_accuracy.py --data folder:PATH/cifar10 --weights PATH/cifar10-resnet20.safetensors

The teacher's views of a class-balanced subset are cached in each encoding, and students of the same seeds are trained
from each store with ``kd`` at one temperature. Runs of equal seed start from equal weights and see equal pixels in
equal order, so that only the soft targets differ. Finished
runs in ``--work`` are kept. Writes benchmarks/results/encoding_accuracy.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from commands import describe, kdpipe

from kdpipe.stages.provenance import git_revision, versions

ENCODINGS = ("fp32", "klt:0.6")
"""The reference, and a step that keeps the KL near 1e-3 from T = 1 to 4."""
RESULT = Path(__file__).parent / "results" / "encoding_accuracy.json"


def main() -> None:
    """Cache, train, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="CIFAR-10 as kdpipe takes it")
    parser.add_argument("--teacher", default="resnet20")
    parser.add_argument("--weights", required=True)
    parser.add_argument("--student", default="resnet8")
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--views", type=int, default=4)
    parser.add_argument("--temperature", type=float, default=4)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--work", type=Path, default=Path("benchmarks/scratch/encoding_accuracy"))
    parser.add_argument("--result", type=Path, default=RESULT)
    options = parser.parse_args()
    arms = {encoding: trained(encoding, options) for encoding in ENCODINGS}
    reference = arms[ENCODINGS[0]]["top1"]
    for arm in arms.values():
        pairs = zip(arm["top1"], reference, strict=True)
        arm["mean_top1"] = statistics.mean(arm["top1"])
        arm["deviation"] = statistics.stdev(arm["top1"])
        arm["mean_minus_fp32"] = statistics.mean(own - its for own, its in pairs)
    kept = ("teacher", "student", "samples", "epochs", "views", "temperature", "seeds")
    result = {
        "command": "python benchmarks/encoding_accuracy.py --data folder:CIFAR10 --weights "
        "cifar10-resnet20.safetensors",
        "settings": {name: getattr(options, name) for name in kept},
        "encodings": arms,
        "versions": versions(),
        "git_revision": git_revision(),
    }
    options.result.write_text(json.dumps(result, indent=1) + "\n")
    for name, arm in arms.items():
        print(
            f"{name}: {arm['bytes_per_row']:.1f} bytes a row, top-1 {arm['mean_top1']:.2%} "
            f"(deviation {arm['deviation']:.2%}), minus fp32 {arm['mean_minus_fp32']:+.2%}"
        )


def trained(encoding: str, options: argparse.Namespace) -> dict[str, Any]:
    """Cache the teacher in one encoding, train one student for each seed, and return the figures."""
    work = options.work / encoding.replace(":", "-")
    kdpipe(
        *("cache-teacher", "--data", options.data, "--teacher", options.teacher, "--weights", options.weights),
        *("--limit-train", options.samples, "--views", options.views, "--encoding", encoding),
        *("--out", work / "logits.zarr"),
    )
    runs = [work / "runs" / f"seed-{seed}" for seed in options.seeds.split(",")]
    if not all((run / "metrics.json").exists() for run in runs):
        kdpipe(
            *("train-student", "--overwrite", "--data", options.data, "--limit-train", options.samples),
            *("--store", work / "logits.zarr", "--student", options.student, "--loss", "kd"),
            *("--epochs", options.epochs, "--temperature", options.temperature, "--seeds", options.seeds),
            *("--out", work / "runs"),
        )
    store = describe(work / "logits.zarr")["splits"]["train"]
    return {
        "bytes_per_row": store["bytes_per_sample"],
        "fidelity": store["fidelity"],
        "top1": [json.loads((run / "metrics.json").read_text())["test"]["top1"] for run in runs],
    }


if __name__ == "__main__":
    main()

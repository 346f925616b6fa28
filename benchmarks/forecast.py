"""The forecast of `kdpipe plan` against the measured run: seconds of a pass and of an epoch, bytes and files.

    python benchmarks/forecast.py --data folder:PATH/cifar10 --weights PATH/cifar10-resnet20.safetensors \\
        --photos folder:PATH/photos

The second case has a network with random weights, whose times are those of a trained one. Writes results/forecast.json.
The machine should have nothing else to do: a forecast knows nothing of the load to come.
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from commands import describe, kdpipe

from kdpipe.benchmark.machine import machine
from kdpipe.stages.provenance import versions


def main() -> None:
    """Run the cases, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="CIFAR-10 as a folder")
    parser.add_argument("--weights", required=True, help="of a ResNet-20 for it")
    parser.add_argument("--photos", required=True, help="photographs as a folder")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "forecast.json")
    options = parser.parse_args()
    found: dict[str, Any] = {
        "command": "python benchmarks/forecast.py --data folder:PATH/cifar10 "
        "--weights PATH/cifar10-resnet20.safetensors --photos folder:PATH/photos",
        "machine": machine(),
        "versions": dict(versions()),
        "cases": {
            "CIFAR-10": compared(
                ["--data", options.data, "--teacher", "resnet20", "--weights", options.weights, "--views", "1"],
                student="resnet8",
            ),
            "photographs": compared(
                [
                    *("--data", options.photos, "--teacher", "torchvision:resnet18", "--input-size", "224"),
                    *("--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225", "--views", "3"),
                ],
                student="torchvision:mobilenet_v3_small",
            ),
        },
    }
    options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def compared(teaching: list[str], *, student: str) -> dict[str, Any]:
    """Return forecast, measurement and their ratio of each figure."""
    data = teaching[:2]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store, run = folder / "logits.zarr", folder / "run"
        began = time.perf_counter()
        kdpipe("plan", *teaching, "--student", student, "--epochs", 30, "--out", folder / "plan.json")
        seconds = time.perf_counter() - began
        kdpipe("cache-teacher", *teaching, "--out", store)
        kdpipe(
            "train-student", *data, "--store", store, "--student", student, "--epochs", 2, "--no-dvclive", "--out", run
        )
        plan = json.loads((folder / "plan.json").read_text())
        described = describe(store)
        with (run / "history.csv").open(encoding="utf-8", newline="") as stream:
            epochs = [float(row["seconds"]) for row in csv.DictReader(stream)]
        files = [path for array in ("codes", "row_max") for path in store.glob(f"*/{array}/c/**/*") if path.is_file()]
        views = int(teaching[teaching.index("--views") + 1])
        (stored,) = (each for each in plan["stores"] if each["views"] == views)
        figures = {
            "pass seconds": (plan["passes"][0]["seconds"], described["about"]["seconds"]),
            "epoch seconds": (plan["training"]["epoch_seconds"], min(epochs)),
            "bytes": (stored["bytes"], sum(path.stat().st_size for path in store.rglob("c/**/*") if path.is_file())),
            "shard files": (stored["files"], len(files)),
        }
    return {
        "teacher": " ".join(teaching[2:]).replace(teaching[teaching.index("--weights") + 1], "WEIGHTS")
        if "--weights" in teaching
        else " ".join(teaching[2:]),
        "student": student,
        "rows": stored["rows"],
        "seconds_of_the_forecast": seconds,
        "figures": {
            name: {"forecast": before, "measured": after, "ratio": before / after}
            for name, (before, after) in figures.items()
        },
        "plan": plan,
    }


if __name__ == "__main__":
    main()

"""Cost of a checkpoint: the time to write and read it, and its size, for a small and a large student.

    python benchmarks/checkpoint_cost.py

The state is that of SGD with momentum after one step, with and without an average of the weights. Writing includes the
check that the weights are finite and the flush to the disk under the temporary directory. Writes
benchmarks/results/checkpoint_cost.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from timing import machine

from kdpipe import models
from kdpipe.training.failures import not_finite
from kdpipe.training.optimization import Learner
from kdpipe.training.runs import RunDirectory
from kdpipe.training.settings import Optimization

RESULT = Path(__file__).parent / "results" / "checkpoint_cost.json"
REPEATS = 7
STUDENTS = {"resnet8": 32, "torchvision:resnet50": 64}
"""Models by name, with the side of their input in pixels."""


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--result", type=Path, default=RESULT)
    options = parser.parse_args()
    results = [measure(name, side, ema) for name, side in STUDENTS.items() for ema in (None, 0.999)]
    for row in results:
        print(
            f"{row['model']:22} {row['parameters']:12,} parameters, ema {row['ema']}: {row['bytes'] / 1e6:7.1f} MB, "
            f"write {row['write_s']:.3f} s, read {row['read_s']:.3f} s"
        )
    found = {"command": "python benchmarks/checkpoint_cost.py", "machine": machine(), "checkpoints": results}
    options.result.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def measure(name: str, side: int, ema: float | None) -> dict[str, Any]:
    """Return the medians of one model."""
    module = models.create(name, 10)
    device = torch.device("cpu")
    learner = Learner(module, Optimization(ema=ema), device=device, beside=torch.nn.ModuleDict())
    images = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    learner.step(learner.forward(images).square().mean(), rate=0.1)
    with tempfile.TemporaryDirectory() as folder:
        run = RunDirectory(Path(folder))

        def write() -> None:
            assert not_finite(module) is None
            run.save_checkpoint({"format": 2, **learner.state()})

        return {
            "model": name,
            "parameters": models.count_parameters(module),
            "ema": ema,
            "write_s": _median(write),
            "read_s": _median(run.load_checkpoint),
            "bytes": run.checkpoint.stat().st_size,
        }


def _median(call: Callable[[], object]) -> float:
    seconds = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return round(statistics.median(seconds), 4)


if __name__ == "__main__":
    main()

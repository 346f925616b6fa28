"""Latency of three networks by engine, precision, threads and batch size, in interleaved rounds.

    python benchmarks/engines.py

Trains each network for a moment on digits, so that the files are those of runs, and has `kdpipe benchmark` time them
all. For comparison it has independent code: the median CPU time by torch.utils.benchmark of the same eager networks.
Writes benchmarks/results/engines.json, without the raw rounds.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from commands import kdpipe
from torch.utils import benchmark

from kdpipe import durable, models

RESULT = Path(__file__).parent / "results" / "engines.json"
NETWORKS = ("resnet8", "resnet20", "MobileNetV2")
KEYS = ("architecture", "engine", "precision", "threads", "batch_size")
FIGURES = (
    *("rounds", "repeats", "p50_ms", "p50_interval_95_ms", "p95_ms", "cpu_ms", "wall_over_cpu"),
    *("largest_difference", "top1_agreement"),
)
START = ("load_ms", "libraries_bytes", "peak_bytes")


def main() -> None:
    """Train, time, compare with independent code, and write the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--engines", default="eager,compile,onnx,openvino")
    parser.add_argument("--precisions", default="fp32,int8")
    parser.add_argument("--threads", default="1")
    parser.add_argument("--batch-sizes", default="1,8,64")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--started", default="eager,onnx,openvino", help="engines whose load time is measured")
    parser.add_argument("--work", type=Path, default=Path("benchmarks/scratch/engines"))
    options = parser.parse_args()

    data = ("--data", "digits", "--device", "cpu")
    runs = {name: options.work / "runs" / name for name in NETWORKS}
    for name, run in runs.items():
        if not (run / "metrics.json").exists():
            flags = ("--epochs", 1, "--input-size", 32, "--no-dvclive", "--overwrite")
            kdpipe("train-student", *data, "--student", name, *flags, "--out", run)
    measured = ("benchmark", *data, *(part for run in runs.values() for part in ("--run", run)))
    measured += ("--precisions", options.precisions, "--batch-sizes", options.batch_sizes)
    timed, started = options.work / "timed", options.work / "started"
    times = ("--engines", options.engines, "--threads", options.threads, "--rounds", options.rounds)
    kdpipe(*measured, *times, "--no-cold-starts", "--out", timed)
    kdpipe(*measured, "--engines", options.started, "--threads", 1, "--rounds", 1, "--out", started)
    found = json.loads((timed / "metrics.json").read_text())
    starts = json.loads((started / "metrics.json").read_text())["timings"]
    result = {
        "command": "python benchmarks/engines.py",
        "machine": found["machine"],
        "load": found["load"],
        "notes": found["timing_notes"],
        "costs": [{key: each[key] for key in each if key != "structure"} for each in found["costs"]],
        "timings": [{key: _short(each[key]) for key in (*KEYS, *FIGURES)} for each in found["timings"]],
        "starts": [{key: _short(each[key]) for key in (*KEYS, *START)} for each in starts],
        "torch_utils_benchmark_cpu_ms": {name: _independent(name) for name in NETWORKS},
    }
    durable.write_json(RESULT, result)


def _short(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.4g}")
    return [_short(each) for each in value] if isinstance(value, list) else value


def _independent(name: str) -> float:
    """Return the median CPU milliseconds of one eager image on one thread, by torch's own timer."""
    module, images = models.create(name, 10).eval(), torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    statement = "module((images.to(torch.float32) / 255 - 0.5) / 0.25)"
    with torch.inference_mode():
        given = {"module": module, "images": images, "torch": torch}
        timer = benchmark.Timer(statement, globals=given, num_threads=1, timer=time.process_time)
        return float(f"{timer.blocked_autorange(min_run_time=2).median * 1e3:.4g}")


if __name__ == "__main__":
    main()

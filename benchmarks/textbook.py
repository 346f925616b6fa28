"""Collect the figures of an example that was reproduced, and time its networks.

    python benchmarks/textbook.py FOLDER --case mnist --student runs/soft --student runs/hard

FOLDER is a copy of an example after ``dvc repro``. Writes results/textbook_CASE.json. Accuracies are those of
the run directories. All networks, and any ``--network NAME:SIZE`` besides, are timed in eager PyTorch and in ONNX
Runtime, those of tensors in PyTorch alone: one item, one thread, weights as they are drawn, the networks in turn in
each round. Times are of the process's CPU, which other programs affect less than the wall clock.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from kdpipe import models, open_store
from kdpipe.benchmark.machine import machine
from kdpipe.dataset.forms import Form
from kdpipe.models import Preset
from kdpipe.models.inputs import InputSize, adapt, noise, parse_preset
from kdpipe.stages.provenance import versions

ROUNDS, PASSES = 20, 3
PLAIN = ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def main() -> None:
    """Write the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--case", required=True, help="name of the result")
    parser.add_argument("--student", action="append", required=True, help="run directory, of --seeds or of one run")
    parser.add_argument("--teacher", help="run directory of the teacher's seeds (default: the store's figure)")
    parser.add_argument("--network", action="append", default=[], help="NAME:SIZE, timed as well")
    options = parser.parse_args()
    sys.path.append(str(options.folder.resolve()))
    torch.set_num_threads(1)
    store = open_store(options.folder / "data" / "teacher.zarr")
    teacher = store.manifest.fingerprint.teacher
    found: dict[str, Any] = {
        "command": "python benchmarks/textbook.py " + " ".join(sys.argv[1:]).replace(str(options.folder), "FOLDER"),
        "params": yaml.safe_load((options.folder / "params.yaml").read_text(encoding="utf-8")),
        "teacher": {
            "model": teacher.name,
            "size": parse_preset(teacher.preset).size,
            "top1": store.manifest.about.get("teacher_test_top1"),
        },
        "test_samples": open_store(options.folder / "data" / "teacher.zarr", split="test").num_samples,
        "store": {"samples": store.num_samples, "views": store.num_views, "bytes": _size(options.folder)},
        "students": {Path(path).name: _student(options.folder / path) for path in options.student},
        "versions": dict(versions()),
        "machine": machine(),
    }
    if options.teacher:
        found["teacher"] |= _student(options.folder / options.teacher)
    sizes = {each["model"]: each["size"] for each in (found["teacher"], *found["students"].values())}
    sizes |= {name: int(size) for name, _, size in (each.rpartition(":") for each in options.network)}
    found["networks"] = _networks(sizes, num_classes=store.num_classes)
    out = Path(__file__).parent / "results" / f"textbook_{options.case}.json"
    out.write_text(json.dumps(found, indent=1, default=Form.describe) + "\n", encoding="utf-8")


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in (folder / "data" / "teacher.zarr").rglob("*") if path.is_file())


def _student(path: Path) -> dict[str, Any]:
    """Return the accuracies of a run, or of its seed runs that are finished."""
    seeds = sorted(seed.parent for seed in path.glob("seed-*/metrics.json")) or [path]
    records = [json.loads((seed / "run.json").read_text()) for seed in seeds]
    metrics = [json.loads((seed / "metrics.json").read_text()) for seed in seeds]
    top1 = [each["test"]["top1"] for each in metrics]
    return {
        "model": records[0]["model"],
        "size": parse_preset(records[0]["preset"]).size,
        "distill": records[0]["distill"],
        "samples": records[0]["samples"],
        "epochs": metrics[0]["epochs"],
        "seeds": [record["seeds"]["seed"] for record in records],
        "top1": {
            "mean": statistics.fmean(top1),
            "std": statistics.stdev(top1) if len(top1) > 1 else None,
            "values": top1,
        },
        "weights": [each["weights"]["model.safetensors"] for each in metrics],
    }


def _networks(sizes: dict[str, InputSize], *, num_classes: int) -> dict[str, Any]:
    """Return the cost of one item for each network, at its size."""
    passes: dict[tuple[str, str], Callable[[], object]] = {}
    found: dict[str, Any] = {}
    for name, size in sizes.items():
        module = models.create(name, num_classes).eval()
        if isinstance(size, Form):
            adapt(module)
        found[name] = {
            "size": size,
            "parameters": models.count_parameters(module),
            "macs": models.macs(module, size),
            "cpu_ms": {},
        }
        for engine, make in ENGINES.items():
            if engine == "eager" or isinstance(size, int):
                passes[name, engine] = make(module, size)
    times: dict[tuple[str, str], list[float]] = {key: [] for key in passes}
    with torch.inference_mode():
        for _ in range(ROUNDS + 1):  # the first is the warm-up
            for key, run in passes.items():
                began = time.process_time()
                for _ in range(PASSES):
                    run()
                times[key].append((time.process_time() - began) / PASSES * 1e3)
    for (name, engine), values in times.items():
        found[name]["cpu_ms"][engine] = statistics.median(values[1:])
    return found


def _eager(module: torch.nn.Module, size: InputSize) -> Callable[[], object]:
    items = noise(size, 1)
    return lambda: module(items)


def _onnx(module: torch.nn.Module, size: InputSize) -> Callable[[], object]:
    from kdpipe.export.onnx import Session, onnx_bytes

    assert isinstance(size, int)
    session = Session(onnx_bytes(module, Preset(size, size, "bilinear", *PLAIN)), threads=1)
    images = np.random.default_rng(0).integers(0, 256, (1, 3, size, size), dtype=np.uint8)
    return lambda: session(images)


ENGINES: dict[str, Callable[[torch.nn.Module, InputSize], Callable[[], object]]] = {"eager": _eager, "onnx": _onnx}
"""Returns a function that passes one item through a network, by the name of the engine."""

if __name__ == "__main__":
    main()

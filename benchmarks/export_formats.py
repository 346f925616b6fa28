"""Exported files of one network: bytes, test accuracy and difference from PyTorch, in fp32 and int8.

    python benchmarks/export_formats.py --data folder:PATH/cifar10 --weights PATH/cifar10-resnet20.safetensors

Int8 is calibrated with 16, 256 and 1,024 training images, each drawn by three seeds, and with weights of 7 and 8 bits.
Writes benchmarks/results/export_formats.json.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnxruntime
import openvino
from timing import machine

from kdpipe import dataset, models
from kdpipe.export import checks, formats
from kdpipe.export.formats import Artifact, Network
from kdpipe.export.images import calibration_images
from kdpipe.export.onnx import Session, quantized
from kdpipe.models import Preset
from kdpipe.stages.provenance import git_revision, versions

RESULT = Path(__file__).parent / "results" / "export_formats.json"
CALIBRATION = (16, 256, 1024)
SEEDS = (0, 1, 2)


def main() -> None:
    """Write a network in every format, test each, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="CIFAR-10 as kdpipe takes it")
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--weights", required=True)
    parser.add_argument("--result", type=Path, default=RESULT)
    options = parser.parse_args()
    train, test = (dataset.load(options.data, split) for split in ("train", "test"))
    classes = train.classes
    model = models.load(options.model, num_classes=len(classes), weights=options.weights, fallback_statistics=None)
    assert isinstance(model.preset, Preset), "images"
    network = Network(model, Path(options.weights).read_bytes(), classes, {})
    artifacts: dict[tuple[Any, ...], Artifact] = {}
    for artifact in formats.write(network, formats.FORMATS.names):
        artifacts[artifact.format, "fp32"] = artifact
    for count in CALIBRATION:
        for seed in SEEDS:
            images = calibration_images(train, model.preset, count=count, seed=seed)
            for artifact in formats.write(replace(network, calibration=images), formats.INT8):
                if artifact.precision == "int8":
                    artifacts[artifact.format, "int8, 7 bits", count, seed] = artifact
            if count == CALIBRATION[1]:
                content = quantized(network.onnx, images, weight_bits=8)
                files = {"model-int8.onnx": content}
                wide = Artifact("onnx", "int8", files, Session(content, 1), "", ())
                artifacts["onnx", "int8, 8 bits", count, seed] = wide
    tested = checks.measure(list(artifacts.values()), model, test)
    rows = [_row(key, artifact, figures) for key, (artifact, figures) in zip(artifacts, tested.artifacts, strict=True)]
    result = {
        "command": "python benchmarks/export_formats.py --data folder:CIFAR10 --weights cifar10-resnet20.safetensors",
        "images": len(test),
        "run": {"top1": tested.run.top1},
        "artifacts": rows,
        "machine": machine(),
        "versions": {**versions(), "onnxruntime": onnxruntime.__version__, "openvino": openvino.__version__},
        "revision": git_revision(),
    }
    options.result.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    for row in rows:
        print(row)


def _row(key: tuple[Any, ...], artifact: Artifact, figures: checks.Figures) -> dict[str, Any]:
    return {
        "format": key[0],
        "precision": key[1],
        "calibration": key[2] if len(key) > 2 else None,
        "seed": key[3] if len(key) > 3 else None,
        "bytes": artifact.bytes,
        "top1": figures.top1,
        "agreement": figures.agreement,
        "largest_logit_difference": figures.difference,
    }


if __name__ == "__main__":
    main()

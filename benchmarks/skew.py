"""Class-balanced sampling on a skewed training set: recalls with and without --balance.

    python benchmarks/skew.py

The training digits are laid out as an image folder with all images of the 0 and few of each other digit; the test
digits stay as they are. Takes about a minute. Writes benchmarks/results/skew.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from commands import kdpipe
from finished import spread
from PIL import Image
from timing import machine

from kdpipe import dataset, durable, models
from kdpipe.models import Preset
from kdpipe.training.evaluation import predict
from kdpipe.views import Geometry, Renderer

RESULT = Path(__file__).parent / "results" / "skew.json"


def main() -> None:
    """Train with and without balance for each seed, and write the recalls."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kept", type=int, default=7, help="images of each digit but 0")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--work", type=Path, default=Path("benchmarks/scratch/skew"))
    options = parser.parse_args()

    images = options.work / "data"
    kept = _lay_out(images, kept=options.kept)
    recalls: dict[str, list[list[float]]] = {}
    for way, flags in {"as they are": (), "balanced": ("--balance",)}.items():
        for seed in options.seeds:
            out = options.work / f"{way.replace(' ', '-')}-{seed}"
            kdpipe(
                *(
                    "train-teacher",
                    "--overwrite",
                    "--data",
                    f"folder:{images}",
                    "--model",
                    "resnet8",
                    "--epochs",
                    options.epochs,
                ),
                *("--batch-size", options.batch_size, "--seed", seed, "--data-seed", seed, "--no-dvclive"),
                *(*flags, "--out", out),
            )
            recalls.setdefault(way, []).append(_recalls(out, f"folder:{images}"))
    result = {
        "command": "python benchmarks/skew.py",
        "machine": machine(),
        "training_images_by_class": kept,
        **{name: getattr(options, name) for name in ("epochs", "batch_size", "seeds")},
        "recall": {
            way: {
                "of_0": spread([found[0] for found in each]),
                "of_others": spread([float(np.mean(found[1:])) for found in each]),
            }
            for way, each in recalls.items()
        },
    }
    durable.write_json(RESULT, result)
    print(json.dumps(result["recall"], indent=2))


def _lay_out(root: Path, *, kept: int) -> list[int]:
    """Write the digits as files, and return how many there are of each to train on."""
    counts = [0] * 10
    for split in ("train", "test"):
        digits = dataset.load("digits", split)
        for index, label in enumerate(digits.labels.tolist()):
            if split == "train":
                if label and counts[label] == kept:
                    continue
                counts[label] += 1
            path = root / split / str(label) / f"{index:04}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(digits.image(index).numpy().transpose(1, 2, 0)).save(path)
    return counts


def _recalls(run: Path, data: str) -> list[float]:
    """Return the share of each class's test images that the trained model finds."""
    record = json.loads((run / "run.json").read_text())
    preset = Preset.parse(record["preset"])
    weights = run / "model.safetensors"
    model = models.load(
        "resnet8", num_classes=10, weights=weights, fallback_statistics=lambda: (preset.mean, preset.std)
    )
    test = dataset.load(data, "test")
    logits = predict(
        model.module, Renderer(test, "none", seed=0, geometry=Geometry.of(model.preset)), preset=model.preset
    )
    found = logits.argmax(axis=1)
    return [float((found[test.labels == label] == label).mean()) for label in range(10)]


if __name__ == "__main__":
    main()

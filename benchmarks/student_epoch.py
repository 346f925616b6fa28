"""What reading soft targets costs a student: epochs with a store against the same epochs with none read.

    python benchmarks/student_epoch.py --data folder:PATH/cifar10 --store PATH/logits.zarr

The same student trains on the same views in the same order with the same loss. One way takes its soft targets from
the store (planes decoded, rows gathered and decoded, the next plane prefetched); the other is handed a tensor that
is in memory already. A third way has no distillation loss at all. Times are of whole short trainings, the first
plane and the checkpoints included. Writes benchmarks/results/student_epoch.json.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from timing import interleaved, machine, ratio

from kdpipe import dataset, models
from kdpipe.store import join_checked, open_store
from kdpipe.student import CachedTargets, Distillation, RunDirectory, Schedule, make, train
from kdpipe.student.targets import SoftTargets
from kdpipe.views import Geometry, Renderer
from stages.sources import load_model

RESULT = Path(__file__).parent / "results" / "student_epoch.json"


class Unread:
    """Soft targets that cost nothing: rows of one tensor, whatever the samples."""

    def __init__(self, classes: int, *, batch_size: int, device: torch.device) -> None:
        """Draw the tensor once."""
        self._logits = torch.randn(batch_size, classes, generator=torch.Generator().manual_seed(0)).to(device)

    def start_epoch(self, view: int, next_view: int | None) -> None:
        """There is nothing to prepare."""

    def order(self, *, data_seed: int, epoch: int) -> None:
        """Any order will do."""

    def logits(self, indices: npt.NDArray[np.int64], pixels: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        """Return as many rows as there are samples."""
        return self._logits[: len(indices)]


def main() -> None:
    """Measure the three ways in interleaved rounds and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="what the store was made from")
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--student", default="resnet8")
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--work", type=Path, default=Path("benchmarks/scratch/student_epoch"))
    options = parser.parse_args()

    device = models.resolve_device(options.device)
    images = dataset.load(options.data, "train", options.samples)
    store = open_store(options.store)
    rows = join_checked(store, images)
    recipe = store.manifest.fingerprint.recipe

    def seconds(targets: SoftTargets | None) -> float:
        model = load_model(options.student, images)
        renderer = Renderer(images, recipe.name, seed=recipe.seed, geometry=Geometry.of(model.preset), device=device)
        schedule = Schedule(
            epochs=options.epochs,
            batch_size=options.batch_size,
            lr=0.1,
            weight_decay=5e-4,
            warmup_epochs=1,
            data_seed=0,
            views=store.num_views,
        )
        distillation = None
        if targets is not None:
            distillation = Distillation(targets, make("kd", temperature=4.0), kd_weight=0.9, ce_weight=0.1)
        run = RunDirectory(options.work)
        run.path.mkdir(parents=True, exist_ok=True)
        began = time.perf_counter()
        train(
            model.module.to(device),
            renderer,
            preset=model.preset,
            schedule=schedule,
            distillation=distillation,
            run=run,
        )
        return time.perf_counter() - began

    unread = Unread(store.num_classes, batch_size=options.batch_size, device=device)
    ways = {
        "cached": lambda: seconds(CachedTargets(open_store(options.store), rows)),
        "none read": lambda: seconds(unread),
        "no distillation": lambda: seconds(None),
    }
    ways["none read"]()
    taken = interleaved(ways, rounds=options.rounds)
    result = {
        "command": "python benchmarks/student_epoch.py --data folder:CIFAR10 --store logits.zarr",
        "machine": machine(),
        "student": options.student,
        "encoding": store.encoding.name,
        "images_per_training": len(images) * options.epochs,
        "seconds": taken,
        "cached_over_none_read": ratio(taken["cached"], taken["none read"]),
        "cached_over_no_distillation": ratio(taken["cached"], taken["no distillation"]),
    }
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()

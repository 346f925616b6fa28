"""Cost of soft targets in an epoch: cached ones against none read, none at all, and a teacher in the loop.

    python benchmarks/student_epoch.py --data folder:PATH/cifar10 --store PATH/logits.zarr \\
        --teacher resnet20 --weights PATH/cifar10-resnet20.safetensors

The same student trains on the same views in the same order, the whole of each short training timed, its first plane
and its checkpoints included. Its soft targets are read from the store (planes decoded, rows gathered and decoded, the
next plane prefetched); are a tensor that is in memory already; do not exist; or come from the teacher, batch by batch.

What caching can save at most is the teacher's pass: (teacher forward + student step) / student step. Both are measured
in the same rounds as plain loops over batches that are rendered already: the teacher's forward pass, and the student's
forward pass, loss, backward pass and update. Writes benchmarks/results/student_epoch.json.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from timing import interleaved, machine, ratio

from kdpipe import dataset, models
from kdpipe.distil.losses import make
from kdpipe.distil.objective import Distillation, DistillationObjective
from kdpipe.distil.targets import CachedTargets, LiveTargets
from kdpipe.pairing.join import join_checked
from kdpipe.stages.sources import load_model
from kdpipe.store.reader import open_store
from kdpipe.teacher.forward import Forward
from kdpipe.training.batches import Targets
from kdpipe.training.loop import train
from kdpipe.training.objective import cross_entropy
from kdpipe.training.runs import RunDirectory
from kdpipe.training.schedule import Order, epoch_batches
from kdpipe.training.settings import Optimization
from kdpipe.training.trainee import Student
from kdpipe.views import Geometry, Renderer

RESULT = Path(__file__).parent / "results" / "student_epoch.json"


class Unread:
    """Soft targets that cost nothing: rows of one tensor, whatever the samples."""

    renderer = None

    def __init__(self, classes: int, *, batch_size: int, device: torch.device) -> None:
        """Draw the tensor once."""
        self._logits = torch.randn(batch_size, classes, generator=torch.Generator().manual_seed(0)).to(device)

    def start_epoch(self, view: int, next_view: int | None) -> None:
        """There is nothing to prepare."""

    def order(self, samples: npt.NDArray[np.int64], *, data_seed: int, epoch: int) -> None:
        """Any order will do."""

    def skip(self, samples: int) -> None:
        """Nothing is lined up."""

    def logits(self, indices: npt.NDArray[np.int64], pixels: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        """Return as many rows as there are samples."""
        return self.rows(len(indices))

    def take(
        self, indices: npt.NDArray[np.int64], pixels: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the rows, and no signals of layers."""
        return self.logits(indices, pixels), {}

    def rows(self, count: int) -> torch.Tensor:
        """Return the first rows."""
        return self._logits[:count]


def main() -> None:
    """Measure the three ways in interleaved rounds and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="what the store was made from")
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--weights", required=True, help="the teacher's")
    parser.add_argument("--student", default="resnet8")
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--work", type=Path, default=Path("benchmarks/scratch/student_epoch"))
    parser.add_argument("--result", type=Path, default=RESULT)
    options = parser.parse_args()

    device = models.resolve_device(options.device)
    images = dataset.load(options.data, "train", options.samples)
    store = open_store(options.store)
    rows = join_checked(store, images)
    recipe = store.manifest.fingerprint.recipe

    def seconds(targets: Targets | None) -> float:
        model = load_model(options.student, images)
        renderer = Renderer(images, recipe.name, seed=recipe.seed, geometry=Geometry.of(model.preset), device=device)
        settings = Optimization(
            epochs=options.epochs, batch_size=options.batch_size, lr=0.1, weight_decay=5e-4, warmup_epochs=1
        )
        distillation = None
        if targets is not None:
            distillation = Distillation(make("kd", temperature=4.0), kd_weight=0.9, ce_weight=0.1)
        run = RunDirectory(options.work)
        run.path.mkdir(parents=True, exist_ok=True)
        began = time.perf_counter()
        objective = DistillationObjective(model.preset, distillation)
        student = Student(model.module.to(device), renderer, objective, settings, run)
        train(student, targets, order=Order(data_seed=0, views=store.num_views))
        return time.perf_counter() - began

    teacher = load_model(options.teacher, images, weights=options.weights)
    forward = Forward(teacher, device=device)
    unread = Unread(store.num_classes, batch_size=options.batch_size, device=device)
    student = load_model(options.student, images)
    assert Geometry.of(student.preset) == Geometry.of(teacher.preset), "teacher and student see the same pixels"
    student.module.to(device).train()
    optimizer = torch.optim.SGD(student.module.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    renderer = Renderer(images, recipe.name, seed=recipe.seed, geometry=Geometry.of(student.preset), device=device)
    order = epoch_batches(len(images), batch_size=options.batch_size, data_seed=0, epoch=0)
    rendered = [renderer(batch, 1) for batch in order]
    labels = [torch.from_numpy(images.labels[batch].astype(np.int64)).to(device) for batch in order]
    loss = make("kd", temperature=4.0)

    def update(pixels: torch.Tensor, truth: torch.Tensor) -> None:
        logits = student.module(student.preset.normalize(pixels))
        total = 0.9 * loss(logits, unread.rows(len(pixels)), truth) + 0.1 * cross_entropy(logits, truth)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(total)
        optimizer.step()

    def timed(step: Callable[[torch.Tensor, torch.Tensor], object]) -> float:
        began = time.perf_counter()
        for _ in range(options.epochs):
            for pixels, truth in zip(rendered, labels, strict=True):
                step(pixels, truth)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - began

    ways = {
        "cached": lambda: seconds(CachedTargets(open_store(options.store), rows)),
        "none read": lambda: seconds(unread),
        "no distillation": lambda: seconds(None),
        "live": lambda: seconds(LiveTargets(forward, None)),
        "teacher forward": lambda: timed(lambda pixels, _truth: forward(pixels)),
        "student step": lambda: timed(update),
    }
    ways["none read"]()
    taken = interleaved(ways, rounds=options.rounds)
    ideal = [pass_ + step for pass_, step in zip(taken["teacher forward"], taken["student step"], strict=True)]
    speedups = [live / cached for live, cached in zip(taken["live"], taken["cached"], strict=True)]
    ideals = [whole / step for whole, step in zip(ideal, taken["student step"], strict=True)]
    result = {
        "command": (
            "python benchmarks/student_epoch.py --data folder:CIFAR10 --store logits.zarr "
            f"--teacher {options.teacher} --weights {Path(options.weights).name}"
        ),
        "machine": machine(),
        "teacher": options.teacher,
        "student": options.student,
        "encoding": store.encoding.name,
        "images_per_training": len(images) * options.epochs,
        "seconds": taken,
        "cached_over_none_read": ratio(taken["cached"], taken["none read"]),
        "cached_over_no_distillation": ratio(taken["cached"], taken["no distillation"]),
        "live_over_cached": ratio(taken["live"], taken["cached"]),
        "ideal_live_over_cached": ratio(ideal, taken["student step"]),
        "live_over_cached_of_ideal": ratio(speedups, ideals),
    }
    options.result.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()

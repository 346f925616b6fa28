"""Speed-up of four students trained together over one after the other, against the largest possible.

    python benchmarks/fleet.py --data folder:PATH/cifar10 --photos PATH/photos

A fleet shares the time of the data and nothing else. With ``d`` the seconds that a batch takes to be drawn and rendered
and ``s`` those of a student's step, ``n`` students can be trained at most

- ``n (d + s) / (d + n s)`` times faster where images are in memory: they are rendered between the steps;
- ``n max(d, s) / max(d, n s)`` times faster where they are streamed: worker processes decode and render them meanwhile.

Both are measured in the same rounds as the trainings: ``d`` by drawing the batches of the same epochs and doing nothing
with them, ``s`` by a plain PyTorch loop (forward, cross-entropy, backward, SGD) over batches that are rendered already.
The second formula holds where the workers leave the training its processors: by default it has one, and they have the
others, so the machine must have nothing else to do. Trainings include their checkpoints and histories, but not loading
the data and models, nor the start of the workers. Nothing is distilled: labels of a store would be one more thing to
share. Photographs are linked ``--copies`` times, so that an epoch is long. Their student is one convolution on pooled
images, because a CPU takes longer for a step of any real network at 224 x 224 than for its photographs; on a GPU pass
``--photo-student torchvision:shufflenet_v2_x0_5``. Writes benchmarks/results/fleet.json.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from timing import interleaved, machine, ratio

from kdpipe import dataset, models
from kdpipe.dataset import Dataset
from kdpipe.models import Model
from kdpipe.stages.provenance import git_revision
from kdpipe.stages.sources import load_model
from kdpipe.training.batches import Batches
from kdpipe.training.loop import Cost, train_together
from kdpipe.training.objective import CrossEntropy
from kdpipe.training.runs import RunDirectory
from kdpipe.training.schedule import Order
from kdpipe.training.settings import Optimization
from kdpipe.training.trainee import Student
from kdpipe.views import Geometry, Renderer

RESULT = Path(__file__).parent / "results" / "fleet.json"
ORDER = Order(data_seed=0, views=None)
TARGET = 0.95
"""Share of the ideal that a fleet should reach."""


def light(num_classes: int) -> torch.nn.Module:
    """Return a network of 0.7 million multiplications, which sees images of 224 x 224 pooled to 28 x 28."""
    layers = torch.nn.Sequential(torch.nn.AvgPool2d(8), torch.nn.Conv2d(3, 32, 3, padding=1))
    layers.extend([torch.nn.BatchNorm2d(32), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()])
    layers.append(torch.nn.Linear(32, num_classes))
    return layers


def main() -> None:
    """Measure the three cases and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="images of 32 x 32 as kdpipe takes them")
    parser.add_argument("--photos", type=Path, help="image folder of photographs; without it, that case is left out")
    parser.add_argument("--student", default="resnet8", help="of the images of 32 x 32")
    parser.add_argument("--photo-student", default="fleet:light")
    parser.add_argument("--students", type=int, default=4)
    parser.add_argument("--samples", type=int, default=2560, help="images of an epoch")
    parser.add_argument("--copies", type=int, default=24, help="of each photograph in an epoch")
    parser.add_argument("--epochs", type=int, default=1, help="of a training")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--photo-batch-size", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1, help="of the training process")
    parser.add_argument("--workers", type=int, help="that decode photographs; by default one for each other processor")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--work", type=Path, default=Path("benchmarks/scratch/fleet"))
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    workers = options.workers or max(1, dataset.processors() - options.threads)
    images = dataset.load(options.data, "train", options.samples, loading="memory")
    cases = {
        recipe: Case(images, recipe, options.student, options.batch_size, options)
        for recipe in ("crop-flip", "rrc-flip+color+trivial")
    }
    if options.photos is not None:
        photos = dataset.load(f"folder:{linked(options)}", "train", loading="stream")
        cases["streamed"] = Case(photos, "rrc-flip", options.photo_student, options.photo_batch_size, options, workers)
    result = {
        "command": f"python benchmarks/fleet.py --data folder:CIFAR10 --photos PHOTOS --workers {workers}",
        "git_revision": git_revision(),
        "machine": machine(),
        "workers": workers,
        "students": options.students,
        "target_of_ideal": TARGET,
        "cases": {name: case.measure(name) for name, case in cases.items()},
    }
    options.out.write_text(json.dumps(result, indent=2) + "\n")


def linked(options: argparse.Namespace) -> Path:
    """Return a folder with ``options.copies`` links to each photograph that is to be trained on."""
    folder: Path = options.work / "photos"
    shutil.rmtree(folder, ignore_errors=True)
    for path in sorted((options.photos / "train").glob("*/*")):
        place = folder / "train" / path.parent.name
        place.mkdir(parents=True, exist_ok=True)
        for number in range(options.copies):
            (place / f"{number}-{path.name}").symlink_to(path.absolute())
    return folder


@dataclass(frozen=True)
class Case:
    """Students of one architecture and several seeds on one dataset."""

    images: Dataset
    recipe: str
    student: str
    batch_size: int
    options: argparse.Namespace
    workers: int | None = None
    """Processes that decode; ``None`` where images are in memory."""

    def measure(self, name: str) -> dict[str, Any]:
        """Time fleet, single trainings, data and steps in interleaved rounds; print and return the figures."""
        print(f"{name}: {self.student}, {self.recipe}", flush=True)
        students, epochs = self.options.students, self.options.epochs
        device = models.resolve_device(self.options.device)
        size = None if self.workers is None else 224
        found = [load_model(self.student, self.images, size=size, seed=seed) for seed in range(students)]
        geometry = Geometry.of(found[0].preset)
        renderer = Renderer(self.images, self.recipe, seed=0, geometry=geometry, device=device, workers=self.workers)
        batches = Batches([renderer], None, order=ORDER, batch_size=self.batch_size, epochs=self.options.epochs)
        step = self._step(found[0], batches)
        ways = {
            "fleet": lambda: self._train(found, renderer, range(students)),
            "alone": lambda: sum(self._train(found, renderer, [seed]) for seed in range(students)),
            "data": lambda: self._data(batches),
            "step": step,
        }
        ways["data"]()  # starts the workers
        taken = interleaved(ways, rounds=self.options.rounds)
        count = batches.steps * epochs
        ideals = [self._ideal(data, step) for data, step in zip(taken["data"], taken["step"], strict=True)]
        speedups = [alone / fleet for alone, fleet in zip(taken["alone"], taken["fleet"], strict=True)]
        ones = [1.0] * len(ideals)
        figures: dict[str, Any] = {
            "student": self.student,
            "recipe": self.recipe,
            "images_per_epoch": len(self.images),
            "batch_size": self.batch_size,
            "seconds": taken,
            "milliseconds_of_data_per_batch": ratio([1e3 * data / count for data in taken["data"]], ones),
            "milliseconds_of_step_per_batch": ratio([1e3 * step / count for step in taken["step"]], ones),
            "ideal_speed_up": ratio(ideals, ones),
            "speed_up": ratio(speedups, ones),
            "share_of_ideal": ratio(speedups, ideals),
        }
        print(
            f"{name}: d {figures['milliseconds_of_data_per_batch']['median']:.2f} ms, "
            f"s {figures['milliseconds_of_step_per_batch']['median']:.2f} ms, "
            f"ideal {figures['ideal_speed_up']['median']:.3f}, measured {figures['speed_up']['median']:.3f}: "
            f"{figures['share_of_ideal']['median']:.1%} of the ideal (target {TARGET:.0%})",
            flush=True,
        )
        return figures

    @property
    def _settings(self) -> Optimization:
        return Optimization(epochs=self.options.epochs, batch_size=self.batch_size)

    def _ideal(self, data: float, step: float) -> float:
        count = self.options.students
        if self.workers is None:
            return float(count * (data + step) / (data + count * step))
        return float(count * max(data, step) / max(data, count * step))

    def _train(self, found: Sequence[Model], renderer: Renderer, seeds: Sequence[int]) -> float:
        students = []
        for seed in seeds:
            run = RunDirectory(self.options.work / f"seed-{seed}")
            run.path.mkdir(parents=True, exist_ok=True)
            module = found[seed].module.to(renderer.device)
            students.append(Student(module, renderer, CrossEntropy(found[seed].preset), self._settings, run))
        began = time.perf_counter()
        trained = train_together(students, order=ORDER)
        seconds = time.perf_counter() - began
        assert all(isinstance(cost, Cost) for cost in trained), trained
        return seconds

    def _data(self, batches: Batches) -> float:
        began = time.perf_counter()
        for epoch in range(self.options.epochs):
            for _ in batches.epoch(epoch)[1]:
                pass
        _wait(batches.device)
        return time.perf_counter() - began

    def _step(self, model: Model, batches: Batches) -> Any:
        """Return what takes as many steps as a training and returns the seconds; it has run once."""
        module = model.module.to(batches.device).train()
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
        rendered = list(batches.epoch(0)[1])

        def seconds() -> float:
            began = time.perf_counter()
            for _ in range(self.options.epochs):
                for batch in rendered:
                    logits = module(model.preset.normalize(batch.pixels[0]))
                    optimizer.zero_grad(set_to_none=True)
                    torch.autograd.backward(F.cross_entropy(logits, batch.labels))
                    optimizer.step()
            _wait(batches.device)
            return time.perf_counter() - began

        seconds()
        return seconds


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()

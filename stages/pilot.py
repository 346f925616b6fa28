"""Measurements on a pilot of a dataset: rendering, teacher, encoding, and the training of a student."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from kdpipe import models
from kdpipe.benchmark.rounds import torch_threads
from kdpipe.dataset import Dataset
from kdpipe.distil.losses import make
from kdpipe.distil.objective import Distillation, DistillationObjective
from kdpipe.distil.targets import LiveTargets
from kdpipe.encoding.base import Encoding
from kdpipe.encoding.chooser import stored_bytes
from kdpipe.models import Model
from kdpipe.models.layout import choose
from kdpipe.stages.console import progress, say
from kdpipe.stages.settings.plan import Plan
from kdpipe.stages.sources import load_model
from kdpipe.teacher.forecast import Rates, Training
from kdpipe.teacher.forward import FrozenTeacher
from kdpipe.training.loop import train
from kdpipe.training.runs import RunDirectory
from kdpipe.training.schedule import Order
from kdpipe.training.settings import Optimization
from kdpipe.training.trainee import Student
from kdpipe.views import Geometry, Renderer, permutation

SECONDS = 20.0
"""A measurement ends after so many seconds, whatever is left of the pilot."""
BATCHES = 16
"""Batches of the pilot, so that there is a steady state."""

STREAM = 0x910A


def draw(train_split: Dataset, params: Plan) -> Dataset:
    """Return the pilot: random training images."""
    drawn = permutation(len(train_split), seed=params.view.seed, stream=STREAM)[: params.forecast.pilot]
    return train_split.subset(np.sort(drawn))


class Clock:
    """A progress that notes when batches were done."""

    def __init__(self) -> None:
        """Note nothing yet."""
        self._marks: list[tuple[float, int]] = []

    @contextmanager
    def __call__(
        self,
        what: str,  # noqa: ARG002
        total: int,  # noqa: ARG002
        unit: str = "images",  # noqa: ARG002
        status: Callable[[], str] | None = None,  # noqa: ARG002
    ) -> Iterator[Callable[[int], None]]:
        """Begin again."""
        self._marks = [(time.perf_counter(), 0)]
        yield self.mark

    def mark(self, rows: int) -> None:
        """Note that so many rows were done since the last call."""
        self._marks.append((time.perf_counter(), rows))

    @property
    def seconds(self) -> float:
        """Seconds since the beginning."""
        return time.perf_counter() - self._marks[0][0]

    @property
    def first(self) -> float:
        """Seconds of the first batch."""
        return self._marks[1][0] - self._marks[0][0]

    def per_row(self, *, ahead: int) -> float:
        """Return the seconds of a row after the first ``ahead`` batches, which were rendered at the same time."""
        steady = self._marks[min(1 + ahead, len(self._marks) - 2) :]
        rows = sum(count for _, count in steady[1:])
        return sum(later - earlier for (earlier, _), (later, _) in pairwise(steady)) / max(1, rows)


def passes(forward: FrozenTeacher, renderer: Renderer, params: Plan) -> tuple[torch.Tensor, float, dict[str, float]]:
    """Return the pilot's logits, the seconds until the first batch, and those of a row of both kinds of views."""
    size = min(params.teacher.batch_size, max(8, len(renderer.dataset) // BATCHES))
    order = permutation(len(renderer.dataset), seed=params.view.seed, stream=STREAM + 1)
    batches = [order[first : first + size] for first in range(0, len(order), size)]
    ahead = 1 if renderer.dataset.in_memory else renderer.workers
    logits, rows, start = [], {}, 0.0
    for name, view in (("plain", 0), ("augmented", min(1, params.view.augmented))):
        clock = Clock()
        shown = progress(f"pilot, {name}", total=len(order), unit=renderer.dataset.unit)
        with shown as advance, clock(name, len(order)) as mark:
            for pixels in renderer.batches(batches, view):
                logits.append(forward(pixels).cpu())
                mark(len(pixels))
                advance(len(pixels))
                if clock.seconds > SECONDS:
                    break
        rows[name] = clock.per_row(ahead=ahead)
        start = start or clock.first
    return torch.cat(logits), start, rows


def rates(
    forward: FrozenTeacher,
    renderer: Renderer,
    encoding: Encoding,
    logits: torch.Tensor,
    *,
    start: float,
    rows: Mapping[str, float],
    params: Plan,
) -> Rates:
    """Return the rates of the three parts; ``start`` and ``rows`` are those of ``passes``."""
    return Rates(
        start=start,
        plain=rows["plain"],
        augmented=rows["augmented"],
        render=_rendering(renderer, view=min(1, params.view.augmented)),
        forward=_forward(forward, renderer, params.teacher.batch_size),
        encode=_encoding_seconds(encoding, logits),
        processes=1 if renderer.dataset.in_memory else renderer.workers,
        shared=forward.device.type == "cpu",
    )


def _rendering(renderer: Renderer, *, view: int) -> float:
    """Return the seconds of a row in one process: for images in memory this one with its threads."""
    rows = np.arange(min(64, len(renderer.dataset)))
    if renderer.dataset.in_memory:
        return _seconds(lambda: renderer(rows, view)) / len(rows)
    with torch_threads():
        torch.set_num_threads(1)
        return _seconds(lambda: renderer(rows, view)) / len(rows)


def _forward(forward: FrozenTeacher, renderer: Renderer, batch_size: int) -> float:
    count = min(batch_size, len(renderer.dataset))
    pixels = renderer(np.arange(count), 0)
    return _seconds(lambda: forward(pixels).cpu()) / count


def _seconds(work: Callable[[], object]) -> float:
    """Return the seconds of some work: the least of as many repetitions as take two seconds, after one for itself."""
    work()
    took: list[float] = []
    while not took or (sum(took) < 2 and len(took) < 50):
        began = time.perf_counter()
        work()
        took.append(time.perf_counter() - began)
    return min(took)


def _encoding_seconds(encoding: Encoding, logits: torch.Tensor) -> float:
    with torch_threads():
        torch.set_num_threads(1)
        return _seconds(lambda: stored_bytes(encoding.encode(logits), encoding.compression)) / len(logits)


def time_training(params: Plan, whole: Dataset, pilot: Dataset, forward: FrozenTeacher) -> Training:
    """Time an epoch of the pilot, with soft targets from memory and from the teacher."""
    asked = params.forecast
    assert asked.student is not None
    classes, recipe, seed = len(whole.classes), params.view.recipe, params.view.seed
    noise = torch.randn(asked.train_batch_size + 1, classes, generator=torch.Generator().manual_seed(0))
    noise = noise.to(forward.device)
    images = Renderer(pilot, recipe, seed=seed, geometry=Geometry.of(forward.preset), device=forward.device)
    ways = {"cached": LiveTargets(lambda pixels: noise[: len(pixels)], None), "live": LiveTargets(forward, images)}
    seconds = {}
    for name, targets in ways.items():
        model = load_model(asked.student, whole, trust_code=params.code.trust_code)
        clock = Clock()
        with TemporaryDirectory() as folder:
            student = _student(model, pilot, params, folder=Path(folder))
            say(f"Timing {asked.student}, {name}.")
            train(
                student,
                targets,
                order=Order(data_seed=0, views=min(1, params.view.augmented)),
                progress=clock,
                checkpoint_every=1e9,
            )
        seconds[name] = clock.per_row(ahead=1)
    return Training(samples=len(whole), epochs=asked.epochs, **seconds)


def _student(model: Model, pilot: Dataset, params: Plan, *, folder: Path) -> Student:
    device = models.resolve_device(params.teacher.device)
    geometry, module = Geometry.of(model.preset), model.module.to(device)
    layout = choose(module, model.preset.size, asked=None, device=device, name=model.name)
    settings = {"epochs": 1, "batch_size": params.forecast.train_batch_size, "channels_last": layout}
    return Student(
        module,
        Renderer(pilot, params.view.recipe, seed=params.view.seed, geometry=geometry, device=device),
        DistillationObjective(model.preset, Distillation(make("kd"), kd_weight=0.9, ce_weight=0.1)),
        Optimization.model_validate(settings),
        RunDirectory(folder),
    )

"""Small students for tests of training: 16 x 16 pixels, a network of two convolutions, and short runs."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from torch import nn

from kdpipe import dataset
from kdpipe.dataset import Dataset
from kdpipe.distil.losses import make
from kdpipe.distil.objective import Distillation, DistillationObjective
from kdpipe.models import Preset
from kdpipe.testing.doubles import small_network
from kdpipe.training.objective import CrossEntropy, Objective
from kdpipe.training.runs import RunDirectory
from kdpipe.training.schedule import Order
from kdpipe.training.settings import Optimization
from kdpipe.training.trainee import Student
from kdpipe.views import Geometry, Renderer

PRESET = Preset(16, 16, "bilinear", (0.3, 0.4, 0.5), (0.2, 0.3, 0.4))
ORDER = Order(data_seed=3, views=2)
SETTINGS = Optimization(epochs=2, batch_size=32, lr=0.05, weight_decay=5e-4, warmup_epochs=1)
SAMPLES, STEPS = 200, 7
"""Samples and steps in an epoch."""


@cache
def digits(samples: int = SAMPLES, split: str = "train") -> Dataset:
    """Return some handwritten digits, loaded once."""
    return dataset.load("digits", split, samples)


def renderer(data: Dataset | None = None, recipe: str = "crop-flip", *, size: int = PRESET.size) -> Renderer:
    """Return a renderer at the students' size."""
    return Renderer(data or digits(), recipe, seed=0, geometry=Geometry(size, size, "bilinear"), workers=1)


def student(
    folder: Path,
    module: nn.Module | None = None,
    *,
    objective: Objective | None = None,
    images: Renderer | None = None,
    settings: Optimization = SETTINGS,
    **others: Any,
) -> Student:
    """Return a student whose run directory is ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    return Student(
        small_network() if module is None else module,
        renderer() if images is None else images,
        CrossEntropy(PRESET, label_smoothing=settings.label_smoothing) if objective is None else objective,
        settings,
        RunDirectory(folder),
        **others,
    )


def taught(loss: Any = None, *, kd_weight: float = 0.9, ce_weight: float = 0.1) -> DistillationObjective:
    """Return the objective of a student that learns from soft targets (default: by KL at temperature 4)."""
    chosen = make("kd", temperature=4.0) if loss is None else loss
    return DistillationObjective(PRESET, Distillation(chosen, kd_weight=kd_weight, ce_weight=ce_weight))

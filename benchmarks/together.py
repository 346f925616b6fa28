"""Students with objectives of their own, trained together on one store's views and tested."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from kdpipe.dataset import Dataset
from kdpipe.metrics.accuracy import accuracy
from kdpipe.models import Model
from kdpipe.pairing.probes import replay
from kdpipe.store.reader import LogitStore
from kdpipe.training.batches import Targets
from kdpipe.training.evaluation import predict
from kdpipe.training.loop import train_together
from kdpipe.training.objective import Objective
from kdpipe.training.runs import RunDirectory
from kdpipe.training.schedule import Order
from kdpipe.training.settings import Optimization
from kdpipe.training.trainee import Student
from kdpipe.views import Geometry, Renderer


def top1_together(
    models: Mapping[str, Model],
    objectives: Mapping[str, Objective],
    *,
    store: LogitStore,
    images: Dataset,
    tests: Dataset,
    targets: Targets,
    order: Order,
    optimization: Optimization,
    folder: Path,
) -> dict[str, float | None]:
    """Train networks of one input size in a fleet, on a CPU, and return the test top-1 of each after the last epoch.

    It is ``None`` where no test sample has a label. The run directories are made in ``folder``, by the names of the
    networks and the seed of ``order``.
    """
    preset = next(iter(models.values())).preset
    geometry, device = Geometry.of(preset), torch.device("cpu")
    renderer = replay(store, images, geometry=geometry, device=device)
    students = []
    for name, model in models.items():
        directory = RunDirectory(folder / f"{name}-{order.data_seed}")
        directory.path.mkdir(parents=True, exist_ok=True)
        students.append(Student(model.module, renderer, objectives[name], optimization, directory))
    train_together(students, targets, order=order, checkpoint_every=float("inf"))
    tester = Renderer(tests, "none", seed=0, geometry=geometry, device=device)
    return {
        name: accuracy(predict(model.module, tester, preset=preset), tests.labels).top1
        for name, model in models.items()
    }

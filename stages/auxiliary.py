"""What the training stages do for an auxiliary task: hook it onto the model."""

from __future__ import annotations

from kdpipe import models
from kdpipe.models import Model
from kdpipe.student import Rotation
from kdpipe.student.rotation import PUBLISHED_WEIGHT
from stages.params import TrainStudent, TrainTeacher


def rotation(params: TrainTeacher | TrainStudent, model: Model) -> Rotation | None:
    """Hook the task onto the model, its head drawn by the run's seed; ``None`` where none is asked for.

    Raises:
        ModelError: the model has no penultimate features.
    """
    if params.aux is None:
        return None
    return Rotation(
        model.module,
        model.preset,
        weight=PUBLISHED_WEIGHT if params.aux_weight is None else params.aux_weight,
        name=model.name,
        seed=params.seed,
        device=models.resolve_device(params.device),
    )

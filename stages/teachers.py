"""Teachers: a model whose images are prepared as its weights, its family, the user or a store say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from kdpipe import models
from kdpipe.dataset import Dataset
from kdpipe.models import Model, Preset
from kdpipe.models.interface import Interface
from kdpipe.models.preset import Statistics, Triple
from kdpipe.stages.console import say
from kdpipe.stages.sources import refuse_another_order, side_of
from kdpipe.teacher.forward import Ensemble, Forward, FrozenTeacher
from kdpipe.teacher.settings import TeacherSettings, brings_weights


@dataclass(frozen=True)
class Normalization:
    """The preparation of a teacher's images, where the user gives it or a store records it."""

    mean: Triple | None = None
    std: Triple | None = None
    size: int | None = None
    of_data: bool = False
    """Whether the dataset's statistics are allowed."""
    recorded: Preset | None = None
    """The preset that a store records, which has precedence over the dataset's statistics."""
    recorded_in: Path | None = None
    interface: Interface = field(default_factory=Interface)
    """The layout of its images, and what it returns."""


def load_teacher(
    name: str,
    train: Dataset,
    given: Normalization,
    *,
    weights: str | Path | None = None,
    trust_code: bool = False,
    quiet: bool = False,
) -> Model:
    """Load a teacher for a dataset's classes, and report what images it takes unless ``quiet``.

    A teacher with weights is normalized as they or its family say, not by the images at hand, unless the user asks for
    that; the statistics are then those that the store records, once it exists.

    Raises:
        ModelError: the model is unknown, its weights do not fit, they were made for other classes, or nothing says how
            its images are prepared.
        UntrustedCodeError: a file would run code, and is not trusted.
    """
    torch.manual_seed(0)
    recorded = given.recorded
    drawn = weights is None and not brings_weights(name) and not models.is_foreign(name)
    allowed: Statistics | None = train.statistics if given.of_data or drawn else None
    model = models.load(
        name,
        num_classes=len(train.classes),
        weights=weights,
        mean=given.mean,
        std=given.std,
        size=given.size,
        fallback_statistics=allowed if recorded is None else lambda: (recorded.mean, recorded.std),
        fallback_size=(lambda: side_of(name, train)) if recorded is None else recorded.size,
        trust_code=trust_code,
        interface=given.interface,
    )
    for remark in model.remarks:
        say(remark)
    source = {
        "flags": "--mean and --std",
        "weights": "the header of its weights",
        "program": "part of the program",
        "dataset": f"the statistics of {train.spec}" if recorded is None else f"those that {given.recorded_in} records",
    }.get(model.preset_source, f"the published ones of {model.preset_source}")
    if not quiet:
        say(f"{name} takes images of {model.preset.size} px; mean and std: {source}.")
    refuse_another_order(model, train, origin=weights or name)
    return model


def frozen(loaded: Sequence[Model], settings: TeacherSettings, *, channels_last: bool | None) -> FrozenTeacher:
    """Return loaded teachers on their device; several as one that averages."""
    device = models.resolve_device(settings.device)
    teachers = [
        Forward(
            model,
            device=device,
            precision=settings.precision,
            signals=settings.signals,
            channels_last=channels_last,
        )
        for model in loaded
    ]
    return teachers[0] if len(teachers) == 1 else Ensemble(teachers)

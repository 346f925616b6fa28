"""Training: losses, schedules, the loop, and what a run leaves behind."""

from kdpipe.student.curves import Curve
from kdpipe.student.distillation import Distillation, Tempered
from kdpipe.student.evaluation import predict
from kdpipe.student.loop import Cost, train
from kdpipe.student.losses import LOSSES, make
from kdpipe.student.mixed import MixedTargets, refuse_mixture
from kdpipe.student.optimisation import Optimisation
from kdpipe.student.runs import RunDirectory
from kdpipe.student.schedule import Schedule
from kdpipe.student.targets import (
    CachedTargets,
    LiveTargets,
    SoftTargets,
    WindowedTargets,
    refuse_unsupported,
    soft_targets,
)

__all__ = [
    "LOSSES",
    "CachedTargets",
    "Cost",
    "Curve",
    "Distillation",
    "LiveTargets",
    "MixedTargets",
    "Optimisation",
    "RunDirectory",
    "Schedule",
    "SoftTargets",
    "Tempered",
    "WindowedTargets",
    "make",
    "predict",
    "refuse_mixture",
    "refuse_unsupported",
    "soft_targets",
    "train",
]

"""Training: losses, schedules, the loop, and what a run leaves behind."""

from kdpipe.student.evaluation import predict
from kdpipe.student.loop import Cost, Distillation, Schedule, train
from kdpipe.student.losses import LOSSES, make
from kdpipe.student.runs import RunDirectory
from kdpipe.student.targets import CachedTargets, LiveTargets, refuse_unsupported

__all__ = [
    "LOSSES",
    "CachedTargets",
    "Cost",
    "Distillation",
    "LiveTargets",
    "RunDirectory",
    "Schedule",
    "make",
    "predict",
    "refuse_unsupported",
    "train",
]

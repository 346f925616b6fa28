"""Training: losses, schedules, the loop, and what a run leaves behind."""

from kdpipe.student.attack import Attack
from kdpipe.student.curves import Curve
from kdpipe.student.distillation import Distillation, Tempered
from kdpipe.student.evaluation import predict, predict_attacked
from kdpipe.student.loop import Cost, train, train_together
from kdpipe.student.losses import LOSSES, DistillationLoss, make, parameters, parse
from kdpipe.student.mixed import MixedTargets, refuse_coarse, refuse_mixture
from kdpipe.student.optimisation import Optimisation
from kdpipe.student.robust import Robust, RobustLoss
from kdpipe.student.rotation import Rotation
from kdpipe.student.runs import RunDirectory
from kdpipe.student.sample_weights import read_sample_weights
from kdpipe.student.sampling import Sampling
from kdpipe.student.savings import savings
from kdpipe.student.schedule import Schedule
from kdpipe.student.targets import (
    CachedTargets,
    LiveTargets,
    SoftTargets,
    WindowedTargets,
    refuse_unlabelled,
    refuse_unsupported,
    soft_targets,
)
from kdpipe.student.trainee import Member
from kdpipe.student.validation import Validation

__all__ = [
    "LOSSES",
    "Attack",
    "CachedTargets",
    "Cost",
    "Curve",
    "Distillation",
    "DistillationLoss",
    "LiveTargets",
    "Member",
    "MixedTargets",
    "Optimisation",
    "Robust",
    "RobustLoss",
    "Rotation",
    "RunDirectory",
    "Sampling",
    "Schedule",
    "SoftTargets",
    "Tempered",
    "Validation",
    "WindowedTargets",
    "make",
    "parameters",
    "parse",
    "predict",
    "predict_attacked",
    "read_sample_weights",
    "refuse_coarse",
    "refuse_mixture",
    "refuse_unlabelled",
    "refuse_unsupported",
    "savings",
    "soft_targets",
    "train",
    "train_together",
]

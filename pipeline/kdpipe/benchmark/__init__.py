"""How good, how fast and how big a student is, and which one to ship.

Everything here works on arrays, modules and plain values; reading runs and stores is the caller's work.
"""

from __future__ import annotations

from kdpipe.benchmark.comparison import (
    Recommendation,
    compare,
    gap_recovered,
    pareto_front,
    recommend,
)
from kdpipe.benchmark.latency import Latency, latency
from kdpipe.benchmark.machine import machine
from kdpipe.benchmark.results import (
    AttackIdentity,
    BenchmarkResult,
    Distill,
    Figure,
    StoreIdentity,
    StudentResult,
    TeacherResult,
    average,
    mean_history,
)
from kdpipe.metrics.accuracy import Accuracy, accuracy, agreement

__all__ = [
    "Accuracy",
    "AttackIdentity",
    "BenchmarkResult",
    "Distill",
    "Figure",
    "Latency",
    "Recommendation",
    "StoreIdentity",
    "StudentResult",
    "TeacherResult",
    "accuracy",
    "agreement",
    "average",
    "compare",
    "gap_recovered",
    "latency",
    "machine",
    "mean_history",
    "pareto_front",
    "recommend",
]

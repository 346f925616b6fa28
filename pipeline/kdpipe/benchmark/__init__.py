"""How good, how fast and how big a student is, and which one to ship.

Everything here works on arrays, modules and plain values; reading runs and stores is the caller's work.
"""

from __future__ import annotations

from kdpipe.benchmark.comparison import (
    BenchmarkResult,
    Distill,
    Recommendation,
    StoreIdentity,
    StudentResult,
    TeacherResult,
    compare,
    gap_recovered,
    pareto_front,
    recommend,
)
from kdpipe.benchmark.latency import Latency, latency
from kdpipe.benchmark.machine import machine
from kdpipe.student.accuracy import Accuracy, accuracy, agreement

__all__ = [
    "Accuracy",
    "BenchmarkResult",
    "Distill",
    "Latency",
    "Recommendation",
    "StoreIdentity",
    "StudentResult",
    "TeacherResult",
    "accuracy",
    "agreement",
    "compare",
    "gap_recovered",
    "latency",
    "machine",
    "pareto_front",
    "recommend",
]

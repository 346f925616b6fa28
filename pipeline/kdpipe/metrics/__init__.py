"""Figures computed from logits and labels. A module of metrics registers them when it is imported here."""

from kdpipe.metrics.accuracy import Accuracy, accuracy, agreement, kl
from kdpipe.metrics.classes import ClassScores, confusion, per_class
from kdpipe.metrics.confidence import Bin, RiskCoverage, fit_temperature, reliability, risk_coverage
from kdpipe.metrics.registry import METRICS, Figure, Labels, Logits, Metric, measure, metric

__all__ = [
    "METRICS",
    "Accuracy",
    "Bin",
    "ClassScores",
    "Figure",
    "Labels",
    "Logits",
    "Metric",
    "RiskCoverage",
    "accuracy",
    "agreement",
    "confusion",
    "fit_temperature",
    "kl",
    "measure",
    "metric",
    "per_class",
    "reliability",
    "risk_coverage",
]

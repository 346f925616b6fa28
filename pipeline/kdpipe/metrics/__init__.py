"""Figures computed from logits and labels. A module of metrics registers them when it is imported here."""

from kdpipe.metrics.accuracy import Accuracy, accuracy, agreement
from kdpipe.metrics.registry import METRICS, Figure, Labels, Logits, Metric, measure, metric

__all__ = [
    "METRICS",
    "Accuracy",
    "Figure",
    "Labels",
    "Logits",
    "Metric",
    "accuracy",
    "agreement",
    "measure",
    "metric",
]

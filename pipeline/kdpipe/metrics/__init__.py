"""Figures computed from logits and labels."""

from kdpipe.metrics.accuracy import Accuracy, Logits, accuracy, agreement

__all__ = ["Accuracy", "Logits", "accuracy", "agreement"]

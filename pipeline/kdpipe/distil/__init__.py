"""Distillation: losses, signals, soft targets, and the objective that a trainer minimizes."""

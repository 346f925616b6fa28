"""Distillation losses by name: ``make("kd", temperature=4.0)`` returns a term alone, without cross-entropy.

``parse`` reads everything that ``--loss`` takes: several losses, with weights, on logits and on layers. A loss is one
function with a decorator: see ``kdpipe.distil.losses.contract``. docs/guides/losses.md explains all of them.
"""

from kdpipe.distil.losses import logits, transport, levels, layers, contrast, sequences  # isort: skip (the listed order)
from kdpipe.distil.losses.contract import (
    LOSSES,
    DistillationLoss,
    LayerLoss,
    LogitLoss,
    layer_loss,
    loss,
    make,
    memory_loss,
)
from kdpipe.distil.losses.written import Loss, parse

__all__ = [
    "LOSSES",
    "DistillationLoss",
    "LayerLoss",
    "LogitLoss",
    "Loss",
    "contrast",
    "layer_loss",
    "layers",
    "levels",
    "logits",
    "loss",
    "make",
    "memory_loss",
    "parse",
    "sequences",
    "transport",
]

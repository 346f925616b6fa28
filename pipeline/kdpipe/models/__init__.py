"""Names of models to networks with weights, preprocessing and a device.

model = load("resnet20", num_classes=10, weights="teacher.safetensors", fallback_statistics=statistics)
logits = model.module(model.preset.normalise(pixels))
"""

from kdpipe.models.cost import count_parameters, evaluating, macs
from kdpipe.models.device import resolve_device
from kdpipe.models.features import Penultimate, find_penultimate
from kdpipe.models.loading import Model, load, probe
from kdpipe.models.preset import Preset
from kdpipe.models.registry import create, names
from kdpipe.models.signals import Signal, Watch, layers, parse_signals
from kdpipe.models.weights import save_weights

__all__ = [
    "Model",
    "Penultimate",
    "Preset",
    "Signal",
    "Watch",
    "count_parameters",
    "create",
    "evaluating",
    "find_penultimate",
    "layers",
    "load",
    "macs",
    "names",
    "parse_signals",
    "probe",
    "resolve_device",
    "save_weights",
]

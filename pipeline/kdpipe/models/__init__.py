"""Models by name: networks with weights, preprocessing and a digest.

    model = load("resnet20", num_classes=10, weights="teacher.safetensors", fallback_statistics=statistics)
    logits = model.module(model.preset.normalize(pixels))

Names can be listed without torch, which is imported when a network is built or loaded.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from kdpipe.models import compressed, packages, saved, zoo  # noqa: F401 (they register their names)
from kdpipe.models.compressed import base_of, short_name
from kdpipe.models.inputs import AnyPreset, InputSize, TensorPreset, of_images, parse_preset, taking
from kdpipe.models.inspection import (
    Penultimate,
    count_parameters,
    evaluating,
    find_penultimate,
    macs,
    resolve_device,
)
from kdpipe.models.preset import Preset
from kdpipe.models.registry import (
    Architecture,
    Kind,
    all_kinds,
    architectures,
    create,
    is_foreign,
    names,
    refuse_code,
    runs_code,
)
from kdpipe.models.signals import Signal, Watch, layers, parse_signals

if TYPE_CHECKING:
    from kdpipe.models.loading import Model, load, probe
    from kdpipe.models.weights import save_weights

__all__ = [
    "AnyPreset",
    "Architecture",
    "InputSize",
    "Kind",
    "Model",
    "Penultimate",
    "Preset",
    "Signal",
    "TensorPreset",
    "Watch",
    "all_kinds",
    "architectures",
    "base_of",
    "count_parameters",
    "create",
    "evaluating",
    "find_penultimate",
    "is_foreign",
    "layers",
    "load",
    "macs",
    "names",
    "of_images",
    "parse_preset",
    "parse_signals",
    "probe",
    "refuse_code",
    "resolve_device",
    "runs_code",
    "save_weights",
    "short_name",
    "taking",
]


_MODULES = {"Model": "loading", "load": "loading", "probe": "loading", "save_weights": "weights"}
"""The modules of the names that need torch."""


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)

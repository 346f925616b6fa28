"""Losses on signals as ``--loss`` has them: by name, with weights, and with the layers that learn from each other."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Any

import yaml

from kdpipe.distil.losses import LOSSES
from kdpipe.distil.losses.base import parameters_of
from kdpipe.distil.signals.attention import AttentionTransfer
from kdpipe.distil.signals.base import SignalLoss
from kdpipe.distil.signals.features import FeatureRegression
from kdpipe.distil.signals.rkd import RKD
from kdpipe.errors import UnsupportedLossError, did_you_mean

SIGNAL_LOSSES: dict[str, type[Any]] = {"features": FeatureRegression, "rkd": RKD, "attention": AttentionTransfer}
"""Every loss on signals, a ``SignalLoss``, by the name that ``--loss`` takes."""


@dataclass(frozen=True)
class Wanted:
    """One loss on signals, as it was asked for."""

    name: str
    loss: SignalLoss
    weight: float
    layers: Mapping[str, str] = field(default_factory=dict)
    """Layer of the teacher for each layer of the student; empty where that is left open."""


def split(text: str) -> tuple[str | None, tuple[Wanted, ...]]:
    """Part losses into those on logits, as text for ``losses.parse`` or ``None``, and those on signals.

        {kd: {}, features: {layers: {layer3: layer3}, weight: 1}}

    ``layers`` may also be one name or a list, where student and teacher call them the same.

    Raises:
        UnsupportedLossError: there is no such loss, or one on signals has a parameter that it does not know, or a value
            out of range.
    """
    written = _read(text)
    for name in written:
        if name not in LOSSES and name not in SIGNAL_LOSSES:
            hint = did_you_mean(str(name), (*LOSSES, *SIGNAL_LOSSES)) or "."
            known = f"{', '.join(LOSSES)}, and of the teacher's layers {', '.join(SIGNAL_LOSSES)}"
            raise UnsupportedLossError(f"unknown loss '{name}'{hint} Known: {known}.")
    if not SIGNAL_LOSSES.keys() & written.keys():
        return text, ()
    wanted = tuple(_wanted(name, given) for name, given in written.items() if name in SIGNAL_LOSSES)
    rest = {name: given for name, given in written.items() if name not in SIGNAL_LOSSES}
    return json.dumps(rest) if rest else None, wanted


def _read(text: str) -> Mapping[Any, Any]:
    """Return the losses with what is written of each; none of YAML that cannot be read, which ``losses.parse`` says."""
    if not text.lstrip().startswith("{"):
        return {text: None}
    try:
        written = yaml.safe_load(text)
    except yaml.YAMLError:
        return {}
    return written if isinstance(written, Mapping) else {}


def _wanted(name: str, given: Any) -> Wanted:
    if not isinstance(given, Mapping | None):
        raise UnsupportedLossError(f"the loss {name} has {given!r}, expected its weight, layers and settings by name.")
    own = dict(given or {})
    weight, layers = own.pop("weight", None), own.pop("layers", None)
    known = {each.name: each for each in parameters_of(SIGNAL_LOSSES[name])}
    listed = ", ".join(("weight", "layers", *(f"{each.name} ({each.range.description})" for each in known.values())))
    for setting, value in own.items():
        if setting not in known:
            hint = did_you_mean(str(setting), (*known, "weight", "layers")) or "."
            raise UnsupportedLossError(f"the loss {name} has no parameter '{setting}'{hint} Its parameters: {listed}.")
        if value not in known[setting].range:
            raise UnsupportedLossError(f"the loss {name} cannot take {setting}={value}. Its parameters: {listed}.")
    loss: SignalLoss = SIGNAL_LOSSES[name](**own)
    weight = loss.weight if weight is None else weight
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < inf:
        raise UnsupportedLossError(f"the loss {name} has the weight {weight!r}, expected a number of 0 or more.")
    return Wanted(name, loss, float(weight), _layers(name, layers))


def _layers(name: str, written: Any) -> dict[str, str]:
    """Read one layer, a list of them, or a mapping of the student's to the teacher's."""
    layers = [written] if isinstance(written, str) else written or {}
    if isinstance(layers, list):
        layers = dict(zip(layers, layers, strict=True)) if all(isinstance(one, str) for one in layers) else None
    if not isinstance(layers, Mapping) or not all(isinstance(one, str) for pair in layers.items() for one in pair):
        raise UnsupportedLossError(
            f"the loss {name} has the layers {written!r}, expected names, such as {{layer3: layer3}}: the student's "
            "layer and the teacher's that it learns from."
        )
    return dict(layers)

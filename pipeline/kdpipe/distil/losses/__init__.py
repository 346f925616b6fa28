"""Distillation losses by name: ``make("kd", temperature=4.0)`` returns the term alone, without cross-entropy.

``make("kd", standardize=True)`` is ``kd`` of z-scores. ``parse`` also reads several losses with weights.
``docs/guides/losses.md`` has the table of all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from kdpipe.distil.losses.base import DistillationLoss, Parameter, parameters_of
from kdpipe.distil.losses.combined import Combined
from kdpipe.distil.losses.dist import DIST
from kdpipe.distil.losses.dkd import DKD
from kdpipe.distil.losses.hard import Hard
from kdpipe.distil.losses.kd import KD
from kdpipe.distil.losses.mixed import Mixed
from kdpipe.distil.losses.mse import MSE
from kdpipe.distil.losses.nkd import NKD
from kdpipe.distil.losses.soft_ce import SoftCE
from kdpipe.distil.losses.standardized import KD_TEMPERATURE, Standardized
from kdpipe.distil.losses.wsld import WSLD
from kdpipe.errors import UnsupportedLossError, did_you_mean

__all__ = [
    "DIST",
    "DKD",
    "KD",
    "LOSSES",
    "MSE",
    "NKD",
    "WSLD",
    "Combined",
    "DistillationLoss",
    "Hard",
    "Mixed",
    "Parameter",
    "SoftCE",
    "Standardized",
    "make",
    "parameters",
    "parse",
]

LOSSES: dict[str, type[Any]] = {
    "kd": KD,
    "soft-ce": SoftCE,
    "hard": Hard,
    "mixed": Mixed,
    "mse": MSE,
    "dkd": DKD,
    "dist": DIST,
    "nkd": NKD,
    "wsld": WSLD,
}
"""Every distillation loss, a ``DistillationLoss``, by the name that ``--loss`` takes."""


def make(name: str, *, standardize: bool = False, **settings: float) -> DistillationLoss:
    """Return the loss called ``name`` with its settings, such as ``temperature``; the rest have their defaults.

    With ``standardize`` it is that of z-scores, see ``Standardized``; the default of ``kd`` is then their temperature.

    Raises:
        UnsupportedLossError: there is no such loss or parameter, or a value is out of range; the message names the
            nearest, and the loss's parameters. Or z-scores of ``hard``, for which they change nothing of the teacher.
    """
    known = {each.name: each for each in parameters(name)}
    listed = ", ".join(f"{each.name} ({each.range.description})" for each in known.values()) or "none"
    for setting, value in settings.items():
        if setting not in known:
            hint = did_you_mean(setting, [*known, "standardize"]) or "."
            raise UnsupportedLossError(f"the loss {name} has no parameter '{setting}'{hint} Its parameters: {listed}.")
        if value not in known[setting].range:
            raise UnsupportedLossError(f"the loss {name} cannot take {setting}={value}. Its parameters: {listed}.")
    if not _standardizes(name, standardize):
        loss: DistillationLoss = LOSSES[name](**settings)
        return loss
    published = {"temperature": KD_TEMPERATURE} if name == "kd" else {}
    return Standardized(LOSSES[name](**{**published, **settings}))


def _standardizes(name: str, asked: object) -> bool:
    """Return whether z-scores are asked for, or refuse them for the loss called ``name``."""
    if not isinstance(asked, bool):
        raise UnsupportedLossError(f"the loss {name} cannot take standardize={asked!r}, expected true or false.")
    if asked and name == "hard":
        raise UnsupportedLossError(
            "the loss hard reads only which class the teacher finds likeliest, which z-scores do not change: leave "
            "standardize out."
        )
    return asked


def parameters(name: str) -> tuple[Parameter, ...]:
    """Return the parameters of the loss called ``name``, in order.

    Raises:
        UnsupportedLossError: there is no such loss; the message names the nearest.
    """
    if name not in LOSSES:
        hint = did_you_mean(name, LOSSES) or "."
        raise UnsupportedLossError(f"unknown loss '{name}'{hint} Known: {', '.join(LOSSES)}.")
    return parameters_of(LOSSES[name])


def parse(text: str, *, standardize: bool = False, **settings: float) -> DistillationLoss:
    """Return the loss that ``text`` names, with ``settings``, or several as YAML, each with its own:

        {kd: {weight: 0.5, temperature: 2}, dkd: {weight: 1, standardize: true}}

    A weight that is left out is the published one.

    Raises:
        UnsupportedLossError: as for ``make``; the YAML cannot be read; or settings are given beside several losses.
    """
    if not text.lstrip().startswith("{"):
        return make(text, standardize=standardize, **settings)
    given_beside = [*(["standardize"] if standardize else []), *settings]
    if given_beside:
        raise UnsupportedLossError(
            f"{', '.join(given_beside)} beside several losses: write each loss's own, as in {text}"
        )
    try:
        written = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UnsupportedLossError(f"the loss is not valid YAML: {' '.join(str(error).split())}") from None
    terms = []
    for name, given in written.items():
        if not isinstance(given, Mapping | None):
            raise UnsupportedLossError(f"the loss {name} has {given!r}, expected its weight and settings by name.")
        own = dict(given or {})
        weight = own.pop("weight", None)
        loss = make(str(name), **own)
        weight = loss.kd_weight if weight is None else weight
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < float("inf"):
            raise UnsupportedLossError(f"the loss {name} has the weight {weight!r}, expected a number of 0 or more.")
        terms.append((float(weight), loss))
    if not terms:
        raise UnsupportedLossError(f"there is no loss in {text}. Known: {', '.join(LOSSES)}.")
    return Combined(tuple(terms))

"""The pixels of (sample, view): a pure function of the recipe, its seed, the sample's id and the view.

Importing the package does not import torch, which is imported with the first of the names that need it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from kdpipe.views.philox import Draws, permutation, philox
from kdpipe.views.recipe import OPERATIONS, PHASES, Recipe

if TYPE_CHECKING:
    from kdpipe.views.geometry import Geometry
    from kdpipe.views.mixing import Population
    from kdpipe.views.rendering import Renderer, Renderers, SecondLabels, render
    from kdpipe.views.synthetic import trial

__all__ = [
    "OPERATIONS",
    "PHASES",
    "Draws",
    "Geometry",
    "Population",
    "Recipe",
    "Renderer",
    "Renderers",
    "SecondLabels",
    "permutation",
    "philox",
    "render",
    "trial",
]

_MODULES = {"Geometry": "geometry", "Population": "mixing", "trial": "synthetic"} | dict.fromkeys(
    ("Renderer", "Renderers", "SecondLabels", "render"), "rendering"
)


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)

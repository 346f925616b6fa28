"""The pixels of (sample, view): a pure function of the recipe, its seed, the sample's id and the view."""

from kdpipe.views.geometry import Geometry
from kdpipe.views.mixing import Population
from kdpipe.views.operations import OPERATIONS, PHASES
from kdpipe.views.philox import Draws, permutation, philox
from kdpipe.views.recipe import Recipe
from kdpipe.views.render import Renderer, Renderers, SecondLabels, render
from kdpipe.views.trial import trial

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

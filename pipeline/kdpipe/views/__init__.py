"""The pixels of (sample, view): a pure function of the recipe, its seed, the sample's id and the view."""

# The modules that register operations, in the order in which an image is made: that of kdpipe list recipes.
# isort: off
from kdpipe.views import geometry as geometry, affine as affine, color as color, erase as erase, mixing as mixing
# isort: on

from kdpipe.views.geometry import Geometry
from kdpipe.views.mixing import Population
from kdpipe.views.philox import Draws, permutation, philox
from kdpipe.views.recipe import OPERATIONS, PHASES, Recipe
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

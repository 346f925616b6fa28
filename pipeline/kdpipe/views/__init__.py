"""The pixels of (sample, view): a pure function of the recipe, its seed, the sample's id and the view."""

from kdpipe.views.geometry import Geometry
from kdpipe.views.philox import Draws, permutation, philox
from kdpipe.views.recipe import OPERATIONS, Recipe
from kdpipe.views.render import Renderer, render

__all__ = [
    "OPERATIONS",
    "Draws",
    "Geometry",
    "Recipe",
    "Renderer",
    "permutation",
    "philox",
    "render",
]

"""The views that a training renders: those of its stores, or those that its settings ask for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from kdpipe.dataset import Dataset
from kdpipe.distil.several_stores import refuse_mixture
from kdpipe.errors import StaleStoreError
from kdpipe.pairing.probes import stored_recipe
from kdpipe.stages.settings.training import StudentTraining
from kdpipe.store.reader import LogitStore
from kdpipe.views import Geometry, Recipe, Renderer
from kdpipe.views.settings import ViewSettings
from kdpipe.views.tensors import refuse_unfit

Rendering = Callable[[Geometry | None], Renderer]
"""Returns the one renderer of the training samples at a size."""


@dataclass(frozen=True)
class Views:
    """The views of the training samples."""

    recipe: Recipe
    seed: int
    number: int | None
    """Augmented views to cycle through; ``None`` gives each epoch its own view."""
    population: Sequence[npt.NDArray[np.uint8]] | None = None
    """Ids of the samples that are mixed, in the store's order; ``None`` for the dataset's own."""

    @classmethod
    def asked(cls, settings: ViewSettings, train: Dataset) -> Views:
        """Return the views that settings without a store ask for; by default the plain ones of tensors."""
        recipe = settings.recipe or Recipe.parse("crop-flip" if train.form is None else "none")
        return cls(recipe, settings.recipe_seed or 0, settings.views)

    def rendering(self, train: Dataset, device: torch.device) -> Rendering:
        """Return a function that makes one renderer for each size of a model's input.

        Raises:
            RecipeError: the recipe is for images, and the samples are tensors, or the reverse.
        """
        refuse_unfit(self.recipe, train.form)
        return cache(
            lambda geometry: Renderer(
                train, self.recipe, seed=self.seed, geometry=geometry, device=device, population=self.population
            )
        )


def views_of_stores(params: StudentTraining, stores: Sequence[LogitStore]) -> Views:
    """Return recipe, seed and number of views of the stores.

    Raises:
        StaleStoreError: a flag contradicts a store, or two stores contradict each other.
    """
    asked, distilled = params.view, params.targets.mode != "none"
    refuse_mixture(stores)
    store = min(stores, key=lambda store: store.num_views)
    stored = store.manifest.fingerprint.recipe
    compared: dict[str, tuple[Any, Any]] = {
        "recipe": (asked.recipe and str(asked.recipe), stored.name),
        "recipe-seed": (asked.recipe_seed, stored.seed),
    }
    for flag, (wanted, kept) in compared.items():
        if wanted is not None and wanted != kept:
            raise StaleStoreError(
                f"{store.path} was cached with {flag} {kept}, asked for {wanted}: the student would see other pixels "
                f"than the teacher did. Leave --{flag} out, or make a store with it."
            )
    if distilled and asked.views is not None and asked.views > store.num_views:
        raise StaleStoreError(
            f"{store.path} holds {store.num_views} augmented views, asked for {asked.views}. "
            f"Use --views {store.num_views} or fewer, or make a store with more."
        )
    # A student without soft targets is not bound to the cached views: each epoch gets fresh pixels.
    default = store.num_views if distilled else None
    return Views(
        recipe=stored_recipe(store),
        seed=stored.seed,
        number=default if asked.views is None else asked.views,
        # Without soft targets a part of the data may be mixed within itself.
        population=store.populations if distilled else None,
    )

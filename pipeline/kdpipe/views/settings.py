"""Settings of the views that a training or a teacher pass renders."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import Field, model_validator

from kdpipe.settings import Parsed, Seed, Settings

if TYPE_CHECKING:
    from kdpipe.views import Recipe as RecipeSetting
else:
    RecipeSetting = Annotated[Any, Parsed("kdpipe.views.recipe:Recipe.parse", "RECIPE")]


class ViewSettings(Settings):
    """Views"""

    recipe: RecipeSetting | None = None
    """View recipe, such as crop, rrc:0.25+flip+color or none (default: the store's, or crop-flip without a store);
    kdpipe list recipes."""
    views: int | None = Field(None, ge=0)
    """Views to cycle through (default: all of the store's; a new one in each epoch without a store)."""
    recipe_seed: Seed | None = None
    """Seed of the views' pixels (default: the store's, or 0 without a store)."""
    views_per_sample: int = Field(1, ge=1, le=2)
    """Views of each sample in a batch, 1 or 2; with 2 an epoch takes the next two views, and the loss is the mean over
    both."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.views_per_sample == 2 and (
            (self.views is not None and self.views < 2) or (self.recipe is not None and not self.recipe.augments)
        ):
            raise ValueError(
                "views-per-sample 2 needs two different views: give views 2 or more, and a recipe with some"
            )
        if self.recipe is not None and not self.recipe.augments and self.views:
            raise ValueError("recipe none has the plain view only: give views 0, or another recipe")
        return self


class CachedViewSettings(Settings):
    """Views"""

    recipe: RecipeSetting = Field("crop-flip", validate_default=True)
    """View recipe, such as none, crop, or rrc:0.25+flip+color+mixup:0.2; kdpipe list recipes."""
    views: int | None = Field(None, ge=0)
    """Augmented views beside the plain one (default: 4; 0 with the recipe none)."""
    seed: Seed = 0
    """Seed of the views' pixels."""

    @property
    def augmented(self) -> int:
        """The number of augmented views, with the default resolved."""
        if self.views is None:
            return 4 if self.recipe.augments else 0
        return self.views

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.recipe.augments and self.views:
            raise ValueError("recipe none has the plain view only: give views 0, or another recipe")
        return self


class ImportedViewSettings(CachedViewSettings):
    """Views"""

    recipe: RecipeSetting = Field("none", validate_default=True)
    """View recipe of the augmented views, if there are any."""
    views: int | None = Field(None, ge=0)
    """Augmented views beside the plain one (default: 0)."""

    @property
    def augmented(self) -> int:
        """The number of augmented views."""
        return self.views or 0

    @model_validator(mode="after")
    def _together(self) -> Self:
        if self.recipe.augments != bool(self.views):
            raise ValueError(
                "recipe and views go together: give both for augmented views, or neither for the plain one"
            )
        return self

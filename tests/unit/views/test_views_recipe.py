"""Recipes as text."""

from __future__ import annotations

import pytest

from kdpipe.errors import RecipeError
from kdpipe.views import OPERATIONS, Recipe


@pytest.mark.parametrize("name", OPERATIONS)
def test_known_recipes_round_trip(name: str) -> None:
    recipe = Recipe.parse(f" {name} ")
    assert str(recipe) == name
    assert recipe == Recipe.parse(str(recipe))
    assert recipe.version == f"{name}/{OPERATIONS[name]}"


def test_only_none_does_not_augment() -> None:
    assert not Recipe.parse("none").augments
    assert Recipe.parse("crop-flip").augments


@pytest.mark.parametrize("text", ["crop-filp", "cropflip", "crop_flip", "Crop-Flip"])
def test_an_unknown_recipe_names_the_nearest(text: str) -> None:
    with pytest.raises(RecipeError, match="did you mean 'crop-flip'") as caught:
        Recipe.parse(text)
    assert text in str(caught.value)


@pytest.mark.parametrize("text", ["", "qqqq"])
def test_an_unknown_recipe_lists_the_known_ones(text: str) -> None:
    with pytest.raises(RecipeError, match="Known: none, crop-flip"):
        Recipe.parse(text)

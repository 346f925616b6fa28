"""Recipes: which random pixels an augmented view is made of, as a short string."""

from __future__ import annotations

from dataclasses import dataclass

from kdpipe.errors import RecipeError, did_you_mean

OPERATIONS: dict[str, int] = {"none": 1, "crop-flip": 1}
"""Each operation's version: it goes up when the operation's pixels change, so old stores are told apart."""


@dataclass(frozen=True)
class Recipe:
    """A parsed recipe; ``str(recipe)`` is its canonical form."""

    operation: str

    @classmethod
    def parse(cls, text: str) -> Recipe:
        """Parse a recipe such as ``"crop-flip"``.

        Raises:
            RecipeError: the operation is unknown; the message names the nearest one.
        """
        name = text.strip()
        if name not in OPERATIONS:
            hint = did_you_mean(name, OPERATIONS) or "."
            raise RecipeError(f"unknown recipe '{text}'{hint} Known: {', '.join(OPERATIONS)}.")
        return cls(name)

    @property
    def augments(self) -> bool:
        """Whether views above 0 differ from the plain view."""
        return self.operation != "none"

    @property
    def version(self) -> str:
        """The versions of the operations, to be stored beside the recipe."""
        return f"{self.operation}/{OPERATIONS[self.operation]}"

    def __str__(self) -> str:
        """Return the canonical form."""
        return self.operation

"""Mixup and CutMix as part of a view: which sample is mixed in, how much of it, and what that does to labels.

The partner belongs to the sample, not to a place in a batch, so the teacher and every student see the same mixture.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from enum import IntEnum
from typing import Annotated

import numpy as np
import numpy.typing as npt
import torch

from kdpipe.dataset import Dataset, find_ids
from kdpipe.errors import DatasetError
from kdpipe.spec import between
from kdpipe.views import grid
from kdpipe.views.beta import steps as lambda_steps
from kdpipe.views.beta import thresholds
from kdpipe.views.partners import partners
from kdpipe.views.philox import Draws
from kdpipe.views.recipe import Recipe, claim, operation

Integers = npt.NDArray[np.int64]
Alpha = Annotated[float, between(0.01, 100)]


class Stream(IntEnum):
    """Streams of mixing."""

    CHOICE = 96
    MIXUP_LAMBDA = 97
    CUTMIX_LAMBDA = 98
    CUTMIX_TOP = 99
    CUTMIX_LEFT = 100


claim(Stream)


class Population:
    """The samples among which partners are found, in their order, and which of them a dataset has."""

    def __init__(self, dataset: Dataset, sample_ids: npt.NDArray[np.uint8] | None, *, seed: int) -> None:
        """Look up ``sample_ids``, uint8 ``(N, 16)``, in the dataset; by default they are the dataset's own."""
        self._dataset = dataset
        self._seed = seed
        members = dataset.sample_ids if sample_ids is None else sample_ids
        self._row = find_ids(members, dataset.sample_ids)
        self._position = find_ids(dataset.sample_ids, members)

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self._row)

    def partners(self, rows: Integers, view: int) -> Integers:
        """Return the dataset's row of the partner of each of ``rows``, all int64 ``(n,)``.

        Raises:
            DatasetError: a partner is not in the dataset.
        """
        found = self._row[self._partners(rows, view)]
        absent = int((found < 0).sum())
        if absent:
            raise DatasetError(
                f"{absent} of {len(rows)} samples of {self._dataset.spec} are mixed with samples that it lacks in view "
                f"{view}. Use all {len(self)} samples that the views were made with."
            )
        return found

    def lacking(self, views: Iterable[int]) -> int:
        """Return how many samples the dataset lacks that are mixed into its own in ``views``."""
        rows = np.flatnonzero(self._position >= 0)
        needed = [np.unique(self._partners(rows, view)) for view in views]
        members = np.unique(np.concatenate(needed)) if needed else np.zeros(0, dtype=np.int64)
        return int((self._row[members] < 0).sum())

    def _partners(self, rows: Integers, view: int) -> Integers:
        return partners(self._position[rows], population=len(self), seed=self._seed, view=view)


@dataclass(frozen=True)
class Amounts:
    """How much of its partner is mixed into each of ``n`` samples."""

    steps: Integers
    """Mixup: a pixel is ``steps / 256`` its own and the rest its partner's, ``(n,)``; 256 without mixup."""
    boxes: Integers
    """CutMix: top, left, height and width of the partner's box in cells, ``(n, 4)``; empty without CutMix."""
    own_share: npt.NDArray[np.float32]
    """The weight of each sample's own label, ``(n,)``, in 0..1; its partner's label has the rest."""


@operation("mixup", "mix", table=thresholds, source="Zhang et al. 2018")
def mixup(table: Sequence[int], draws: Draws, alpha: Alpha) -> Amounts:  # noqa: ARG001
    """Blend with another sample, lambda from Beta(alpha, alpha).

    Zhang et al., "mixup: Beyond Empirical Risk Minimization" (2018); lambda is a multiple of 1/256.
    """
    steps = lambda_steps(draws.words(Stream.MIXUP_LAMBDA)[0], table)
    return Amounts(steps, np.zeros((len(steps), 4), dtype=np.int64), (steps / 256).astype(np.float32))


@operation("cutmix", "mix", table=thresholds, source="Yun et al. 2019")
def cutmix(table: Sequence[int], draws: Draws, alpha: Alpha) -> Amounts:  # noqa: ARG001
    """Box of another sample, area from Beta(alpha, alpha).

    Yun et al., "CutMix" (2019); lambda is the share that is left of the image, in 1/1024.
    """
    steps = lambda_steps(draws.words(Stream.CUTMIX_LAMBDA)[0], table)
    boxes, kept = grid.cut_boxes(draws, (Stream.CUTMIX_TOP, Stream.CUTMIX_LEFT), steps)
    return Amounts(np.full(len(steps), 256), boxes, (kept / 1024).astype(np.float32))


def amounts(recipe: Recipe, draws: Draws) -> Amounts:
    """Draw the amounts of a recipe that mixes; with several operations, each sample gets one of them at even odds."""
    steps = recipe.of("mix")
    choice = draws.integers(Stream.CHOICE, len(steps))
    drawn = [step(recipe.thresholds[step.name], draws) for step in steps]
    rows = np.arange(len(choice))
    return Amounts(
        *(np.stack([getattr(each, field.name) for each in drawn])[choice, rows] for field in fields(Amounts))
    )


def mix(images: torch.Tensor, partners: torch.Tensor, drawn: Amounts) -> torch.Tensor:
    """Mix ``partners`` into ``images``, both uint8 ``(n, 3, H, W)``; mixup rounds to the nearest level."""
    mixed = images
    if (drawn.steps < 256).any():
        own = torch.from_numpy(drawn.steps.astype(np.int32)).to(images.device).view(-1, 1, 1, 1)
        mixed = ((images.to(torch.int32) - partners).mul_(own).add_(128).bitwise_right_shift_(8) + partners).to(
            torch.uint8
        )
    if drawn.boxes.any():
        cut = grid.mask(drawn.boxes, *images.shape[-2:]).to(images.device).unsqueeze(1)
        keep = cut.to(torch.uint8) - 1  # all bits set where nothing is cut; torch.where is slow on uint8
        mixed = mixed & keep | partners & ~keep
    return mixed

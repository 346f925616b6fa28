"""Soft targets from several stores at once: a weighted mean of their logits, sample by sample and view by view.

The mean of logits is what several teachers agree on at any temperature: ``softmax(mean / T)`` is the geometric mean of
their tempered probabilities, scaled to sum to 1 (the logarithmic opinion pool: Genest and Zidek, "Combining Probability
Distributions", 1986). Every loss can therefore use it like the logits of one teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from kdpipe.distil.losses.arithmetic import of_class
from kdpipe.errors import StaleStoreError, StoreError, UnsupportedLossError
from kdpipe.store.reader import LogitStore
from kdpipe.training.batches import Signals, Targets
from kdpipe.views import philox

_TEACHER_STREAM = 0x7EAC
"""Third word of the counter; orders of samples have 0 there."""


def confidence(said: torch.Tensor, labels: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """Return weights ``(teachers, n)``, which sum to 1 for each sample, of the logits ``(teachers, n, classes)``.

    A teacher counts the more, the smaller its cross-entropy to the label, int64 ``(n,)``, at temperature 1:
    ``shares * (1 - softmax(cross-entropies over the teachers))``, scaled. With equal ``shares``, ``(teachers,)``, these
    are the weights of Zhang, Chen and Wang, "Confidence-Aware Multi-Teacher Knowledge Distillation" (2022), which for
    two teachers are proportional to their probabilities of the label. A sample without a label (-1) takes the
    teacher's entropy, the cross-entropy that the teacher itself expects: the less sure, the less it counts, as in Kwon
    et al., "Adaptive Knowledge Distillation Based on Entropy" (2020).
    """
    log_probabilities = F.log_softmax(said.float(), dim=2)
    expected = -(log_probabilities.exp() * log_probabilities).sum(dim=2)
    seen = torch.stack([-of_class(each, labels) for each in log_probabilities])
    weights = shares[:, None] * (1 - torch.where(labels >= 0, seen, expected).softmax(dim=0))
    return weights / weights.sum(dim=0)


def drawn(shares: Sequence[float], *, data_seed: int, epoch: int, first: int) -> int:
    """Return the teacher of a batch, drawn with the probabilities ``shares``, which sum to 1.

    It depends on nothing but these and the place of the batch: its epoch and the number of samples before it.
    """
    counter = (first, epoch, _TEACHER_STREAM, 0)
    words = [np.array([word], dtype=np.uint32) for word in (*counter, data_seed, 0)]
    word, *_ = philox((words[0], words[1], words[2], words[3]), (words[4], words[5]))
    return int(np.searchsorted(np.cumsum(shares)[:-1], word[0] / 2**32, side="right"))


Mix = Literal["mean", "confidence", "draw"]


class MixedTargets:
    """Soft targets of several sources for the same samples and views; none of them needs pixels."""

    renderer = None

    def __init__(
        self,
        parts: Sequence[Targets],
        shares: Sequence[float],
        *,
        mix: Mix = "mean",
        labels: npt.NDArray[np.integer] | None = None,
    ) -> None:
        """Mix ``parts`` with as many ``shares``, which sum to 1.

        ``mean`` weighs each with its share, ``confidence`` with its share and its confidence in the sample, and
        ``draw`` takes one for each batch, with its share as the probability. Confidence is measured by ``labels``, one
        for each sample, -1 where there is none; without them by what each source says alone.
        """
        if len(parts) != len(shares):
            raise ValueError(f"expected a share for each of {len(parts)} parts, found {len(shares)}")
        self._parts, self._shares, self._mix = tuple(parts), tuple(shares), mix
        self._labels = None if labels is None else torch.from_numpy(labels.astype(np.int64))
        self._data_seed = self._epoch = self._seen = 0

    def start_epoch(self, view: int, next_view: int | None) -> None:
        """Prepare every part for an epoch on ``view``."""
        for part in self._parts:
            part.start_epoch(view, next_view)

    def order(self, samples: npt.NDArray[np.int64], *, data_seed: int, epoch: int) -> npt.NDArray[np.int64] | None:
        """Return the order of the part whose planes do not fit in memory; ``None`` where all fit.

        Raises:
            StoreError: two parts need an order of their own.
        """
        self._data_seed, self._epoch, self._seen = data_seed, epoch, 0
        orders = [part.order(samples, data_seed=data_seed, epoch=epoch) for part in self._parts]
        needed = [order for order in orders if order is not None]
        if len(needed) > 1:
            raise StoreError(
                f"the planes of {len(needed)} of the {len(orders)} stores do not fit in memory; only one may be "
                "read in parts. Raise --memory-limit, which they share, or cache them with a smaller --encoding."
            )
        return needed[0] if needed else None

    def skip(self, samples: int) -> None:
        """Skip samples in every part."""
        self._seen = samples
        for part in self._parts:
            part.skip(samples)

    def take(self, indices: npt.NDArray[np.int64], pixels: torch.Tensor) -> tuple[torch.Tensor, Signals]:
        """Return the mean of the logits, without signals: those of several teachers have no mean."""
        return self.logits(indices, pixels), {}

    def logits(self, indices: npt.NDArray[np.int64], pixels: torch.Tensor) -> torch.Tensor:
        """Return the mixed logits, float32 ``(n, classes)`` on the device of ``pixels``.

        Every part is asked for every batch, as parts with an order of their own must be.
        """
        said = torch.stack([part.logits(indices, pixels) for part in self._parts])
        first, self._seen = self._seen, self._seen + len(indices)
        if self._mix == "draw":
            return said[drawn(self._shares, data_seed=self._data_seed, epoch=self._epoch, first=first)]
        weights = torch.tensor(self._shares, dtype=said.dtype, device=said.device)[:, None]
        if self._mix == "confidence":
            weights = confidence(said, self._labels_of(indices).to(said.device), weights[:, 0])
        return (weights[:, :, None] * said).sum(dim=0)

    def _labels_of(self, indices: npt.NDArray[np.int64]) -> torch.Tensor:
        return torch.full((len(indices),), -1) if self._labels is None else self._labels[torch.from_numpy(indices)]


def refuse_mixture(stores: Sequence[LogitStore]) -> None:
    """Refuse stores whose logits are not of the same classes and the same views of a sample.

    Raises:
        StaleStoreError: a store's classes, or its recipe, the recipe's version or seed, are not those of the first, or
            with a recipe that mixes, its samples.
    """
    first = stores[0]
    for other in stores[1:]:
        ours, theirs = (store.manifest.fingerprint.recipe for store in (first, other))
        compared = {
            "recipe": (ours.name, theirs.name),
            "recipe version": (ours.version, theirs.version),
            "recipe seed": (ours.seed, theirs.seed),
            "classes": (", ".join(first.classes), ", ".join(other.classes)),
        }
        if (ours.thresholds or theirs.thresholds) and not _alike(first.populations, other.populations):
            raise StaleStoreError(
                f"{first.path} and {other.path} cannot be mixed: the recipe {ours.name} finds partners in a store's "
                "own samples and order, which differ. Mix stores that were made from the same samples."
            )
        for what, (mine, its) in compared.items():
            if mine != its:
                raise StaleStoreError(
                    f"{first.path} and {other.path} cannot be mixed: the first has the {what} {mine}, the second "
                    f"{its}. Mix stores of the same classes, recipe and seed, or train from one of them."
                )


def refuse_coarse(store: LogitStore) -> None:
    """Refuse to weigh by confidence what a store's encoding does not keep at temperature 1.

    Raises:
        UnsupportedLossError: it is made for a lower temperature.
    """
    limit = store.encoding.max_temperature
    if limit is not None and limit < 1:
        raise UnsupportedLossError(
            f"{store.path} keeps its logits as {store.encoding.name}, which serves temperatures up to {limit:g}; the "
            "mix confidence reads them at 1. Use --store-mix mean, or a store with --encoding fp16."
        )


def _alike(first: Sequence[npt.NDArray[np.uint8]], second: Sequence[npt.NDArray[np.uint8]]) -> bool:
    return len(first) == len(second) and all(map(np.array_equal, first, second))

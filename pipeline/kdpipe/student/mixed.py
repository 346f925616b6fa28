"""Soft targets from several stores at once: the weighted mean of their logits, sample by sample and view by view."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from kdpipe.errors import StaleStoreError, StoreError
from kdpipe.store import LogitStore
from kdpipe.student.targets import Signals, SoftTargets


class MixedTargets:
    """The weighted mean of what several sources say of the same samples and views."""

    def __init__(self, parts: Sequence[SoftTargets], shares: Sequence[float]) -> None:
        """Mix ``parts`` with as many ``shares``, which sum to 1."""
        self._parts = list(zip(parts, shares, strict=True))

    def start_epoch(self, view: int, next_view: int | None) -> None:
        """Announce the views to every part; each decodes its next plane while this one trains."""
        for part, _ in self._parts:
            part.start_epoch(view, next_view)

    def order(self, samples: npt.NDArray[np.int64], *, data_seed: int, epoch: int) -> npt.NDArray[np.int64] | None:
        """Return the order that the one part needs whose planes do not fit in memory; ``None`` where all fit.

        Raises:
            StoreError: two parts need an order of their own.
        """
        orders = [part.order(samples, data_seed=data_seed, epoch=epoch) for part, _ in self._parts]
        needed = [order for order in orders if order is not None]
        if len(needed) > 1:
            raise StoreError(
                f"the planes of {len(needed)} of the {len(orders)} stores do not fit in memory; only one may be "
                "read in parts. Raise --memory-limit, which they share, or cache them with a smaller --encoding."
            )
        return needed[0] if needed else None

    def skip(self, samples: int) -> None:
        """Pass over samples in every part."""
        for part, _ in self._parts:
            part.skip(samples)

    def answer(self, indices: npt.NDArray[np.int64], pixels: torch.Tensor) -> tuple[torch.Tensor, Signals]:
        """Return the mean of the logits, and no signals: those of several teachers have no mean."""
        return self.logits(indices, pixels), {}

    def logits(self, indices: npt.NDArray[np.int64], pixels: torch.Tensor) -> torch.Tensor:
        """Return the mean, float32 ``(n, classes)`` on the device of ``pixels``."""
        weighed = [share * part.logits(indices, pixels) for part, share in self._parts]
        return torch.stack(weighed).sum(dim=0)


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
            "classes": (_listed(first.classes), _listed(other.classes)),
        }
        if (ours.thresholds or theirs.thresholds) and not np.array_equal(first.sample_ids, other.sample_ids):
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


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names)

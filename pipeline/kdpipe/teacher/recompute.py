"""Checks of a teacher: that it is fit for its pass, and later that it computes the logits of a store again.

It is fit where its logits depend on the image alone, and are logits rather than probabilities.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from kdpipe.dataset import Dataset, find_ids
from kdpipe.encoding.fidelity import kl
from kdpipe.errors import ModelError
from kdpipe.pairing.join import join, with_store_ids
from kdpipe.pairing.probes import replay
from kdpipe.store.reader import LogitStore
from kdpipe.teacher.forward import FrozenTeacher
from kdpipe.views import Geometry, Renderer

TOLERANCES = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 5e-2}
"""Largest difference between the logits of equal teachers at different batch sizes, by the precision of the pass.

Relative to the mean distance of a logit from its row's maximum. On one CPU a resnet20 stays below 1e-6.
"""
OTHER_DEVICE = 10
"""Factor of the tolerance on another type of device, whose resize may differ in a pixel's last bit."""


@dataclass(frozen=True)
class Difference:
    """Difference between recomputed logits and those that a store decodes to."""

    rows: int
    """Number of (sample, view) pairs that were compared."""
    largest: float
    """Largest absolute difference of a logit, encoding loss included."""
    mean: float
    """Mean absolute difference."""
    kl: float
    """Mean KL divergence of the store's from the recomputed logits, at temperature 1."""
    unexplained: float
    """Mean difference beyond that which encoding causes in the recomputed logits, relative as in ``TOLERANCES``."""
    tolerance: float
    """The largest ``unexplained`` difference of an equal teacher."""

    @property
    def explained(self) -> bool:
        """Whether the encoding and the arithmetic explain the difference."""
        return self.unexplained <= self.tolerance


def recompute(
    stores: Mapping[str, LogitStore],
    datasets: Mapping[str, Dataset],
    forward: FrozenTeacher,
    *,
    rows: int,
    seed: int,
) -> Difference:
    """Run the teacher on ``rows`` random (sample, view) pairs and compare its logits with the store's.

    ``stores`` are the splits of one store, ``datasets`` the same splits of its dataset. Pairs are drawn uniformly and
    without repetition from the samples that both have.

    The measure, per logit: the distance of the stored from the recomputed logit, minus the distance of the latter from
    itself after encoding and decoding. A logit that is rounded to the neighboring step then adds next to nothing.
    """
    common = {split: _common(stores[split], datasets[split]) for split in stores}
    planes = [(split, view) for split, store in stores.items() for view in range(store.num_views + 1)]
    ends = np.cumsum([len(common[split][1]) for split, _ in planes])
    drawn = np.sort(np.random.default_rng(seed).choice(ends[-1], size=min(rows, int(ends[-1])), replace=False))
    plane_of = np.searchsorted(ends, drawn, side="right")
    recomputed, stored = [], []
    for number in np.unique(plane_of):
        split, view = planes[number]
        dataset, store_rows = common[split]
        indices = drawn[plane_of == number] - (ends[number] - len(store_rows))
        renderer = replay(stores[split], dataset, geometry=Geometry.of(forward.preset), device=forward.device)
        recomputed.append(forward(renderer(indices, view)).cpu())
        stored.append(stores[split].gather(view, store_rows[indices]).logits(slice(None)))
    return _compare(next(iter(stores.values())), torch.cat(recomputed), torch.cat(stored), device=forward.device)


def _compare(store: LogitStore, recomputed: torch.Tensor, stored: torch.Tensor, *, device: torch.device) -> Difference:
    encoded = store.encoding.encode(recomputed)
    by_encoding = (store.encoding.decode(*encoded.tensors(), recomputed.shape[1]) - recomputed).abs()
    difference = (stored - recomputed).abs()
    fingerprint = store.manifest.fingerprint
    scale = (recomputed.amax(dim=1, keepdim=True) - recomputed).mean()
    return Difference(
        rows=len(recomputed),
        largest=float(difference.max()),
        mean=float(difference.mean()),
        kl=float(kl(recomputed, stored, 1.0).mean()),
        unexplained=float((difference - by_encoding).clamp(min=0).mean() / scale.clamp(min=1e-6)),
        tolerance=TOLERANCES[fingerprint.precision] * (1 if device.type == fingerprint.device else OTHER_DEVICE),
    )


def _common(store: LogitStore, dataset: Dataset) -> tuple[Dataset, npt.NDArray[np.int64]]:
    """Return the samples that are also in the store, and the store's row of each."""
    dataset = with_store_ids(store, dataset)
    both = dataset.subset(np.flatnonzero(find_ids(dataset.sample_ids, store.sample_ids) >= 0))
    return both, join(store, both)


_IMAGES = 24
"""Images that are passed twice; as many others take the place of half of them the third time."""
_SLACK = 10
"""Factor of the tolerance: dropout and batch statistics are far above it, the kernels of a GPU below."""
_SUM = 1e-2
"""Largest difference of the sum of probabilities from 1."""
_SPREAD = 0.5
"""Smallest range of values in 0..1 that are the outputs of a sigmoid, and not small logits."""


def refuse_unfit(forward: FrozenTeacher, renderer: Renderer, *, name: str) -> None:
    """Pass some images twice, and half of them in another batch, and compare the outputs.

    Raises:
        ModelError: the outputs differ, are not finite, or are probabilities.
    """
    rows = np.arange(min(2 * _IMAGES, len(renderer.dataset)))
    first = rows[:_IMAGES]
    kept = first[: (len(first) + 1) // 2]
    once = forward(renderer(first, 0)).cpu()
    finite = torch.isfinite(once).all(dim=1)
    if not finite.any() or not np.isfinite(forward.probe()).all():
        raise ModelError(f"{name} returns logits that are not finite: check its weights, or pass --precision fp32.")
    if not finite.all():
        return  # the pass names the sample
    if _differ(once, forward(renderer(first, 0)).cpu(), forward):
        raise ModelError(
            f"{name} returns other logits when the same images are passed again: it draws at random, as dropout in "
            "training mode does. Put it into evaluation mode, also where its forward says training=True."
        )
    other = np.concatenate([kept[::-1], rows[_IMAGES:]])
    if _differ(once[: len(kept)], forward(renderer(other, 0)).cpu()[: len(kept)].flip(0), forward):
        raise ModelError(
            f"{name} returns other logits for an image in another batch, as batch norm in training mode does. Put it "
            "into evaluation mode, also where its forward says training=True."
        )
    for each in forward.members:  # a mean of probabilities and logits looks like logits
        rows_of = once if each is forward else each(renderer(first, 0)).cpu()
        if each.returns_probabilities:
            _refuse_logits(rows_of, name=each.identity.name)
        else:
            refuse_probabilities(rows_of, name=each.identity.name)


def refuse_probabilities(logits: torch.Tensor, *, name: str) -> None:
    """Refuse outputs ``(n, classes)`` of a softmax or a sigmoid.

    Raises:
        ModelError: they are probabilities; the message has the remedy.
    """
    values = logits.double()
    if values.shape[1] < 2 or values.min() < 0:
        return
    if torch.allclose(values.sum(dim=1), torch.ones(len(values), dtype=values.dtype), atol=_SUM):
        raise ModelError(
            f"{name} returns probabilities: no value is negative, and each row sums to 1. Give --outputs "
            "probabilities, which takes their logarithms, or leave out its softmax; a second softmax would give wrong "
            "soft targets."
        )
    if values.max() <= 1 and values.max() - values.min() > _SPREAD:
        raise ModelError(
            f"{name} returns values in 0..1, as a sigmoid does. Leave out its sigmoid, or return torch.logit of the "
            "values; a softmax of them would give nearly equal soft targets."
        )


def _refuse_logits(logarithms: torch.Tensor, *, name: str) -> None:
    """Refuse rows that are not logarithms of probabilities which sum to 1."""
    if logarithms.double().logsumexp(dim=1).abs().max() > _SUM:
        raise ModelError(
            f"{name} returns no probabilities: its rows do not sum to 1. Leave out --outputs probabilities, which is "
            "for networks that end in a softmax."
        )


def _differ(expected: torch.Tensor, found: torch.Tensor, forward: FrozenTeacher) -> bool:
    """Return whether logits differ by more than the arithmetic, relative as in ``TOLERANCES``."""
    scale = (expected.amax(dim=1, keepdim=True) - expected).mean().clamp(min=1e-6)
    tolerance = _SLACK * TOLERANCES.get(forward.precision, TOLERANCES["fp32"])
    return not bool((found - expected).abs().mean() / scale <= tolerance)

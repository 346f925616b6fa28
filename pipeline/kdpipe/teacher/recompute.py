"""Recomputation of some of a store's logits by its teacher, and their difference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from kdpipe.dataset import Dataset
from kdpipe.encoding.fidelity import kl
from kdpipe.pairing.join import join
from kdpipe.pairing.moved import with_store_ids
from kdpipe.pairing.probes import replay
from kdpipe.store.reader import LogitStore
from kdpipe.teacher.forward import FrozenTeacher
from kdpipe.views import Geometry

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
    codes, row_max = torch.from_numpy(encoded.codes), torch.from_numpy(encoded.row_max)
    by_encoding = (store.encoding.decode(codes, row_max, recomputed.shape[1]) - recomputed).abs()
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
    known = {bytes(sample_id) for sample_id in store.sample_ids}
    both = dataset.subset([index for index, sample_id in enumerate(dataset.sample_ids) if bytes(sample_id) in known])
    return both, join(store, both)

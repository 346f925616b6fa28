"""The batches of a training: rendered once, and their soft targets looked up once, for all students."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from kdpipe.training.group import Group
from kdpipe.training.schedule import Order, batches_of, epoch_batches, epoch_samples, shuffled
from kdpipe.views import Renderer, Renderers, SecondLabels

Indices = npt.NDArray[np.int64]
Signals = Mapping[str, torch.Tensor]
"""Outputs of a teacher's layers, by name; see ``kdpipe.models.signals``."""


class Targets(Protocol):
    """A source of soft targets: a teacher's logits for batches of samples, one epoch's view at a time."""

    @property
    def renderer(self) -> Renderer | None:
        """The renderer of the pixels that ``take`` takes; ``None`` where those of any student will do."""

    def start_epoch(self, view: int, next_view: int | None) -> None:
        """Prepare for an epoch on ``view``; ``next_view`` is that of the epoch after it."""

    def order(self, samples: Indices, *, data_seed: int, epoch: int) -> Indices | None:
        """Return the order in which the epoch must request its samples; ``None`` where any will do.

        ``samples`` are ascending, ``(n,)``; each may be there several times, or not at all.
        """

    def skip(self, samples: int) -> None:
        """Skip the first samples of the order, which an interrupted epoch has used."""

    def logits(self, indices: Indices, pixels: torch.Tensor) -> torch.Tensor:
        """Return float32 ``(n, classes)`` on the device of ``pixels``, uint8 ``(n, 3, H, W)``."""

    def take(self, indices: Indices, pixels: torch.Tensor) -> tuple[torch.Tensor, Signals]:
        """Return the logits, and the signals that come with them, float32 ``(n, *shape)``, on the same device."""


@dataclass(frozen=True, eq=False)
class Batch:
    """A batch of ``n`` samples, on the device."""

    pixels: tuple[torch.Tensor, ...]
    """uint8 ``(n, 3, H, W)`` from each renderer: the students', then a live teacher's where it needs its own.

    Those of this process's part of the samples, where several train one model."""
    labels: torch.Tensor
    """int64 ``(n,)``; -1 for none."""
    second: SecondLabels | None
    """Labels of the images that the view mixes in; ``None`` where it mixes nothing."""
    soft_targets: torch.Tensor | None
    """The teacher's logits, float32 ``(n, classes)``; ``None`` where there is no teacher."""
    signals: Signals
    """Signals of the teacher's layers, float32 ``(n, *shape)``, by name; empty where none are needed."""
    indices: torch.Tensor | None = None
    """The samples' indices in the dataset, int64 ``(n,)``."""
    others: tuple[Batch, ...] = ()
    """Further views of the same samples."""

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.labels)

    def head(self, size: int) -> Batch:
        """Return the first ``size`` samples."""
        second = self.second
        return replace(
            self,
            pixels=tuple(each[:size] for each in self.pixels),
            labels=self.labels[:size],
            second=None if second is None else SecondLabels(second.labels[:size], second.own_share[:size]),
            soft_targets=None if self.soft_targets is None else self.soft_targets[:size],
            signals={name: signal[:size] for name, signal in self.signals.items()},
            indices=None if self.indices is None else self.indices[:size],
            others=tuple(each.head(size) for each in self.others),
        )


class Batches:
    """The batches of a training, epoch by epoch."""

    def __init__(
        self,
        renderers: Sequence[Renderer],
        targets: Targets | Sequence[Targets] | None,
        *,
        order: Order,
        batch_size: int,
        epochs: int,
        group: Group | None = None,
    ) -> None:
        """Render one dataset by each of ``renderers``, which differ only in the size of a model's input.

        ``targets`` are one for each view of a sample, which serve the same order, or one where there is one view. With
        a ``group``, batches have the pixels of this process's part alone.
        """
        self._group = group
        self._targets = () if targets is None else tuple(targets) if isinstance(targets, Sequence) else (targets,)
        own = next((each.renderer for each in self._targets), None)
        asked = renderers[0] if own is None else own
        every = [*renderers] if asked in renderers else [*renderers, asked]
        self._order, self._batch_size, self._epochs = order, batch_size, epochs
        self._renderers, self._first, self._asked = Renderers.of(every), renderers[0], every.index(asked)
        self.device = renderers[0].device
        self.samples = len(renderers[0].dataset)
        """Samples in an epoch."""
        self.steps = len(epoch_batches(self.samples, batch_size=batch_size, data_seed=0, epoch=0))
        """Batches in an epoch."""
        self._labels = torch.from_numpy(renderers[0].dataset.labels.astype(np.int64)).to(self.device)

    def view(self, epoch: int) -> int:
        """Return the view of an epoch, from 0; the first, where each sample has several."""
        return self._order.views_of(epoch)[0]

    def epoch(self, epoch: int, *, done: int = 0) -> tuple[int, Iterator[Batch]]:
        """Return the number of samples in the first ``done`` batches of an epoch, and the batches after those."""
        batches = self._drawn(epoch)
        seen = sum(map(len, batches[:done]))
        for each in self._targets if done else ():
            each.skip(seen)
        return seen, self._rendered(batches[done:], self._order.views_of(epoch))

    def first(self, epoch: int, size: int) -> Batch:
        """Return the first ``size`` samples of an epoch, whose batches must then be drawn anew."""
        indices = self._drawn(epoch)[0][:size]
        views = self._order.views_of(epoch)
        return _joined(
            [self._batch(indices, self._renderers(indices, view), view, place) for place, view in enumerate(views)]
        )

    def _drawn(self, epoch: int) -> list[Indices]:
        """Return the indices of each batch: in the order that the soft targets need, or else shuffled."""
        seed = self._order.data_seed
        samples = epoch_samples(self.samples, self._order.sampling, data_seed=seed, epoch=epoch)
        order = None
        last, views, following = epoch + 1 == self._epochs, self._order.views_of(epoch), self._order.views_of(epoch + 1)
        for each, view, upcoming in zip(self._targets, views, following, strict=bool(self._targets)):
            each.start_epoch(view, None if last else upcoming)
            order = each.order(samples, data_seed=seed, epoch=epoch)
        if order is None:
            order = shuffled(samples, data_seed=seed, epoch=epoch)
        return batches_of(order, batch_size=self._batch_size)

    def _rendered(self, batches: list[Indices], views: Sequence[int]) -> Iterator[Batch]:
        group = self._group
        own = batches if group is None else [indices[group.own(len(indices))] for indices in batches]
        rendered = self._renderers.views((indices, view) for indices in own for view in views)
        for indices, shown in zip(batches, zip(*[rendered] * len(views), strict=True), strict=True):
            yield _joined([self._batch(indices, shown[place], view, place) for place, view in enumerate(views)])

    def _batch(self, indices: Indices, pixels: tuple[torch.Tensor, ...], view: int, place: int) -> Batch:
        """Return a batch of a view, which is number ``place`` of those of each sample."""
        soft_targets, signals = self._targets[place].take(indices, pixels[self._asked]) if self._targets else (None, {})
        samples = torch.from_numpy(indices).to(self.device)
        second = self._first.second_labels(indices, view)
        return Batch(pixels, self._labels[samples], second, soft_targets, signals, samples)


def _joined(views: Sequence[Batch]) -> Batch:
    """Return the first of several views of the same samples, with the others in it."""
    return replace(views[0], others=tuple(views[1:])) if len(views) > 1 else views[0]

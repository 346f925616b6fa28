"""What students are shown: the batches of each epoch, rendered and looked up once, however many students learn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from kdpipe.student.schedule import Schedule, batches_of, epoch_batches, epoch_samples, shuffled, view_of_epoch
from kdpipe.student.targets import Signals, SoftTargets
from kdpipe.views import Renderer, Renderers, SecondLabels

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Batch:
    """A batch of ``n`` samples, on the device."""

    pixels: tuple[torch.Tensor, ...]
    """uint8 ``(n, 3, H, W)``, from each of the renderers."""
    labels: torch.Tensor
    """int64 ``(n,)``; -1 for none."""
    second: SecondLabels | None
    """What the view mixes into the labels; ``None`` where it mixes nothing."""
    soft_targets: torch.Tensor | None
    """The teacher's logits, float32 ``(n, classes)``; ``None`` where there is no teacher."""
    signals: Signals
    """What the teacher's layers showed, float32 ``(n, *shape)``, by name, as far as it was asked for."""

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
        )


class Batches:
    """The batches of a training, epoch by epoch."""

    def __init__(self, renderers: Sequence[Renderer], schedule: Schedule, targets: SoftTargets | None) -> None:
        """Render one dataset by each of ``renderers``, which differ in the size of a model's input alone."""
        self._schedule, self._targets = schedule, targets
        self._renderers, self._first = Renderers.of(renderers), renderers[0]
        self.device = renderers[0].device
        self.samples = len(renderers[0].dataset)
        """Samples in an epoch."""
        self.steps = len(epoch_batches(self.samples, batch_size=schedule.batch_size, data_seed=0, epoch=0))
        """Batches in an epoch."""
        self._labels = torch.from_numpy(renderers[0].dataset.labels.astype(np.int64)).to(self.device)

    def view(self, epoch: int) -> int:
        """Return the view that an epoch, from 0, shows."""
        return view_of_epoch(epoch, self._schedule.views)

    def epoch(self, epoch: int, *, done: int = 0) -> tuple[int, Iterator[Batch]]:
        """Return the number of samples in the first ``done`` batches of an epoch, and the batches after those."""
        batches = self._drawn(epoch)
        seen = sum(map(len, batches[:done]))
        if done and self._targets is not None:
            self._targets.skip(seen)
        return seen, self._rendered(batches[done:], self.view(epoch))

    def first(self, epoch: int, size: int) -> Batch:
        """Return the first ``size`` samples of an epoch, whose batches must then be drawn anew."""
        rows = self._drawn(epoch)[0][:size]
        view = self.view(epoch)
        return self._batch(rows, self._renderers(rows, view), view)

    def _drawn(self, epoch: int) -> list[Rows]:
        """Return the rows of each batch: in the order that the soft targets need, or else shuffled."""
        schedule, seed = self._schedule, self._schedule.data_seed
        samples = epoch_samples(self.samples, schedule.sampling, data_seed=seed, epoch=epoch)
        order = None
        if self._targets is not None:
            upcoming = self.view(epoch + 1) if epoch + 1 < schedule.epochs else None
            self._targets.start_epoch(self.view(epoch), upcoming)
            order = self._targets.order(samples, data_seed=seed, epoch=epoch)
        if order is None:
            order = shuffled(samples, data_seed=seed, epoch=epoch)
        return batches_of(order, batch_size=schedule.batch_size)

    def _rendered(self, batches: list[Rows], view: int) -> Iterator[Batch]:
        for rows, pixels in zip(batches, self._renderers.batches(batches, view), strict=True):
            yield self._batch(rows, pixels, view)

    def _batch(self, rows: Rows, pixels: tuple[torch.Tensor, ...], view: int) -> Batch:
        soft_targets, signals = (None, {}) if self._targets is None else self._targets.answer(rows, pixels[0])
        return Batch(
            pixels,
            self._labels[torch.from_numpy(rows).to(self.device)],
            self._first.second_labels(rows, view),
            soft_targets,
            signals,
        )

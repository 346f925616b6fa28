"""The learning rate of each step, and the samples, order and view of each epoch.

Samples may be drawn by weights, without state and without rounding. Systematic sampling: each sample lies on a line
with a stretch as long as the number of times that it is to be drawn on average, and a ruler with a mark at every whole
number, laid down at random, draws the sample at each mark. Madow, "On the Theory of Systematic Sampling, II" (Ann.
Math. Statist. 1949); particle filters resample in this way (Carpenter, Clifford and Fearnhead, "Improved Particle
Filter for Nonlinear Problems", IEE Proc. 1999). In each epoch the line is in a new random order, as in Hartley and Rao,
"Sampling with Unequal Probabilities and without Replacement" (Ann. Math. Statist. 1962), but class by class, so that
classes too are drawn as often as their stretches say.
"""

from __future__ import annotations

import csv
import math
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from kdpipe.dataset import Dataset
from kdpipe.errors import DatasetError
from kdpipe.training.settings import Optimization
from kdpipe.views import permutation, philox

Indices = npt.NDArray[np.int64]

_LINE_STREAM, _START_STREAM = 0x11E0_0000, 0x57A4_0000
_DRAW = 1 << 32
"""The length of one draw on the line: as many places as a word of Philox can lay the ruler at."""


@dataclass(frozen=True, eq=False)
class Sampling:
    """The expected number of draws of each of ``n`` samples in an epoch of ``n`` draws."""

    lengths: npt.NDArray[np.int64]
    """Each sample's stretch of the line, ``(n,)``: ``2^32`` times its mean number of draws; ``n * 2^32`` in all."""
    labels: npt.NDArray[np.int32]
    """The samples' classes, ``(n,)``; -1 for none."""

    @classmethod
    def of(cls, weights: npt.NDArray[np.float64], labels: npt.NDArray[np.int32], *, balance: bool = False) -> Sampling:
        """Draw in proportion to ``weights``, ``(n,)``.

        With ``balance`` what all samples with a label have of the weight is given to their classes in equal shares, and
        parted within each class in proportion to the weights. A class without any weight gets no share.

        Raises:
            ValueError: a weight is negative or not finite, or none is above 0.
        """
        if not np.isfinite(weights).all() or weights.min() < 0 or not weights.any():
            raise ValueError("weights must be finite and 0 or more, and one of them above 0")
        groups, group = np.unique(labels, return_inverse=True)
        members = np.split(np.argsort(group, kind="stable"), np.cumsum(np.bincount(group))[:-1])
        shares = _whole(weights)
        owned = [sum(shares[index] for index in rows.tolist()) for rows in members]
        totals = apportion(_balanced(owned, groups >= 0) if balance else owned, len(weights) * _DRAW)
        lengths = np.empty(len(weights), dtype=np.int64)
        for rows, total in zip(members, totals, strict=True):
            lengths[rows] = apportion([shares[index] for index in rows.tolist()], total)
        return cls(lengths, labels)

    @property
    def expected(self) -> npt.NDArray[np.float64]:
        """Expected draws of each sample in an epoch, ``(n,)``."""
        return self.lengths / _DRAW

    @property
    def digest(self) -> str:
        """32 hex digits over everything that decides the draws, without the seed."""
        return blake3(self.lengths.astype("<i8").tobytes() + self.labels.astype("<i4").tobytes()).hexdigest(length=16)

    def draw(self, *, data_seed: int, epoch: int) -> Indices:
        """Return the samples of an epoch from 0 in ascending order, int64 ``(n,)``.

        A sample whose stretch is ``x`` draws long is there ``floor(x)`` or ``ceil(x)`` times, and so is a class. Every
        sample is there once where all weights are equal.
        """
        line = permutation(len(self.labels), seed=data_seed, stream=(_LINE_STREAM + epoch) % 2**32)
        line = line[np.argsort(self.labels[line], kind="stable")]
        marks_before = (np.cumsum(self.lengths[line]) + (_DRAW - 1 - _start(data_seed, epoch))) >> 32
        counts = np.empty(len(line), dtype=np.int64)
        counts[line] = np.diff(marks_before, prepend=0)
        return np.repeat(np.arange(len(line)), counts)


def apportion(shares: Sequence[int], total: int) -> list[int]:
    """Divide ``total`` into whole numbers in proportion to ``shares``, each rounded down or up.

    The largest remainders are rounded up (Hamilton's method); of equal ones the first.
    """
    whole = sum(shares)
    if not whole:
        return [0] * len(shares)
    parts, remainders = map(list, zip(*(divmod(share * total, whole) for share in shares), strict=True))
    by_remainder = sorted(range(len(shares)), key=remainders.__getitem__, reverse=True)
    for index in by_remainder[: total - sum(parts)]:
        parts[index] += 1
    return parts


def _whole(weights: npt.NDArray[np.float64]) -> list[int]:
    """Return whole numbers in exactly the same proportions; a float is a whole number over a power of two."""
    ratios = [weight.as_integer_ratio() for weight in weights.tolist()]
    common = max(denominator for _, denominator in ratios)
    return [numerator * (common // denominator) for numerator, denominator in ratios]


def _balanced(owned: Sequence[int], is_class: npt.NDArray[np.bool_]) -> list[int]:
    """Return the weights of the groups with equal ones for all classes that have any, times their number."""
    classes = [share for share, labeled in zip(owned, is_class, strict=True) if labeled and share]
    return [
        sum(classes) * (share > 0) if labeled else share * max(1, len(classes))
        for share, labeled in zip(owned, is_class, strict=True)
    ]


def _start(data_seed: int, epoch: int) -> int:
    """Return where the ruler's first mark is, 0 to ``2^32 - 1``."""
    zero, stream, seed = (np.array([word], dtype=np.uint32) for word in (0, (_START_STREAM + epoch) % 2**32, data_seed))
    return int(philox((zero, stream, zero, zero), (seed, zero))[0][0])


_COLUMNS = ("key", "weight")


def read_sample_weights(path: Path, dataset: Dataset) -> npt.NDArray[np.float64]:
    """Read a weight for each sample of a dataset, float64 ``(n,)``, from a CSV file with the columns key and weight.

    Other columns, and keys of other samples, are passed over: one file serves whatever part is trained on.

    Raises:
        DatasetError: the file is not there or malformed, a weight is not a finite number of 0 or more, a key is there
            twice, a sample is missing, or all of them weigh 0.
    """
    listed: dict[str, tuple[float, int]] = {}
    for line, key, text in _rows(path):
        if key in listed:
            raise DatasetError(f"{path}, line {line}: '{key}' was on line {listed[key][1]} already; keep one of them.")
        listed[key] = _weight(text, f"{path}, line {line}: the weight of '{key}'"), line
    missing = [key for key in dataset.keys if key not in listed]
    if missing:
        found = f"its first key is '{next(iter(listed))}'" if listed else "it has no rows"
        raise DatasetError(
            f"{path} has no weight for {len(missing):,} of the {len(dataset):,} samples to train on, such as "
            f"'{missing[0]}'; {found}. Give each a row; a weight of 0 leaves a sample out."
        )
    weights = np.array([listed[key][0] for key in dataset.keys])
    if not weights.any():
        raise DatasetError(f"{path} gives every sample to train on the weight 0; give one at least more than that.")
    return weights


def _rows(path: Path) -> Iterator[tuple[int, str, str]]:
    """Yield line number, key and weight of each row; keys are compared in Unicode form NFC, like a dataset's."""
    try:
        # Spreadsheets begin UTF-8 with a byte order mark.
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, strict=True)
            _check_columns(path, reader.fieldnames or ())
            for row in reader:
                key, text = (row[name] for name in _COLUMNS)
                if key is None or text is None:
                    raise DatasetError(
                        f"{path}, line {reader.line_num}: it lacks a value, expected a key and a weight."
                    )
                yield reader.line_num, unicodedata.normalize("NFC", key), text
    except FileNotFoundError:
        raise DatasetError(f"there is no file {path}; --sample-weights wants a CSV file of key,weight.") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{path} cannot be read as a CSV file in UTF-8: {error}") from None


def _check_columns(path: Path, found: Sequence[str]) -> None:
    if any(found.count(name) != 1 for name in _COLUMNS):
        header = f"found '{','.join(found)}'" if found else "the file is empty"
        raise DatasetError(f"{path}, line 1: expected the columns {','.join(_COLUMNS)}; {header}.")


def _weight(text: str, what: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not (math.isfinite(weight) and weight >= 0):
        raise DatasetError(f"{what} is '{text}', expected a finite number of 0 or more.")
    return weight


_ORDER_STREAM = 0x0_0DE7


@dataclass(frozen=True)
class Order:
    """The samples and views of each epoch, and their order: all that several students share."""

    data_seed: int
    """Seed of the samples' order."""
    views: int | None
    """Augmented views to cycle through; ``None`` gives each epoch its own view."""
    sampling: Sampling | None = None
    """Weights of the samples; ``None`` to draw each once an epoch."""
    views_per_sample: int = 1
    """Views of each sample in a batch."""

    def views_of(self, epoch: int) -> tuple[int, ...]:
        """Return the views of an epoch, from 0: the next ones of the cycle, as many as there are for each sample."""
        first = epoch * self.views_per_sample
        return tuple(view_of_epoch(each, self.views) for each in range(first, first + self.views_per_sample))


def rate(settings: Optimization, step: int, steps: int) -> float:
    """Return the learning rate of a step from 0, where an epoch has ``steps``."""
    total = steps * settings.epochs
    if settings.lr_schedule == "one-cycle":
        return one_cycle(step, steps=total, peak=settings.lr)
    warmup = round(steps * settings.warmup_epochs)
    if settings.lr_schedule == "cosine" or step < warmup:
        return learning_rate(step, steps=total, warmup=warmup, peak=settings.lr)
    drops = sum(step >= round(steps * epoch) for epoch in settings.lr_steps)
    return settings.lr * settings.lr_gamma**drops


def view_of_epoch(epoch: int, views: int | None) -> int:
    """Return the view of epoch ``epoch``, from 0.

    With ``views`` augmented views it is ``1 + epoch mod views``; with none the plain view 0; without a limit
    (``None``) each epoch has its own view.
    """
    if views is None:
        return 1 + epoch
    return 0 if views == 0 else 1 + epoch % views


def epoch_samples(samples: int, sampling: Sampling | None, *, data_seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """Return the samples of an epoch in ascending order, as many as there are: each once, or as they are drawn."""
    return np.arange(samples) if sampling is None else sampling.draw(data_seed=data_seed, epoch=epoch)


def shuffled(samples: npt.NDArray[np.int64], *, data_seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """Return the samples of an epoch in its order."""
    return samples[permutation(len(samples), seed=data_seed, stream=(_ORDER_STREAM + epoch) % 2**32)]


def epoch_batches(samples: int, *, batch_size: int, data_seed: int, epoch: int) -> list[npt.NDArray[np.int64]]:
    """Return the batches of an epoch, all samples shuffled."""
    return batches_of(shuffled(np.arange(samples), data_seed=data_seed, epoch=epoch), batch_size=batch_size)


def batches_of(order: npt.NDArray[np.int64], *, batch_size: int) -> list[npt.NDArray[np.int64]]:
    """Cut an order of samples into batches; the last one may be smaller, but never a single sample."""
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    if len(batches) > 1 and len(batches[-1]) == 1:  # batch normalization needs two
        batches[-2:] = [np.concatenate(batches[-2:])]
    return batches


def learning_rate(step: int, *, steps: int, warmup: int, peak: float) -> float:
    """Rise linearly to ``peak`` over ``warmup`` steps, then fall along half a cosine to zero at ``steps``.

    Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts" (2017), equation 5.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def one_cycle(step: int, *, steps: int, peak: float) -> float:
    """Rise along half a cosine from ``peak / 25`` for 30 % of the steps, then fall along one to ``peak / 250,000``.

    Smith and Topin, "Super-Convergence" (2018), in the form and with the constants of PyTorch's ``OneCycleLR``, without
    its change of momentum.
    """
    top = max(1.0, 0.3 * steps - 1)
    low, end = peak / 25, peak / 25 / 1e4
    if step <= top:
        return peak + (low - peak) / 2 * (1 + math.cos(math.pi * step / top))
    return end + (peak - end) / 2 * (1 + math.cos(math.pi * (step - top) / max(1.0, steps - 1 - top)))

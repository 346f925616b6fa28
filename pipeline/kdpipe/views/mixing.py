"""Mixup and CutMix as part of a view: the partner of each sample, the amount of it, and the labels' weights.

The partner belongs to the sample, not to a place in a batch, so the teacher and every student see the same mixture.
Amounts are ``lambda = k / 256``. Lambda's distribution Beta(alpha, alpha) is a table of 256 integers, computed in
decimal arithmetic, whose ``exp`` and ``ln`` are correctly rounded on every machine; a draw is one random word looked up
in the table.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from decimal import ROUND_HALF_EVEN, Context, Decimal, localcontext
from enum import IntEnum
from functools import lru_cache
from typing import Annotated

import numpy as np
import numpy.typing as npt
import torch

from kdpipe.dataset import Dataset, find_ids
from kdpipe.errors import DatasetError, RecipeError
from kdpipe.registry import between
from kdpipe.views.erase import CELLS, inside
from kdpipe.views.philox import Draws, Integers, philox
from kdpipe.views.recipe import Recipe, claim, operation

Ids = npt.NDArray[np.uint8]
"""Sample ids, ``(N, 16)``."""
Alpha = Annotated[float, between(0.01, 100)]


class Stream(IntEnum):
    """Streams of mixing."""

    CHOICE = 96
    MIXUP_LAMBDA = 97
    CUTMIX_LAMBDA = 98
    CUTMIX_TOP = 99
    CUTMIX_LEFT = 100


claim(Stream)

_ARITHMETIC = Context(prec=50, rounding=ROUND_HALF_EVEN)
_CUT_SIDES = np.array([(math.isqrt(16 * (256 - step)) + 1) // 2 for step in range(257)], dtype=np.int64)
"""``32 sqrt(1 - step / 256)``, rounded to nearest: ``sqrt(4 (256 - step))`` is never halfway between integers."""

_PARTNERS_STREAM = 1 << 31  # Draws counts below it
_PARTNERS_KEY = (0x74726170, 0x7372656E)  # b"partners", little-endian
_PARTNERS_BLOCKS = 3  # of four rounds each


@dataclass(frozen=True)
class Amounts:
    """The amount of its partner that is mixed into each of ``n`` samples."""

    steps: Integers
    """Mixup: a pixel is ``steps / 256`` its own and the rest its partner's, ``(n,)``; 256 without mixup."""
    boxes: Integers
    """CutMix: top, left, height and width of the partner's box in cells, ``(n, 4)``; empty without CutMix."""
    own_share: npt.NDArray[np.float32]
    """The weight of each sample's own label, ``(n,)``, in 0..1; its partner's label has the rest."""


def thresholds(alpha: float) -> tuple[int, ...]:
    """Return the 256 thresholds in ``[0, 2^32]``, non-decreasing, that turn a uniform word into ``k``.

    A uniform 32-bit word ``u`` stands for ``k``, the number of thresholds that are at most ``u``. Then ``k`` in 0..256
    has the mass that Beta(alpha, alpha) gives to ``[(k - 1/2) / 256, (k + 1/2) / 256]``: threshold ``k`` is
    ``2^32 I_x(alpha, alpha)`` at ``x = (k + 1/2) / 256``, rounded once, at the end. Takes about 15 ms.

    Raises:
        RecipeError: ``alpha`` is outside ``[0.01, 100]``.
    """
    if not 0.01 <= alpha <= 100:
        raise RecipeError(
            f"alpha is {alpha}, expected 0.01 to 100: it shapes the Beta distribution of the mixing weight."
        )
    with localcontext(_ARITHMETIC):
        a = Decimal(alpha)
        scale = 2**31 / _incomplete_beta(Decimal("0.5"), a)
        lower = [round(scale * _incomplete_beta(Decimal(2 * k + 1) / 512, a)) for k in range(128)]
    return (*lower, *(2**32 - threshold for threshold in reversed(lower)))


def _incomplete_beta(x: Decimal, a: Decimal) -> Decimal:
    """Return ``a B_x(a, a)``, the incomplete beta function for ``0 < x <= 1/2``, up to the factor ``a``.

    Its power series ``(x (1 - x))^a sum_n x^n (2a)_n / (a + 1)_n`` (DLMF 8.17.8) has no negative terms, so nothing
    cancels, and each is smaller than the last; the sum ends when they no longer change it.
    """
    total, term, n = Decimal(0), (a * (x * (1 - x)).ln()).exp(), 0
    while total != (total := total + term):
        term *= x * (2 * a + n) / (a + 1 + n)
        n += 1
    return total


def lambda_steps(words: npt.NDArray[np.uint32], table: Sequence[int]) -> Integers:
    """Return ``k`` in 0..256, ``(n,)``, for uniform words ``(n,)``, by a table of thresholds; lambda is ``k / 256``."""
    return np.searchsorted(np.array(table, dtype=np.uint64), words.astype(np.uint64), side="right")


@operation("mixup", "mix", table=thresholds, source="Zhang et al. 2018")
def mixup(table: Sequence[int], draws: Draws, alpha: Alpha) -> Amounts:  # noqa: ARG001 (it is in the table)
    """Blend with another sample; lambda is from Beta(alpha, alpha), in 1/256.

    Zhang et al., "mixup: Beyond Empirical Risk Minimization" (ICLR 2018).
    """
    steps = lambda_steps(draws.words(Stream.MIXUP_LAMBDA)[0], table)
    return Amounts(steps, np.zeros((len(steps), 4), dtype=np.int64), (steps / 256).astype(np.float32))


@operation("cutmix", "mix", table=thresholds, source="Yun et al. 2019")
def cutmix(table: Sequence[int], draws: Draws, alpha: Alpha) -> Amounts:  # noqa: ARG001 (it is in the table)
    """Paste a box of another sample, on a 32 x 32 grid; lambda, the share kept, is from Beta(alpha, alpha)."""
    steps = lambda_steps(draws.words(Stream.CUTMIX_LAMBDA)[0], table)
    boxes, kept = cut_boxes(draws, (Stream.CUTMIX_TOP, Stream.CUTMIX_LEFT), steps)
    return Amounts(np.full(len(steps), 256), boxes, (kept / 1024).astype(np.float32))


def cut_boxes(draws: Draws, streams: tuple[int, int], steps: Integers) -> tuple[Integers, Integers]:
    """Draw the boxes of CutMix for ``lambda = steps / 256``: boxes ``(n, 4)`` in cells, and cells kept ``(n,)``.

    Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features" (ICCV
    2019), equation 2: a square of ``sqrt(1 - lambda)`` of the image's side, rounded to cells, centered uniformly and
    clipped at the border. An odd box has its center in one of the 32 cells, an even one on one of the 33 borders,
    so opposite borders are alike. ``streams`` place the center's row and column. The label's weight is exactly
    ``kept / 1024``, from the area after clipping.
    """
    side = _CUT_SIDES[steps]
    begins, lengths = [], []
    for stream in streams:
        start = draws.integers(stream, CELLS + 1 - side % 2) - side // 2
        begin = np.maximum(start, 0)
        begins.append(begin)
        lengths.append(np.minimum(start + side, CELLS) - begin)
    boxes = np.stack([*begins, *lengths], axis=1)
    return boxes, CELLS**2 - boxes[:, 2] * boxes[:, 3]


def amounts(recipe: Recipe, draws: Draws) -> Amounts:
    """Draw the amounts of a recipe that mixes; with several operations, each sample gets one of them at even odds."""
    steps = recipe.of("mix")
    choice = draws.integers(Stream.CHOICE, len(steps))
    drawn = [step(recipe.thresholds[step.name], draws) for step in steps]
    samples = np.arange(len(choice))
    chosen = (np.stack([getattr(each, field.name) for each in drawn])[choice, samples] for field in fields(Amounts))
    return Amounts(*chosen)


def mix(images: torch.Tensor, partners: torch.Tensor, drawn: Amounts) -> torch.Tensor:
    """Mix ``partners`` into ``images``, both uint8 ``(n, 3, H, W)``; mixup rounds to the nearest level."""
    mixed = images
    if (drawn.steps < 256).any():
        own = torch.from_numpy(drawn.steps.astype(np.int32)).to(images.device).view(-1, 1, 1, 1)
        mixed = ((images.to(torch.int32) - partners).mul_(own).add_(128).bitwise_right_shift_(8) + partners).to(
            torch.uint8
        )
    if drawn.boxes.any():
        cut = inside(drawn.boxes, *images.shape[-2:]).to(images.device).unsqueeze(1)
        keep = cut.to(torch.uint8) - 1  # all bits set where nothing is cut; torch.where is slow on uint8
        mixed = mixed & keep | partners & ~keep
    return mixed


class Population:
    """The samples among which partners are found, in a store's order, and those of them that a dataset has.

    Those of a store that has grown are in several segments: the partners of a sample are in the newest that has it.
    """

    def __init__(self, dataset: Dataset, sample_ids: Ids | Sequence[Ids] | None, *, seed: int) -> None:
        """Look up ``sample_ids``, uint8 ``(N, 16)`` of each segment, in the dataset; by default the dataset's own."""
        self._dataset = dataset
        self._seed = seed
        given = dataset.sample_ids if sample_ids is None else sample_ids
        segments = [given] if isinstance(given, np.ndarray) else given
        self._ends = np.cumsum([len(ids) for ids in segments])
        self._index_of = np.concatenate([find_ids(ids, dataset.sample_ids) for ids in segments])
        self._row_of = np.full(len(dataset), -1)
        for ids, end in zip(segments, self._ends, strict=True):
            rows = find_ids(dataset.sample_ids, ids)
            self._row_of = np.where(rows < 0, self._row_of, rows + end - len(ids))

    def __len__(self) -> int:
        """Return the number of samples."""
        return int(self._ends[-1])

    def partners(self, indices: Integers, view: int) -> Integers:
        """Return the dataset's index of the partner of each of ``indices``, all int64 ``(n,)``.

        Raises:
            DatasetError: a partner is not in the dataset.
        """
        found = self._index_of[self._partners(indices, view)]
        absent = int((found < 0).sum())
        if absent:
            raise DatasetError(
                f"{absent} of {len(indices)} samples of {self._dataset.spec} are mixed with samples that it lacks in "
                f"view {view}. Use all {len(self)} samples that the views were made with."
            )
        return found

    def lacking(self, views: Iterable[int]) -> int:
        """Return how many samples the dataset lacks that are mixed into its own in ``views``."""
        indices = np.flatnonzero(self._row_of >= 0)
        needed = [np.unique(self._partners(indices, view)) for view in views]
        rows = np.unique(np.concatenate(needed)) if needed else np.zeros(0, dtype=np.int64)
        return int((self._index_of[rows] < 0).sum())

    def alone(self, views: Iterable[int]) -> npt.NDArray[np.bool_]:
        """Return which samples of the dataset have a partner in ``views`` that it lacks, ``(len(dataset),)``."""
        indices = np.arange(len(self._row_of))
        found = np.zeros(len(indices), dtype=bool)
        for view in views:
            found |= self._index_of[self._partners(indices, view)] < 0
        return found

    def _partners(self, indices: Integers, view: int) -> Integers:
        """Return the row of each partner, counted through all segments."""
        rows = self._row_of[indices]
        if len(self._ends) == 1:
            return partners(rows, population=len(self), seed=self._seed, view=view)
        found, segment = np.empty_like(rows), np.searchsorted(self._ends, rows, side="right")
        for number in np.unique(segment).tolist():
            at, size = segment == number, int(np.diff(self._ends, prepend=0)[number])
            first = int(self._ends[number]) - size
            found[at] = first + partners(rows[at] - first, population=size, seed=self._seed, view=view)
        return found


def partners(rows: Integers, *, population: int, seed: int, view: int) -> Integers:
    """Return the partner ``(n,)`` of each of the ``rows`` ``(n,)``, which are in ``range(population)``.

    A keyed permutation: over the whole population every row is a partner exactly once; a row may be its own partner,
    with chance 1 / population. The result for a row depends on ``(row, population, seed, view)`` alone. ``population``
    is 1 to 2^32, ``seed`` and ``view`` are 0 to 2^32 - 1.

    A Feistel network (Luby and Rackoff, "How to Construct Pseudorandom Permutations from Pseudorandom Functions", SIAM
    J. Comput. 1988) with cycle walking (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002), so
    the partner of one row is found without permuting all of them. A row is a block of the smallest even number of bits
    that holds the population, fewer than four times as many values; a result outside the population is sent through
    again until it is inside.

    Raises:
        IndexError: a row is outside the population.
    """
    if len(rows) and not 0 <= rows.min() <= rows.max() < population:
        raise IndexError(f"rows {rows.min()} to {rows.max()} are not all in a population of {population}")
    half = ((population - 1).bit_length() + 1) // 2
    functions = _round_functions(half, seed, view)
    found = rows.astype(np.int64)
    walking = np.arange(len(found))
    while len(walking):
        sent = _feistel(found[walking], functions, half)
        found[walking] = sent
        walking = walking[sent >= population]
    return found


def _feistel(blocks: Integers, functions: Integers, half: int) -> Integers:
    """Permute blocks ``(n,)`` of ``2 * half`` bits with one round for each row of ``functions``."""
    left, right = blocks >> half, blocks & ((1 << half) - 1)
    for function in functions:
        left, right = right, left ^ function[right]
    return left << half | right


@lru_cache(maxsize=4)
def _round_functions(half: int, seed: int, view: int) -> Integers:
    """Tabulate the twelve round functions on ``half`` bits, ``(12, 2^half)``: 192 KiB for ImageNet, 6 MiB at 2^32.

    Round ``4 * block + word`` is a word of Philox with the counter ``(argument, 2^31 + block, view, seed)`` and the
    key ``b"partners"``. ``Draws`` counts ``(block, stream, view, seed)`` with a stream below 2^31, and
    ``permutation`` has a key whose second word is 0, so no two of them ever share a counter and a key.

    Four rounds cannot be told from random in about 2^(half / 2) queries (Luby and Rackoff), six in about 2^half
    (Patarin, "Security of Random Feistel Schemes with 5 or More Rounds", CRYPTO 2004), but small datasets have small
    halves. With 2 bits (5 to 16 samples, the worst case) and random round functions, the joint distribution of two
    results is within 1.1e-2 of uniform in total variation after eight rounds and 6.6e-4 after twelve; with 3 bits
    within 1.7e-3 and 2.7e-5.
    """
    argument = np.arange(1 << half, dtype=np.uint32)

    def filled(word: int) -> npt.NDArray[np.uint32]:
        return np.full(len(argument), word, dtype=np.uint32)

    key = filled(_PARTNERS_KEY[0]), filled(_PARTNERS_KEY[1])
    counters = (
        (argument, filled(_PARTNERS_STREAM + block), filled(view), filled(seed)) for block in range(_PARTNERS_BLOCKS)
    )
    functions = np.stack([word for counter in counters for word in philox(counter, key)]).astype(np.int64)
    functions &= (1 << half) - 1
    functions.flags.writeable = False
    return functions

"""Counter-based random numbers: the same four words for the same key and counter, anywhere.

Philox 4x32-10 of Salmon, Moraes, Dror and Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3" (SC 2011),
vectorized over a batch of keys. There is no state, so a draw depends on nothing but its own coordinates.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Context, Decimal, localcontext
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint32]
Integers = npt.NDArray[np.int64]

_MULTIPLIERS = np.array([[0xD2511F53], [0xCD9E8D57]], dtype=np.uint64)
_WEYL = np.array([[0x9E3779B9], [0xBB67AE85]], dtype=np.uint32)
_ROUNDS = np.arange(10, dtype=np.uint32).reshape(10, 1, 1) * _WEYL
"""The number that each round adds to the key, ``(10, 2, 1)``, modulo 2^32."""
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)


def philox(counter: tuple[Words, Words, Words, Words], key: tuple[Words, Words]) -> tuple[Words, ...]:
    """Return the four uint32 words of Philox 4x32-10 for each counter and key, all of shape ``(n,)``."""
    c0, c1, c2, c3 = counter
    multiplied, mixed = np.array([c0, c2], dtype=np.uint64), np.array([c1, c3], dtype=np.uint64)
    for round_key in np.array(key, dtype=np.uint32) + _ROUNDS:
        product = multiplied * _MULTIPLIERS
        # Each lane takes the other one's product.
        multiplied = (product >> _SHIFT)[::-1] ^ mixed ^ round_key
        mixed = (product & _LOW)[::-1]
    (c0, c2), (c1, c3) = multiplied.astype(np.uint32), mixed.astype(np.uint32)
    return c0, c1, c2, c3


@dataclass(frozen=True)
class Draws:
    """The random numbers of one view of a batch of samples.

    Every parameter of a recipe has its own ``stream`` number, 0 to 2^31 - 1, so adding an operation leaves the
    draws of the others as they were. (``mixing.partners`` counts in the upper half of the stream numbers.)
    """

    sample_ids: npt.NDArray[np.uint8]
    """``(n, 16)``; the first 8 bytes, little-endian, are the key."""
    seed: int
    """The recipe's seed, 0 to 2^32 - 1."""
    view: int
    """The view's number, 0 to 2^32 - 1."""

    def words(self, stream: int, block: int | Words = 0) -> tuple[Words, ...]:
        """Return the four uint32 words ``(n,)`` of a block of a stream; ``block`` is one for all or ``(n,)``."""
        keys = np.ascontiguousarray(self.sample_ids[:, :8]).view("<u4").astype(np.uint32)
        counter = tuple(
            np.full(len(keys), coordinate, dtype=np.uint32) for coordinate in (block, stream, self.view, self.seed)
        )
        return philox(counter, (keys[:, 0], keys[:, 1]))  # type: ignore[arg-type]

    def blocks(self, stream: int, count: int) -> Words:
        """Return all words of the first blocks of a stream, ``(n, 4 * count)``, one block after the other."""
        ids = self.sample_ids.repeat(count, axis=0)
        block = np.tile(np.arange(count, dtype=np.uint32), len(self.sample_ids))
        return np.stack(Draws(ids, self.seed, self.view).words(stream, block), axis=1).reshape(-1, 4 * count)

    def integers(self, stream: int, high: npt.ArrayLike) -> Integers:
        """Draw uniform integers in ``[0, high)``, shape ``(n,)``; ``high`` is 1 to 2^32, a scalar or ``(n,)``.

        Unbiased, by Lemire's multiplication with rejection ("Fast Random Integer Generation in an Interval",
        2019): a rejected draw takes the word of the stream's next block.
        """
        bound = np.broadcast_to(np.asarray(high, dtype=np.uint64), (len(self.sample_ids),))
        threshold = (np.uint64(1 << 32) - bound) % bound
        drawn = np.zeros(len(bound), dtype=np.int64)
        waiting = np.ones(len(bound), dtype=bool)
        block = 0
        while waiting.any():
            product = self.words(stream, block)[0].astype(np.uint64) * bound
            accepted = waiting & ((product & _LOW) >= threshold)
            drawn[accepted] = (product[accepted] >> _SHIFT).astype(np.int64)
            waiting &= ~accepted
            block += 1
        return drawn

    def uniform(self, stream: int, block: int = 0) -> npt.NDArray[np.float64]:
        """Draw uniform multiples of 2^-53 in ``[0, 1)``, shape ``(n,)``, from one block of a stream.

        The 53 bits are the upper 27 of the block's first word and the upper 26 of its second. No operation rounds.
        ``floor(uniform * m)`` is an integer in ``[0, m)`` for every ``m`` below 2^53: the product is never rounded
        up to ``m``. Unlike ``integers`` it takes one block, so repeated attempts can have a block each.
        """
        high, low, *_ = self.words(stream, block)
        bits = (high >> np.uint32(5)).astype(np.uint64) << np.uint64(26) | low >> np.uint32(6)
        return bits.astype(np.float64) * 2.0**-53

    def pick(self, table: npt.NDArray[np.float64], stream: int, block: int = 0) -> npt.NDArray[np.float64]:
        """Draw values of a table, each at even odds, shape ``(n,)``, from one block of a stream as ``uniform``."""
        return table[(self.uniform(stream, block) * len(table)).astype(np.int64)]


def permutation(n: int, *, seed: int, stream: int) -> Integers:
    """Return a permutation of ``range(n)`` that depends on ``(n, seed, stream)`` alone.

    Positions are sorted by a 64-bit draw each, ties (about n^2 / 2^65 of them) by position. ``seed`` and
    ``stream`` are 0 to 2^32 - 1.
    """
    position = np.arange(n, dtype=np.uint32)
    zeros = np.zeros(n, dtype=np.uint32)
    seeds, streams = np.full(n, seed, dtype=np.uint32), np.full(n, stream, dtype=np.uint32)
    high, low, *_ = philox((position, streams, zeros, zeros), (seeds, zeros))
    return np.argsort(high.astype(np.uint64) << _SHIFT | low, kind="stable")


@lru_cache(maxsize=16)
def log_uniform(low: float, high: float) -> npt.NDArray[np.float64]:
    """Return ``low (high / low)^(k / 256)`` for k in 0..256, ``(257,)``, for ``0 < low <= high``.

    Computed in decimal and rounded once, so it is the same on every machine; a uniform ``k`` makes it log-uniform in
    ``[low, high]``. The array is cached and read-only.
    """
    with localcontext(Context(prec=40, rounding=ROUND_HALF_EVEN)):
        start, span = Decimal(low).ln(), (Decimal(high) / Decimal(low)).ln()
        table = np.array([float((start + span * k / 256).exp()) for k in range(257)])
    table.flags.writeable = False
    return table

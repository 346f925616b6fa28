"""Counter-based random numbers: the same four words for the same key and counter, anywhere.

Philox 4x32-10 of Salmon, Moraes, Dror and Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3" (SC 2011),
vectorised over a batch of keys. There is no state, so a draw depends on nothing but its own coordinates.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint32]

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (np.uint32(0x9E3779B9), np.uint32(0xBB67AE85))
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)


def philox(counter: tuple[Words, Words, Words, Words], key: tuple[Words, Words]) -> tuple[Words, ...]:
    """Return the four uint32 words of Philox 4x32-10 for each counter and key, all of shape ``(n,)``."""
    c0, c1, c2, c3 = (word.astype(np.uint64) for word in counter)
    k0, k1 = key
    for _ in range(10):
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            (product1 >> _SHIFT) ^ c1 ^ k0,
            product1 & _LOW,
            (product0 >> _SHIFT) ^ c3 ^ k1,
            product0 & _LOW,
        )
        k0, k1 = k0 + _WEYL[0], k1 + _WEYL[1]
    return tuple(word.astype(np.uint32) for word in (c0, c1, c2, c3))


@dataclass(frozen=True)
class Draws:
    """The random numbers that belong to one view of a batch of samples.

    Every parameter of a recipe has its own ``stream`` number, 0 to 2^31 - 1, so adding an operation leaves the
    draws of the others as they were. (``partners`` counts in the upper half of the stream numbers.)
    """

    sample_ids: npt.NDArray[np.uint8]
    """``(n, 16)``; the first 8 bytes, little-endian, are the key."""
    seed: int
    """The recipe's seed, 0 to 2^32 - 1."""
    view: int
    """The view's number, 0 to 2^32 - 1."""

    def words(self, stream: int, block: int = 0) -> tuple[Words, ...]:
        """Return the four uint32 words ``(n,)`` of a block of a stream."""
        keys = np.ascontiguousarray(self.sample_ids[:, :8]).view("<u4").astype(np.uint32)
        counter = tuple(
            np.full(len(keys), coordinate, dtype=np.uint32) for coordinate in (block, stream, self.view, self.seed)
        )
        return philox(counter, (keys[:, 0], keys[:, 1]))  # type: ignore[arg-type]

    def integers(self, stream: int, high: npt.ArrayLike) -> npt.NDArray[np.int64]:
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


def permutation(n: int, *, seed: int, stream: int) -> npt.NDArray[np.int64]:
    """Return a permutation of ``range(n)`` that depends on ``(n, seed, stream)`` alone.

    Positions are sorted by a 64-bit draw each, ties (about n^2 / 2^65 of them) by position. ``seed`` and
    ``stream`` are 0 to 2^32 - 1.
    """
    position = np.arange(n, dtype=np.uint32)
    zeros = np.zeros(n, dtype=np.uint32)
    seeds, streams = np.full(n, seed, dtype=np.uint32), np.full(n, stream, dtype=np.uint32)
    high, low, *_ = philox((position, streams, zeros, zeros), (seeds, zeros))
    return np.argsort(high.astype(np.uint64) << _SHIFT | low, kind="stable")

"""The weight that mixup and CutMix draw from Beta(alpha, alpha), as integers that are the same everywhere.

A weight is ``lambda = k / 256``. Its distribution is a table of 256 integers, computed in decimal arithmetic, whose
``exp`` and ``ln`` are correctly rounded on every machine; a draw is one random word looked up in the table.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import ROUND_HALF_EVEN, Context, Decimal, localcontext

import numpy as np
import numpy.typing as npt

from kdpipe.errors import RecipeError

_ARITHMETIC = Context(prec=50, rounding=ROUND_HALF_EVEN)


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


def steps(words: npt.NDArray[np.uint32], thresholds: Sequence[int]) -> npt.NDArray[np.int64]:
    """Return ``k`` in 0..256, shape ``(n,)``, for uniform words ``(n,)``; the weight is ``lambda = k / 256``."""
    return np.searchsorted(np.array(thresholds, dtype=np.uint64), words.astype(np.uint64), side="right")


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

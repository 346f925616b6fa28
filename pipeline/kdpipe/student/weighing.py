"""How much each of several teachers counts: by its confidence in a sample, or one of them drawn for a batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from kdpipe.student.losses.terms import of_class
from kdpipe.views import philox

_TEACHER_STREAM = 0x7EAC
"""Third word of the counter; orders of samples have 0 there."""


def confidence(said: torch.Tensor, labels: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """Return weights ``(teachers, n)``, which sum to 1 for each sample, of the logits ``(teachers, n, classes)``.

    A teacher counts the more, the smaller its cross-entropy to the label, int64 ``(n,)``, at temperature 1:
    ``shares * (1 - softmax(cross-entropies over the teachers))``, scaled. With equal ``shares``, ``(teachers,)``, these
    are the weights of Zhang, Chen and Wang, "Confidence-Aware Multi-Teacher Knowledge Distillation" (2022), which for
    two teachers are proportional to their probabilities of the label. A sample without a label (-1) takes the
    teacher's entropy, the cross-entropy that the teacher itself expects: the less sure, the less it counts, as in Kwon
    et al., "Adaptive Knowledge Distillation Based on Entropy" (2020).
    """
    log_probabilities = F.log_softmax(said.float(), dim=2)
    expected = -(log_probabilities.exp() * log_probabilities).sum(dim=2)
    seen = torch.stack([-of_class(each, labels) for each in log_probabilities])
    weights = shares[:, None] * (1 - torch.where(labels >= 0, seen, expected).softmax(dim=0))
    return weights / weights.sum(dim=0)


def drawn(shares: Sequence[float], *, data_seed: int, epoch: int, first: int) -> int:
    """Return the teacher of a batch, drawn with the probabilities ``shares``, which sum to 1.

    It depends on nothing but these and the place of the batch: its epoch and the number of samples before it.
    """
    counter = (first, epoch, _TEACHER_STREAM, 0)
    words = [np.array([word], dtype=np.uint32) for word in (*counter, data_seed, 0)]
    word, *_ = philox((words[0], words[1], words[2], words[3]), (words[4], words[5]))
    return int(np.searchsorted(np.cumsum(shares)[:-1], word[0] / 2**32, side="right"))

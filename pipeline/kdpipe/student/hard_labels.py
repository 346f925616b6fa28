"""Cross-entropy and accuracy by the labels: one label for each sample, or two where a view mixes images."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from kdpipe.views import SecondLabels


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor, *, smoothing: float = 0.0) -> torch.Tensor:
    """Return the mean cross-entropy of logits ``(n, classes)`` over the samples whose label is not -1.

    It is 0 where no sample has a label. With ``smoothing`` s each label is 1 - s of itself and s of the uniform
    distribution: Szegedy et al., "Rethinking the Inception Architecture for Computer Vision" (2016), section 7.
    """
    total = F.cross_entropy(logits, labels, ignore_index=-1, reduction="sum", label_smoothing=smoothing)
    return total / (labels >= 0).sum().clamp(min=1)


def top1(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the share of right answers among the samples whose label is not -1; 0 where no sample has a label."""
    correct = (logits.detach().argmax(dim=1) == labels).float().sum()
    return correct / (labels >= 0).sum().clamp(min=1)


def mixed_cross_entropy(
    logits: torch.Tensor, labels: torch.Tensor, second: SecondLabels, *, smoothing: float = 0.0
) -> torch.Tensor:
    """Return the cross-entropy of logits ``(n, classes)`` to two labels each, weighed by their shares of the image.

    Zhang et al., "mixup: Beyond Empirical Risk Minimization" (2018), section 2. A label of -1 counts for nothing; the
    mean is over the shares that have a label. ``smoothing`` is as in ``cross_entropy``.
    """
    own_share = torch.from_numpy(second.own_share).to(logits.device)
    total, weight = logits.new_zeros(()), logits.new_zeros(())
    for label, share in (
        (labels, own_share),
        (torch.from_numpy(second.labels.astype(np.int64)).to(logits.device), 1 - own_share),
    ):
        each = F.cross_entropy(logits, label, ignore_index=-1, reduction="none", label_smoothing=smoothing)
        total = total + (share * each).sum()
        weight = weight + share[label >= 0].sum()
    return total / weight.clamp(min=1e-6)

"""The contrastive loss on features, with a memory of every training sample."""

from __future__ import annotations

from math import sqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdpipe.distil.losses.contract import memory_loss
from kdpipe.models.signals import FEATURES, Shape
from kdpipe.registry import Count, Positive, Share

_EPSILON = 1e-7


@memory_loss("crd", kind=FEATURES, weight=0.8, source="Tian et al. 2020")
class CRD(nn.Module):
    """Contrast of each sample with ``negatives`` others, between embeddings and a memory of the other network's.

    Student's and teacher's features are mapped to unit vectors of ``width`` by a linear map each, which are learned.
    For each sample the memory of the other network's vectors has one positive, that of the same sample, and negatives
    of other classes. With ``P = exp(cosine / temperature) / Z`` and ``c = negatives / samples``, the term is
    ``-log(P / (P + c))`` of the positive plus ``-log(c / (P + c))`` of each negative, the mean over the batch, added up
    over both directions. Then the batch's vectors are mixed into both memories: ``momentum`` of the old, scaled to
    length 1. ``Z`` is such that the mean of ``P`` over the first batch is 1 over the number of samples.

    Tian, Krishnan and Isola, "Contrastive Representation Distillation" (2020), equation 18; constants and the
    weight are those of the authors' code (HobbitLong/RepDistiller), beside cross-entropy of weight 1. There each sample
    has negatives of its own; here they are drawn once for a batch, uniformly, which costs one product of matrices.
    Among them, those of a sample's own class count for nothing and the others for more, so that a sample still has
    ``negatives`` of them.
    """

    memory_student: Tensor
    memory_teacher: Tensor
    scale: Tensor
    labels: Tensor

    def __init__(
        self,
        student: Shape,
        teacher: Shape,
        labels: Tensor,
        *,
        negatives: Count = 16384,
        temperature: Positive = 0.07,
        momentum: Share = 0.5,
        width: Count = 128,
    ) -> None:
        """Remember as many samples as ``labels`` has, int64 ``(samples,)``, -1 for none."""
        super().__init__()
        self.student, self.teacher = nn.Linear(student[0], width), nn.Linear(teacher[0], width)
        self._negatives, self._temperature, self._momentum = negatives, temperature, momentum
        bound = 1 / sqrt(width / 3)
        for name in ("memory_student", "memory_teacher"):
            self.register_buffer(name, torch.empty(len(labels), width).uniform_(-bound, bound))
        self.register_buffer("scale", torch.zeros(2))
        self.register_buffer("labels", labels.clone(), persistent=False)

    def forward(self, student: Tensor, teacher: Tensor, indices: Tensor) -> Tensor:
        """Return the scalar term of features ``(n, channels)`` of the samples ``indices``, and remember them."""
        drawn = torch.randint(len(self.labels), (self._negatives,)).to(indices.device)
        others = self._others(indices, drawn)
        ours, theirs = F.normalize(self.student(student), dim=1), F.normalize(self.teacher(teacher), dim=1)
        terms = [
            self._contrast(side, vectors, memory, indices, drawn, others)
            for side, (vectors, memory) in enumerate(((ours, self.memory_teacher), (theirs, self.memory_student)))
        ]
        self._remember(self.memory_student, ours, indices)
        self._remember(self.memory_teacher, theirs, indices)
        return torch.stack(terms).sum()

    def _others(self, indices: Tensor, drawn: Tensor) -> Tensor:
        """Return how much each negative counts for each sample, ``(n, negatives)``: ``negatives`` in all."""
        mine, its = self.labels[indices][:, None], self.labels[drawn][None]
        different = ((mine != its) | (mine < 0)) & (indices[:, None] != drawn[None])
        return different * (self._negatives / different.sum(dim=1, keepdim=True).clamp(min=1))

    def _contrast(
        self, side: int, vectors: Tensor, memory: Tensor, indices: Tensor, drawn: Tensor, others: Tensor
    ) -> Tensor:
        positive = ((vectors * memory[indices]).sum(dim=1) / self._temperature).exp()
        negative = (vectors @ memory[drawn].T / self._temperature).exp()
        with torch.no_grad():
            if not self.scale[side]:
                total = positive.sum() + (others * negative).sum()
                self.scale[side] = total / (len(vectors) * (1 + self._negatives)) * len(self.labels)
        scale = self.scale[side].clone()  # which the other side may set before the gradient is computed
        positive, negative = positive / scale, negative / scale
        noise = self._negatives / len(self.labels)
        found = (positive / (positive + noise + _EPSILON)).log()
        rejected = (others * (noise / (negative + noise + _EPSILON)).log()).sum(dim=1)
        return -(found + rejected).mean()

    @torch.no_grad()
    def _remember(self, memory: Tensor, vectors: Tensor, indices: Tensor) -> None:
        mixed = self._momentum * memory[indices] + (1 - self._momentum) * vectors
        memory[indices] = F.normalize(mixed, dim=1)

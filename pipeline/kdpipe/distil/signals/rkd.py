"""Relations between the samples of a batch instead of their features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from kdpipe.distil.losses.base import NOT_NEGATIVE, parameter
from kdpipe.models.signals import Shape


@dataclass(frozen=True)
class RKD:
    """``distance`` times the Huber loss of distances plus ``angle`` times that of cosines, in the space of features.

    Distances between two samples are divided by their mean over the batch; a cosine is that of the angle at one sample
    between two others. Nothing is projected: student's and teacher's spaces may have different dimensions.

    Park et al., "Relational Knowledge Distillation" (2019), sections 3.2.1 and 3.2.2, with the weights 25 and 50 of
    section 4.2. As in the authors' code (lenscloth/RKD), the means are over all pairs and triples of the batch, those
    of a sample with itself included, and the mean distance is over those above 0. Takes memory for
    ``n * n * (n + channels)`` numbers.
    """

    kind: ClassVar[str] = "features"
    weight: ClassVar[float] = 1.0

    distance: float = parameter(25.0, NOT_NEGATIVE)
    angle: float = parameter(50.0, NOT_NEGATIVE)

    def projection(self, student: Shape, teacher: Shape) -> torch.nn.Module:  # noqa: ARG002
        """Return nothing that is learned."""
        return torch.nn.Identity()

    def __call__(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """Return the scalar loss for features ``(n, channels)``, as many of one as of the other."""
        (distances, cosines), (wanted_distances, wanted_cosines) = _relations(student), _relations(teacher)
        of_distances = F.smooth_l1_loss(distances, wanted_distances)
        return self.distance * of_distances + self.angle * F.smooth_l1_loss(cosines, wanted_cosines)


def _relations(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return distances over their mean, ``(n, n)``, and cosines ``(n, n, n)``, of which the first is the vertex."""
    differences = features[None] - features[:, None]
    lengths = torch.linalg.vector_norm(differences, dim=2)
    apart = lengths > 0
    mean = lengths.sum() / apart.sum().clamp(min=1)
    # Equal samples have no direction, and no gradient that grows without bound.
    directions = differences / lengths.where(apart, 1).unsqueeze(2)
    return lengths / mean.where(apart.any(), 1), directions @ directions.transpose(1, 2)

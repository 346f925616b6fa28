"""Losses on signals of layers, which a store keeps beside the teacher's logits: features and attention maps."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdpipe.distil.losses.arithmetic import directions
from kdpipe.distil.losses.contract import layer_loss
from kdpipe.models.signals import ATTENTION, FEATURES, Shape
from kdpipe.registry import NotNegative, Positive


def linear(student: Shape, teacher: Shape) -> nn.Module:
    """Return a linear map of the student's channels to the teacher's."""
    return nn.Linear(student[0], teacher[0])


@layer_loss("features", kind=FEATURES, weight=10.0, projection=linear, source="Romero et al. 2015 (FitNets)")
def features(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared difference of the teacher's pooled features and a learned linear map of the student's, averaged.

    Features are ``(n, channels)``, the student's after its projection.

    Romero et al., "FitNets: Hints for Thin Deep Nets" (2015), equation 3, sums half of it over all places of a hint
    layer and trains on it before the rest; here, as in RepDistiller and mdistiller, the mean is added to the other
    terms. They regress unpooled maps through a convolution with a weight of 100. Pooled features are small to store;
    the weight of 10 is ours, since three pairs of layers at 100 are unstable at a learning rate of 0.1
    (docs/guides/signals.md). Several pairs make it hierarchical.
    """
    return F.mse_loss(student, teacher)


@layer_loss("rkd", kind=FEATURES, weight=1.0, source="Park et al. 2019")
def rkd(student: Tensor, teacher: Tensor, distance: NotNegative = 25.0, angle: NotNegative = 50.0) -> Tensor:
    """``distance`` times the Huber loss of distances between samples, plus ``angle`` times that of cosines.

    Features are ``(n, channels)``. Distances between two samples are divided by the mean distance; a cosine is that of
    the angle at one sample between two others. Nothing is projected: student and teacher may differ in channels.

    Park et al., "Relational Knowledge Distillation" (2019), sections 3.2.1 and 3.2.2, with the weights 25 and 50 of
    section 4.2. As in the authors' code (lenscloth/RKD), the Huber losses are means over all pairs and triples of the
    batch, including those of a sample with itself, and the mean distance is taken over the distances above 0 alone.
    Takes memory for ``n * n * (n + channels)`` numbers.
    """
    (distances, cosines), (wanted_distances, wanted_cosines) = _relations(student), _relations(teacher)
    of_distances = F.smooth_l1_loss(distances, wanted_distances)
    return distance * of_distances + angle * F.smooth_l1_loss(cosines, wanted_cosines)


def _relations(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return distances over their mean, ``(n, n)``, and cosines ``(n, n, n)``, of which the first is the vertex."""
    differences = features[None] - features[:, None]
    lengths = torch.linalg.vector_norm(differences, dim=2)
    apart = lengths > 0
    mean = lengths.sum() / apart.sum().clamp(min=1)
    # Equal samples have no direction, and no gradient that grows without bound.
    directions = differences / lengths.where(apart, 1).unsqueeze(2)
    return lengths / mean.where(apart.any(), 1), directions @ directions.transpose(1, 2)


@layer_loss("itrd", kind=FEATURES, weight=1.0, projection=linear, source="Miles et al. 2022")
def itrd(
    student: Tensor,
    teacher: Tensor,
    correlation: NotNegative = 2.0,
    mutual: NotNegative = 1.0,
    alpha: Positive = 1.01,
) -> Tensor:
    """``correlation`` times the log of what channels' correlations lack of 1, plus ``mutual`` times that of kernels.

    Features are ``(n, channels)``, the student's after a learned linear map. The first part is
    ``log2(sum_j |1 - c_j|^(2 alpha))``, with ``c_j`` the correlation of student and teacher in channel ``j`` over the
    batch. The second is ``sum(S^2) - sum((S * T)^2)``: ``S`` are the cosines between the student's samples, ``T`` those
    between the teacher's, and each matrix is divided by its trace.

    Miles, Rodriguez and Mikolajczyk, "Information Theoretic Representation Distillation" (2022);
    the defaults are those of the authors' example (roymiles/ITRD), with cross-entropy of weight 1. As there, the
    standard deviations are the unbiased ones and the covariance is not, so that ``c_j`` is at most ``1 - 1/n``. There,
    the second part reads the student's features without the map where both have as many channels. A channel in which
    the teacher does not vary is left out, as is everything for a batch of one.
    """
    n = len(student)
    (ours, _), (theirs, varies) = directions(student, dim=0), directions(teacher, dim=0)
    lacking = ((1 - (ours * theirs).sum(dim=0) * (n - 1) / n).abs() ** (2 * alpha)).where(varies, 0).sum()
    of_channels = torch.log2(lacking.where(varies.any(), 1))
    cosines, wanted = (F.normalize(features, dim=1) @ F.normalize(features, dim=1).T for features in (student, teacher))
    of_kernels = _over_trace(cosines).square().sum() - _over_trace(cosines * wanted).square().sum()
    return correlation * of_channels + mutual * of_kernels


def _over_trace(kernel: Tensor) -> Tensor:
    return kernel / kernel.trace().clamp(min=1e-12)


@layer_loss("attention", kind=ATTENTION, weight=1000.0, source="Zagoruyko and Komodakis 2017")
def attention(student: Tensor, teacher: Tensor) -> Tensor:
    """Half the squared difference of attention maps, each over its Euclidean length, averaged over batch and places.

    Maps are ``(n, H, W)``. Where they differ in size, both are averaged down to the smaller height and width. A map
    that is 0 throughout stays 0.

    Zagoruyko and Komodakis, "Paying More Attention to Attention" (2017), equation 2: ``beta / 2`` times the squared
    lengths, with ``beta`` 1000 over the number of places and samples, which makes them a mean, times 1000; RepDistiller
    and mdistiller leave the half out, so their 1000 is 2000 here.
    """
    height, width = (min(sides) for sides in zip(student.shape[1:], teacher.shape[1:], strict=True))
    ours, theirs = (_unit(F.adaptive_avg_pool2d(maps, (height, width))) for maps in (student, teacher))
    return F.mse_loss(ours, theirs) / 2


def _unit(maps: Tensor) -> Tensor:
    """Return maps ``(n, H, W)`` as rows ``(n, H * W)`` of length 1.

    Each is divided by its largest value before its length is taken, so that no square underflows.
    """
    rows = maps.flatten(1)
    largest = rows.detach().amax(1, keepdim=True)
    return F.normalize(rows / largest.where(largest > 0, 1), dim=1)

"""Logits to measure encodings on: a real teacher's, and two described stand-ins for one with 1,000 classes."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np
import torch

from kdpipe import dataset, models
from kdpipe.teacher.forward import Forward
from kdpipe.views import Geometry, Renderer

CLASSES = 1_000


@dataclass(frozen=True)
class Logits:
    """Logits of one teacher."""

    values: torch.Tensor
    """Float32 ``(n, classes)``, in random order."""
    rows_per_second: float
    """The teacher's speed on this machine; for a stand-in, a ResNet-50 at 224."""


def cifar10(data: str, teacher: str, weights: str, *, rows: int) -> Logits:
    """Return half the rows from the plain test view and half from views 1 and 2 of the training images."""
    blocks, seconds = [], 0.0
    for split, view, share in (("test", 0, rows // 2), ("train", 1, rows // 4), ("train", 2, rows // 4)):
        loaded = dataset.load(data, split)
        model = models.load(
            teacher, num_classes=len(loaded.classes), weights=weights, fallback_statistics=loaded.statistics
        )
        forward = Forward(model, device=torch.device("cpu"))
        renderer = Renderer(loaded, "crop-flip", seed=0, geometry=Geometry.of(model.preset))
        drawn = np.random.default_rng(view).permutation(len(loaded))[:share]
        pixels = renderer.batches(np.split(drawn, range(250, share, 250)), view)
        for batch in pixels:
            began = time.perf_counter()
            blocks.append(forward(batch))
            seconds += time.perf_counter() - began
    values = torch.cat(blocks).clone()
    return Logits(values[torch.randperm(len(values), generator=_generator(0))], len(values) / seconds)


def described(*, rows: int) -> Logits:
    r"""Return a linear head over features with a hierarchy of classes, 10 x 10 x 10.

    .. math:: z = s\, W h, \qquad h = a \sqrt{D}\, w_y + \epsilon, \qquad D = 256.

    - A class's vector :math:`w_c` is the sum of a normal vector of its group of 100, one of its group of 10 and one of
      its own, with weights 0.45, 0.45, 0.75, so wrong classes near the right one get more than far ones.
    - The features' spectrum falls as :math:`i^{-0.3}`, for :math:`w` and :math:`\epsilon` alike.
    - How easy a sample is, :math:`a`, is log-normal around 0.5 with deviation 0.25.
    - The scale :math:`s` is set so that the mean largest probability is 0.80, as published for ResNet-50 on ImageNet
      (accuracy 0.76, calibration error 0.04). The other figures are not set; ``summary`` tells them.

    Real networks' logits have longer tails than a Gaussian model's, and views of one image resemble each other.
    """
    generator = _generator(1)
    size = 256
    spectrum = torch.arange(1, size + 1).float() ** -0.3
    spectrum /= spectrum.square().mean().sqrt()
    vectors = sum(
        weight * torch.randn(count, size, generator=generator).repeat_interleave(CLASSES // count, dim=0)
        for weight, count in ((0.45, 10), (0.45, 100), (0.75, CLASSES))
    )
    vectors = vectors * spectrum / math.sqrt(size)
    labels = torch.randint(0, CLASSES, (rows,), generator=generator)
    ease = 0.5 * torch.exp(0.25 * torch.randn(rows, 1, generator=generator))
    noise = torch.randn(rows, size, generator=generator) * spectrum
    values = (ease * math.sqrt(size) * vectors[labels] + noise) @ vectors.T
    return Logits(_scaled(values, 0.80), resnet50_rows_per_second())


def independent(*, rows: int) -> Logits:
    """Return normal logits of deviation 2 with the right class raised by a normal amount: no two classes alike.

    The amount's deviation is 3 and its mean is set so that the mean largest probability is 0.80. The table in the
    design's section on encodings was measured on such rows.
    """
    generator = _generator(2)
    values = 2 * torch.randn(rows, CLASSES, generator=generator)
    labels = torch.randint(0, CLASSES, (rows, 1), generator=generator)
    raised = 3 * torch.randn(rows, 1, generator=generator)
    low, high = 0.0, 40.0
    while high - low > 1e-3:
        mean = (low + high) / 2
        trial = values.scatter_add(1, labels, raised + mean)
        low, high = (mean, high) if trial.softmax(dim=1).amax(dim=1).mean() < 0.80 else (low, mean)
    return Logits(trial, resnet50_rows_per_second())


def by_image(saved: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the rows of 80 % of the images, and of the others, each in random order."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randperm(saved.shape[1], generator=generator)
    cut = len(images) * 4 // 5
    parts = (saved[:, part].flatten(0, 1) for part in (images[:cut], images[cut:]))
    first, second = (part[torch.randperm(len(part), generator=generator)] for part in parts)
    return first, second


def summary(logits: torch.Tensor) -> dict[str, float]:
    """Return what kind of teacher this is: confidence, entropy in nats, mass of ten classes, deviation of a row."""
    p = logits.softmax(dim=1)
    return {
        "rows": len(logits),
        "classes": logits.shape[1],
        "mean_top1_probability": float(p.amax(dim=1).mean()),
        "median_top1_probability": float(p.amax(dim=1).median()),
        "mean_entropy": float(torch.special.entr(p).sum(dim=1).mean()),
        "mean_top10_mass": float(p.topk(10, dim=1).values.sum(dim=1).mean()),
        "mean_row_deviation": float(logits.std(dim=1).mean()),
    }


def resnet50_rows_per_second() -> float:
    """Time a ResNet-50 with random weights at 224 x 224, batches of 8."""
    import torchvision

    network = torchvision.models.resnet50().eval()
    pixels = torch.randn(8, 3, 224, 224)
    seconds = []
    with torch.inference_mode():
        for _ in range(4):
            began = time.perf_counter()
            network(pixels)
            seconds.append(time.perf_counter() - began)
    return len(pixels) / sorted(seconds[1:])[1]


def _scaled(values: torch.Tensor, confidence: float) -> torch.Tensor:
    low, high = 1e-3, 1e3
    while high / low > 1.0001:
        scale = math.sqrt(low * high)
        low, high = (scale, high) if (scale * values).softmax(dim=1).amax(dim=1).mean() < confidence else (low, scale)
    return scale * values


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)

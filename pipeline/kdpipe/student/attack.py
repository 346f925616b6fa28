"""Attacks on a model: images that are changed a little, so that it does worse on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import nan

import torch

from kdpipe.errors import ParamsError

Judge = Callable[[torch.Tensor], torch.Tensor]
"""Images in 0..1, float32 ``(n, 3, H, W)``, to float32 logits ``(n, classes)``, each row one of its image alone."""
USAGE = "pgd:EPS,STEPS, such as pgd:8/255,10"


@dataclass(frozen=True)
class Attack:
    """Projected gradient descent in the ball of ``epsilon`` around each image, in the largest difference of a pixel.

    Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks" (2018), section 2.1: from a uniformly
    drawn point of the ball, steps along the sign of the gradient, each projected back to the ball and to the images
    that exist.
    """

    epsilon: float
    """Largest change of a pixel in 0..1."""
    steps: int

    @classmethod
    def parse(cls, written: str) -> Attack:
        """Read ``pgd:EPS,STEPS``; EPS is a fraction such as ``8/255``, or a number such as ``0.031``.

        Raises:
            ParamsError: it cannot be read, EPS is not above 0 and at most 1, or STEPS is not a positive integer.
        """
        name, _, numbers = (part.strip() for part in written.partition(":"))
        size, _, steps = (part.strip() for part in numbers.partition(","))
        if name != "pgd":
            raise ParamsError(f"'{name}' is no attack, expected {USAGE}")
        epsilon = _fraction(size)
        if not 0 < epsilon <= 1:
            raise ParamsError(
                f"EPS is how far pixels in 0..1 may move, above 0 and at most 1, not '{size}': expected {USAGE}"
            )
        if not steps.isdecimal() or int(steps) < 1:
            raise ParamsError(f"STEPS is a whole number of 1 or more, not '{steps}': expected {USAGE}")
        return cls(epsilon, int(steps))

    @property
    def step_size(self) -> float:
        """How far a step moves each pixel: as in the paper, far enough to reach the ball's edge from any start."""
        return 2.5 * self.epsilon / self.steps

    def __call__(
        self,
        judge: Judge,
        images: torch.Tensor,
        harm: Callable[[torch.Tensor], torch.Tensor],
        *,
        generator: torch.Generator | None = None,
    ) -> torch.Tensor:
        """Return ``images``, float32 ``(n, 3, H, W)`` in 0..1, changed so that ``harm``, a scalar of logits, is large.

        ``harm`` is a sum, or a weighted mean, of what each row of logits gives. The starts are drawn by ``generator``,
        or by torch's for the images' device. The model's parameters get no gradient.
        """
        lowest, highest = (images - self.epsilon).clamp_(min=0), (images + self.epsilon).clamp_(max=1)
        device = images.device if generator is None else generator.device
        drawn = torch.rand(images.shape, generator=generator, device=device).to(images.device)
        moved = torch.clamp(images + self.epsilon * (2 * drawn - 1), lowest, highest)
        for _ in range(self.steps):
            moved = torch.clamp(moved + self.step_size * _uphill(judge, moved, harm).sign_(), lowest, highest)
        return moved


@torch.enable_grad()
def _uphill(judge: Judge, images: torch.Tensor, harm: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Return the gradient of ``harm`` by the images, each image's times a positive number of its own.

    At the logits each row is scaled to 1, which changes no sign: where a model is sure of itself, the gradient would
    otherwise vanish on its way back through 16-bit arithmetic.
    """
    images = images.detach().requires_grad_()
    logits = judge(images)
    shown = logits.detach().requires_grad_()
    (slope,) = torch.autograd.grad(harm(shown), shown)
    steepest = slope.abs().amax(dim=1, keepdim=True)
    (gradient,) = torch.autograd.grad(logits, images, slope / steepest.where(steepest > 0, 1))
    return gradient


def _fraction(written: str) -> float:
    """Return ``A`` or ``A/B`` as a number, not a number where it is none."""
    above, line, below = written.partition("/")
    try:
        return float(above) / float(below) if line else float(above)
    except (ValueError, ZeroDivisionError):
        return nan

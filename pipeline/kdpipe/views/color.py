"""Color operations in exact integers: the same pixels on any device, in any batch.

They are those of torchvision's ``transforms.v2.functional`` on tensors, after Pillow's ``ImageEnhance`` and
``ImageOps``. torchvision computes in float32; here every result is a rational number, rounded once. ``images`` is uint8
``(n, 3, H, W)`` and is not changed; the result is a new tensor of that shape. Each parameter is an int32 tensor
``(n,)``, one value per image. A ``factor`` is in units of 1/256, from 0 (the degenerate image) over 256 (unchanged) to
2^15. ``kdpipe.views.augment`` draws the parameters.
"""

from __future__ import annotations

import torch

_UNIT = 256
"""A factor of 1, and a full turn."""


def brightness(images: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Scale the levels: ``min(255, floor(factor * level / 256))``.

    Equal to torchvision's ``adjust_brightness_image`` at ``factor / 256``, whose float32 products are exact.
    """
    return _finish(images.to(torch.int32).mul_(_per_image(factor, images)))


def contrast(images: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Blend with the mean gray level: ``floor((factor * level + (256 - factor) * mean) / 256)``, clamped.

    The mean is a rational number. torchvision's ``adjust_contrast_image`` rounds it to float32, which moves a
    level in 400,000 by one on random images of 32 x 32.
    """
    levels = images.to(torch.int32)
    weight = _per_image(factor, images)
    total = _gray(levels).sum(dim=(1, 2, 3), keepdim=True)
    pixels = images.shape[-2] * images.shape[-1]
    # floor((a + b) / 256) = floor((a + floor(b)) / 256) for an integer a, so the blend stays exact.
    gray = (_UNIT - weight).mul(total).div_(pixels, rounding_mode="floor").to(torch.int32)
    return _finish(levels.mul_(weight).add_(gray))


def saturation(images: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Blend with the gray image: ``floor((factor * level + (256 - factor) * gray) / 256)``, clamped.

    torchvision's ``adjust_saturation_image`` computes the gray levels in float32; 3 of the 2^24 colors get
    another one, by one level.
    """
    levels = images.to(torch.int32)
    weight = _per_image(factor, images)
    gray = _gray(levels).mul_(_UNIT - weight)
    return _finish(levels.mul_(weight).add_(gray))


def sharpness(images: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Blend with the image smoothed by ``[[1, 1, 1], [1, 5, 1], [1, 1, 1]] / 13``, rounded to nearest.

    The border is kept, and so is an image with a side of 2 or less. Equal to torchvision's
    ``adjust_sharpness_image`` at ``factor / 256``: a sum of integers over 13 is never near a half.
    """
    levels = images.to(torch.int32)
    weight = _per_image(factor, images)
    rows = (levels[..., :-2, :] + levels[..., 1:-1, :]).add_(levels[..., 2:, :])
    smooth = (rows[..., :-2] + rows[..., 1:-1]).add_(rows[..., 2:])
    center = levels[..., 1:-1, 1:-1]
    # (sum + 6) // 13 as a product, exact below 6553: 5042 = ceil(2^16 / 13).
    smooth.add_(center, alpha=4).add_(6).mul_(5042).bitwise_right_shift_(16)
    blend = smooth.sub_(center).mul_(_UNIT - weight).bitwise_right_shift_(8)
    center.add_(blend)
    return levels.clamp_(0, 255).to(torch.uint8)


def hue(images: torch.Tensor, turn: torch.Tensor) -> torch.Tensor:
    """Turn the hue of HSV by ``turn / 256`` of a circle; the result is rounded to nearest, halves up.

    With the chroma ``c = max - min`` the hue is an integer place on a hexagon of circumference ``6c`` (Smith,
    "Color Gamut Transform Pairs", 1978), so the turned place is one in units of 1/256, and every channel is a
    clamped distance from a corner of the hexagon. Negative turns and more than one turn are allowed.

    torchvision's ``adjust_hue_image`` at ``turn / 256`` scales by 255.999 and floors instead of rounding: 5 to 12%
    of the levels differ, by one. Turns by a half circle agree.
    """
    red, green, blue = images.to(torch.int32).unbind(1)
    top = torch.maximum(torch.maximum(red, green), blue)
    low = torch.minimum(torch.minimum(red, green), blue)
    chroma = top - low
    angle = torch.where(top == green, (blue - red).add_(chroma, alpha=2), (red - green).add_(chroma, alpha=4))
    angle = torch.where(top == red, green - blue, angle)
    circle = chroma * 6
    # From here on in units of 1/256 of a level, so that the turned place is a whole number.
    angle = _wrap(angle, circle).mul_(256)
    angle.add_(circle * torch.remainder(turn.to(images.device), 256).view(len(images), 1, 1))
    chroma, low, circle = chroma.mul_(256), low.mul_(256), circle.mul_(256)
    angle = _wrap(angle.sub_(circle), circle)
    turned = torch.empty_like(images, memory_format=torch.contiguous_format)
    waves = (
        (angle - 3 * chroma).abs_().sub_(chroma),
        (angle - 2 * chroma).abs_().neg_().add_(chroma, alpha=2),
        (angle - 4 * chroma).abs_().neg_().add_(chroma, alpha=2),
    )
    for channel, wave in enumerate(waves):
        level = torch.minimum(wave.clamp_(min=0), chroma).add_(low)
        turned[:, channel] = level.add_(128).bitwise_right_shift_(8)
    return turned


def posterize(images: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
    """Keep the ``bits`` highest bits of each level, 0 to 8; torchvision's ``posterize_image``."""
    mask = 256 - torch.bitwise_left_shift(1, 8 - _per_image(bits, images))
    return images & mask.to(torch.uint8)


def solarize(images: torch.Tensor, threshold: torch.Tensor) -> torch.Tensor:
    """Invert the levels from ``threshold`` on: 0 inverts all, 256 none; torchvision's ``solarize_image``."""
    # Bits are inverted by XOR with 255; torch.where is many times slower on uint8.
    return (images >= _per_image(threshold, images)).view(torch.uint8).neg_().bitwise_xor_(images)


def autocontrast(images: torch.Tensor) -> torch.Tensor:
    """Stretch each channel to 0..255: ``floor(255 * (level - min) / (max - min))``; a constant one is kept.

    torchvision's ``autocontrast_image`` divides in float32: of the 32,895 pairs of ``max - min`` and
    ``level - min``, 820 fall one level lower there, and the highest level becomes 254 at 213 of the 255 stretches.
    """
    low, high = images.amin((-2, -1), keepdim=True).int(), images.amax((-2, -1), keepdim=True).int()
    spread = high - low
    # Division as a product, exact since (level - min) * (spread - 1) < 2^16.
    scale = (255 << 16) + spread - 1
    scale.div_(spread.clamp(min=1), rounding_mode="floor")
    constant = spread == 0
    low.masked_fill_(constant, 0)
    scale.masked_fill_(constant, 1 << 16)
    return (images - low).mul_(scale).bitwise_right_shift_(16).to(torch.uint8)


def equalize(images: torch.Tensor) -> torch.Tensor:
    """Equalize each channel's histogram with Pillow's table; equal to torchvision's ``equalize_image``.

    With ``step`` = pixels below the channel's highest level, over 255, a level becomes
    ``min(255, (pixels of lower levels + step // 2) // step)``; a channel whose ``step`` is 0 is kept.
    """
    levels = images.flatten(2).to(torch.int64)
    pixels = levels.shape[2]
    histogram = torch.zeros((*levels.shape[:2], 256), dtype=torch.int32, device=images.device)
    histogram.scatter_add_(2, levels, torch.ones_like(levels, dtype=torch.int32))
    reached = histogram.cumsum(2, dtype=torch.int32)
    below = reached - histogram
    step = torch.where(reached < pixels, reached, 0).amax(2, keepdim=True).div_(255, rounding_mode="floor")
    table = below.add_(step // 2).div_(step.clamp(min=1), rounding_mode="floor").clamp_(max=255)
    table = torch.where(step > 0, table, torch.arange(256, dtype=torch.int32, device=images.device))
    return table.to(torch.uint8).gather(2, levels).view(images.shape)


def _per_image(values: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Shape one integer per image to broadcast over its channels and pixels."""
    return values.to(images.device).view(len(images), 1, 1, 1)


def _gray(levels: torch.Tensor) -> torch.Tensor:
    """Return ITU-R BT.601 luma of int32 ``(n, 3, H, W)`` as ``(n, 1, H, W)``, floored to whole levels.

    The weights are torchvision's and add up to 0.9999: the gray of white is 254.
    """
    red, green, blue = levels.unbind(1)
    luma = (red * 2989).add_(green, alpha=5870).add_(blue, alpha=1140)
    return luma.div_(10_000, rounding_mode="floor").unsqueeze_(1)


def _wrap(angle: torch.Tensor, circle: torch.Tensor) -> torch.Tensor:
    """Add ``circle`` in place where the int32 ``angle`` is negative."""
    return angle.add_((angle >> 31).bitwise_and_(circle))


def _finish(blend: torch.Tensor) -> torch.Tensor:
    """Floor int32 levels in units of 1/256 and clamp them to uint8; ``blend`` is overwritten."""
    return blend.bitwise_right_shift_(8).clamp_(0, 255).to(torch.uint8)

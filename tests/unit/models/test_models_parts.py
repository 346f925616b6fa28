"""Batches that are passed in parts: as few as keep every output small, and with the outputs of the whole batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from kdpipe.models import Model, Preset, Signal, load
from kdpipe.models.parts import in_parts, part_size
from kdpipe.teacher.forward import Forward

SIZE = 64
IMAGE_BYTES = 64 * SIZE * SIZE * 4
"""Bytes of the largest output for one image."""
PART = 32 * 1024**2 // IMAGE_BYTES - 1
"""32 fit exactly, without the allocator's header."""


class Wide(nn.Module):
    """64 channels at full resolution; counts the images of each pass."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 64, 3, padding=1)
        self.head = nn.Linear(64, 5)
        self.passed: list[int] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.passed.append(len(x))
        logits: torch.Tensor = self.head(self.body(x).relu().mean((2, 3)))
        return logits


@pytest.fixture
def wide() -> Wide:
    torch.manual_seed(0)
    return Wide().eval()


def test_the_largest_output_fits_into_a_kept_block(wide: Wide) -> None:
    assert PART == 31
    assert part_size(wide, SIZE) == PART
    assert part_size(wide, SIZE // 2) == 4 * 32 - 1
    few = part_size(nn.Flatten(), 8)
    assert few is not None
    assert few > 10_000


def test_a_program_without_layers_is_measured_too(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 5))
    free = ({0: torch.export.Dim.DYNAMIC},)
    program = torch.export.export(network.eval(), (torch.zeros(2, 3, SIZE, SIZE),), dynamic_shapes=free)
    torch.export.save(program, tmp_path / "net.pt2")
    model = load(f"file:{tmp_path / 'net.pt2'}", num_classes=5, fallback_statistics=lambda: ((0.5,) * 3, (0.5,) * 3))
    assert part_size(model.module, SIZE) == PART


@pytest.mark.parametrize(("images", "sizes"), [(0, [0]), (1, [1]), (31, [31]), (32, [16, 16]), (70, [24, 23, 23])])
def test_parts_are_few_and_even(images: int, sizes: list[int]) -> None:
    parts = in_parts(torch.arange(images), PART)
    assert [len(part) for part in parts] == sizes
    assert torch.equal(torch.cat(parts), torch.arange(images))
    assert len(in_parts(torch.arange(images), None)) == 1


def test_a_teacher_passes_parts_and_returns_the_whole(wide: Wide) -> None:
    preset = Preset(size=SIZE, resize=SIZE, interpolation="bilinear", mean=(0.5,) * 3, std=(0.5,) * 3)
    model = Model("wide", wide, preset, "flags", None, "00" * 16)
    forward = Forward(model, device=torch.device("cpu"), signals=[Signal.parse("features:body")])
    pixels = torch.randint(0, 256, (70, 3, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    wide.passed.clear()
    logits, signals = forward.outputs(pixels)
    assert wide.passed == [24, 23, 23]
    expected = wide(preset.normalize(pixels))
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-6)
    pooled = wide.body(preset.normalize(pixels)).mean((2, 3))
    torch.testing.assert_close(signals["features:body"].flatten(1), pooled, rtol=1e-4, atol=1e-5)

"""The memory format of networks: chosen by network and device, tried first, and followed by their images."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from kdpipe.errors import ModelError
from kdpipe.models import Model, Preset, load
from kdpipe.models.layout import arrange, arranged, choose, is_arranged, settle
from kdpipe.teacher.forward import Ensemble, Forward
from kdpipe.testing.doubles import small_network

CPU = torch.device("cpu")
SIZE = 16


class Viewing(nn.Module):
    """Reshapes positions by ``view``, which no image in channels-last allows."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4 * 14 * 14, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.body(x).view(len(x), -1))
        return logits


def model_of(module: nn.Module) -> Model:
    preset = Preset(SIZE, SIZE, "bilinear", (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    return Model("network", module.eval(), preset, "flags", None, "00" * 16)


def pixels(count: int = 8) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("module", "chosen"),
    [
        (small_network(), True),
        (Viewing(), False),
        (nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, 5)), False),
    ],
)
def test_the_choice_follows_from_the_network_and_the_device(module: nn.Module, chosen: bool) -> None:
    before = {name: value.clone() for name, value in module.state_dict().items()}
    module.train()
    assert choose(module, SIZE, asked=None, device=CPU, name="network") is chosen
    assert module.training
    assert not is_arranged(module)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert not choose(module, SIZE, asked=False, device=CPU, name="network")
    assert not choose(module, SIZE, asked=None, device=torch.device("cuda"), name="network")
    settle(module, SIZE)
    assert is_arranged(module) is chosen


def test_a_network_that_cannot_is_named() -> None:
    with pytest.raises(ModelError, match=r"network cannot compute in channels-last \(view size is not compatible .*"):
        choose(Viewing(), SIZE, asked=True, device=CPU, name="network")


def test_images_follow_the_weights() -> None:
    module, images = small_network(), torch.rand(2, 3, 8, 8, requires_grad=True)
    assert arranged(images, module) is images
    arrange(module, channels_last=True)
    (gradient,) = torch.autograd.grad(arranged(images, module).square().sum(), images)
    assert arranged(images, module).is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(gradient, 2 * images)


def test_a_teacher_s_logits_differ_by_rounding_alone() -> None:
    module = small_network()
    expected = module.eval()(model_of(module).preset.normalize(pixels())).detach()
    plain = Forward(model_of(small_network()), device=CPU, channels_last=False)
    fast = Forward(model_of(small_network()), device=CPU)
    assert torch.equal(plain(pixels()), expected)
    assert torch.allclose(fast(pixels()), expected, atol=1e-5)
    assert (plain.memory_format, fast.memory_format) == (None, "channels_last")
    assert Forward(model_of(Viewing()), device=CPU).memory_format is None
    assert Ensemble([plain, plain]).memory_format is None
    assert Ensemble([plain, fast]).memory_format == "channels_last"


def test_a_program_is_converted_too(tmp_path: Path) -> None:
    free = ({0: torch.export.Dim.DYNAMIC},)
    program = torch.export.export(small_network().eval(), (torch.zeros(2, 3, SIZE, SIZE),), dynamic_shapes=free)
    torch.export.save(program, tmp_path / "net.pt2")
    statistics = ((0.5,) * 3, (0.5,) * 3)

    def logits(channels_last: bool | None) -> torch.Tensor:
        model = load(f"file:{tmp_path / 'net.pt2'}", num_classes=10, size=SIZE, fallback_statistics=lambda: statistics)
        forward = Forward(model, device=CPU, channels_last=channels_last)
        assert (forward.memory_format is None) is (channels_last is False)
        return forward(pixels())

    assert torch.allclose(logits(None), logits(False), atol=1e-5)

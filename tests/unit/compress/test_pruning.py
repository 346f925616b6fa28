"""Pruned networks: how much is gone, which channels, and that their names build them again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from kdpipe import models
from kdpipe.compress.pruning import Cost, prune
from kdpipe.compress.smaller import smaller
from kdpipe.errors import ModelError
from kdpipe.models import Model, Preset
from kdpipe.models.loading import identify

PRESET = Preset(32, 32, "bilinear", (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    return models.create(name, 10).eval()


def model(name: str) -> Model:
    module = network(name)
    return Model(name, module, PRESET, "flags", None, identify(name, module))


def counted(module: nn.Module) -> int:
    """Return the multiply-accumulates of one image of 32 x 32: for each output, the inputs that it is a sum of."""
    total = 0

    def count(layer: nn.Module, _inputs: object, output: torch.Tensor) -> None:
        nonlocal total
        assert isinstance(layer.weight, torch.Tensor)
        total += output.numel() * layer.weight[0].numel()

    layers = [part for part in module.modules() if isinstance(part, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    with torch.no_grad():
        module(torch.zeros(1, 3, 32, 32))
    for hook in hooks:
        hook.remove()
    return total


@pytest.mark.parametrize(
    ("name", "fraction", "by"),
    [
        *(("resnet8", fraction, by) for fraction in (0.3, 0.7) for by in ("macs", "params")),
        *(("wrn_16_1", 0.5, "macs"), ("vgg8", 0.5, "params"), ("MobileNetV2", 0.5, "macs")),
    ],
)
def test_the_target_is_reached(name: str, fraction: float, by: Cost) -> None:
    """Never missed, and by at most the cost of one channel of each layer below it."""
    whole, pruned = network(name), prune(network(name), size=32, fraction=fraction, by=by)
    if by == "macs":
        left = counted(pruned) / counted(whole)
    else:
        left = sum(each.numel() for each in pruned.parameters()) / sum(each.numel() for each in whole.parameters())
    assert 1 - fraction - 0.06 < left <= 1 - fraction


def test_channels_that_compute_nothing_go_first() -> None:
    """The second half of the channels of every layer is 0, so that the network without them computes the same."""
    whole = network("resnet8")
    with torch.no_grad():
        for name, part in whole.named_modules():
            if isinstance(part, nn.Conv2d):
                part.weight[part.out_channels // 2 :] = 0
                if name != "conv1":
                    part.weight[:, part.in_channels // 2 :] = 0
            elif isinstance(part, nn.BatchNorm2d):
                part.weight[part.num_features // 2 :] = 0
            elif isinstance(part, nn.Linear):
                part.weight[:, part.in_features // 2 :] = 0
    pruned = prune(whole, size=32, fraction=0.7)
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert counted(pruned) < 0.3 * counted(whole)
        assert torch.allclose(pruned(images), whole(images), atol=1e-5)


def test_the_network_itself_is_left_as_it_is() -> None:
    whole = network("resnet8")
    before = {key: value.clone() for key, value in whole.state_dict().items()}
    prune(whole.train(), size=32, fraction=0.5)
    assert whole.training
    assert all(torch.equal(before[key], value) for key, value in whole.state_dict().items())


@pytest.mark.parametrize("name", ["resnet14", "wrn_16_1", "vgg8", "MobileNetV2"])
def test_a_pruned_network_is_built_again_from_its_name(name: str) -> None:
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    pruned = prune(network(name), size=32, fraction=0.4)
    named = smaller(model(name), num_classes=10, pruned=0.4)
    assert models.base_of(named.name) == name
    built = models.create(named.name, 10).eval()
    built.load_state_dict(pruned.state_dict())
    with torch.no_grad():
        assert torch.equal(built(images), pruned(images))
        assert torch.equal(named.module(images), pruned(images))
    assert identify(named.name, built) == named.digest
    assert str(built) == str(pruned)


def test_a_network_of_torchvision_with_gates_is_pruned() -> None:
    """MobileNetV3 multiplies channels by gates of their own, whose layers have to lose the same channels."""
    name = "torchvision:mobilenet_v3_small"
    named = smaller(model(name), num_classes=10, pruned=0.5)
    assert counted(named.module) <= 0.5 * counted(network(name))
    assert named.name.startswith(f"compressed:{name},widths=")


def test_pruned_twice_is_named_by_the_model_at_the_beginning() -> None:
    once = smaller(model("resnet8"), num_classes=10, pruned=0.3)
    twice = smaller(once, num_classes=10, pruned=0.3, low_rank=0.2)
    thrice = smaller(twice, num_classes=10, pruned=0.2)
    assert [models.base_of(each.name) for each in (once, twice, thrice)] == ["resnet8"] * 3
    costs = [counted(each.module) for each in (model("resnet8"), once, twice, thrice)]
    assert costs[1] <= 0.7 * costs[0]
    assert costs[2] <= 0.56 * costs[1]
    assert costs[3] <= 0.8 * costs[2]


@pytest.mark.parametrize("name", ["ShuffleV1", "ShuffleV2"])
def test_a_network_that_cannot_be_followed_is_refused(name: str) -> None:
    with pytest.raises(
        ModelError, match=f"^{name} cannot be pruned: torch-pruning cannot follow its layers"
    ) as refused:
        smaller(model(name), num_classes=10, pruned=0.3)
    assert "\n" not in str(refused.value)


def test_more_than_there_is_cannot_be_pruned() -> None:
    with pytest.raises(ModelError, match=r"99.999% of the macs of resnet8 cannot be pruned"):
        smaller(model("resnet8"), num_classes=10, pruned=0.99999)


def test_without_torch_pruning_a_pruned_network_is_loaded_and_none_is_made(tmp_path: Path) -> None:
    named = smaller(model("resnet8"), num_classes=10, pruned=0.5)
    path = tmp_path / "model.safetensors"
    models.save_weights(path, named.module, architecture=named.name, preset=PRESET, classes=list("abcdefghij"))
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.save(named.module(images), tmp_path / "logits.pt")
    code = f"""
import sys
sys.modules["torch_pruning"] = None
import torch
from kdpipe import models
from kdpipe.compress.pruning import prune
from kdpipe.models.saved import architecture_of
from pathlib import Path
path = Path({str(path)!r})
model = models.load(architecture_of(path), num_classes=10, weights=path, fallback_statistics=None)
images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
with torch.no_grad():
    assert torch.equal(model.module(images), torch.load(path.with_name("logits.pt")))
assert model.digest == {named.digest!r}
try:
    prune(model.module, size=32, fraction=0.5)
except Exception as error:
    print(error)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout == "--prune needs torch-pruning: pip install 'kdpipe[compress]'\n"

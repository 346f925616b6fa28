"""Signals of layers: their names, the layers that have them, and their values."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from kdpipe.errors import ModelError, ParamsError
from kdpipe.models import Signal, Watch, create, layers, load, parse_signals


def _watch(module: nn.Module, *names: str, size: int = 32) -> Watch:
    return Watch(module, [Signal.parse(name) for name in names], size=size, name="net")


class _Net(nn.Module):
    """Layers of every kind: one that runs twice, one that is changed in place, one with two outputs, tokens, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, 2, 1)
        self.act = nn.ReLU(inplace=True)
        self.body = nn.Conv2d(4, 6, 3, 1, 1)
        self.pair = _Pair()
        self.tokens = nn.Linear(6, 5)
        self.head = nn.Linear(5, 7)
        self.unused = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act(self.stem(x))
        x = self.act(self.body(x))
        first, _ = self.pair(x)
        tokens = self.tokens(first.flatten(2).transpose(1, 2))
        logits: torch.Tensor = self.head(tokens.mean(1))
        return logits


class _Pair(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x, x


@pytest.fixture
def net() -> _Net:
    torch.manual_seed(0)
    return _Net()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def test_names() -> None:
    found = parse_signals("logits+features:layer3,layer2.0+attention:layer3+features:layer3, penultimate")
    assert list(map(str, found)) == [
        "attention:layer3",
        "features:layer2.0",
        "features:layer3",
        "features:penultimate",
    ]
    assert parse_signals("logits") == parse_signals("") == ()


@pytest.mark.parametrize(
    "text",
    [
        *("layer3", "maps:layer3", "features:", "features", "attention:penultimate", "features:a/b", "features:.."),
        *("features:layer=3", "logits,features:layer3", "features:layer2,attention:layer3"),
    ],
)
def test_other_names_are_refused(text: str) -> None:
    with pytest.raises(ParamsError):
        parse_signals(f"logits+{text}")


def test_layers_have_the_shape_of_their_last_output(net: _Net) -> None:
    assert layers(net, 8) == {
        "stem": (4, 4, 4),
        "body": (6, 4, 4),
        "act": (6, 4, 4),
        "pair": (6, 4, 4),
        "tokens": (16, 5),
        "head": (7,),
    }
    assert list(layers(net, 8))[-2:] == ["tokens", "head"]


def test_the_zoo_s_stages_have_the_published_shapes() -> None:
    found = layers(create("resnet8", 10), 32)
    shapes = {name: found[name] for name in ("layer1", "layer2", "layer3", "fc")}
    assert shapes == {"layer1": (16, 32, 32), "layer2": (32, 16, 16), "layer3": (64, 8, 8), "fc": (10,)}


def test_values_are_those_of_the_definitions(net: _Net, images: torch.Tensor) -> None:
    watch = _watch(net, "features:stem", "attention:stem", "features:act", "attention:body", "features:tokens", size=8)
    assert watch.shapes == {
        "features:stem": (4,),
        "attention:stem": (4, 4),
        "features:act": (6,),
        "attention:body": (4, 4),
        "features:tokens": (5,),
    }
    net(images)
    found = watch.take()
    with torch.no_grad():
        stem = nn.functional.conv2d(images, net.stem.weight, net.stem.bias, 2, 1).double()
        body = nn.functional.conv2d(stem.clamp(min=0).float(), net.body.weight, net.body.bias, 1, 1).double()
        act = body.clamp(min=0)
        tokens = act.flatten(2).transpose(1, 2) @ net.tokens.weight.double().T + net.tokens.bias.double()
    expected = {
        "features:stem": stem.mean((2, 3)),  # before the activation changes it in place
        "attention:stem": (stem**2).mean(1),
        "features:act": act.mean((2, 3)),  # the second time that it runs
        "attention:body": (body**2).mean(1),
        "features:tokens": tokens.mean(1),
    }
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name].dtype == torch.float32
        torch.testing.assert_close(found[name].double(), values, rtol=1e-5, atol=1e-6)
    assert watch.take() == {}


def test_gradients_pass_where_the_network_goes_on_in_place(net: _Net, images: torch.Tensor) -> None:
    watch = _watch(net, "attention:stem", "features:stem", "features:head", size=8)
    net(images)
    found = watch.take()
    sum(values.square().sum() for values in found.values()).backward()
    with torch.no_grad():
        stem = nn.functional.conv2d(images, net.stem.weight, net.stem.bias, 2, 1)
    assert torch.isfinite(stem).all()
    assert net.stem.weight.grad is not None
    assert float(net.stem.weight.grad.abs().max()) > 0


def test_what_is_kept_of_a_head_is_not_changed_in_place(net: _Net, images: torch.Tensor) -> None:
    watch = _watch(net, "features:head", size=8)
    logits = net(images)
    expected = logits.detach().clone()
    logits.detach().zero_()
    torch.testing.assert_close(watch.take()["features:head"].detach(), expected)


def test_penultimate_features_are_one_of_them(images: torch.Tensor, net: _Net) -> None:
    watch = _watch(net, "features:penultimate", size=8)
    logits = net(images)
    (shown,) = watch.take().values()
    torch.testing.assert_close(net.head(shown), logits)
    assert watch.shapes == {"features:penultimate": (5,)}


def test_layers_that_are_not_there_or_do_not_fit(net: _Net) -> None:
    refusals = {
        "features:boddy": r"no layer 'boddy' .*did you mean 'body'\?",
        "features:unused": "no layer 'unused'",
        "attention:head": r"output has shape \(7,\) per image",
        "attention:tokens": r"output has shape \(16, 5\) per image",
    }
    for name, message in refusals.items():
        with pytest.raises(ModelError, match=message):
            _watch(net, name, size=8)


def test_a_search_leaves_no_trace_and_closing_takes_the_hooks_away(net: _Net, images: torch.Tensor) -> None:
    net.train()
    state = torch.get_rng_state()
    watch = _watch(net, "features:body", "features:penultimate", size=8)
    assert net.training
    assert torch.equal(torch.get_rng_state(), state)
    watch.close()
    net(images)
    assert watch.take() == {}
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in net.modules())


def test_an_exported_program_has_no_layers(tmp_path: Path) -> None:
    module = create("resnet8", 10).eval()
    program = torch.export.export(module, (torch.zeros(2, 3, 32, 32),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    torch.export.save(program, tmp_path / "teacher.pt2")
    half = (0.5, 0.5, 0.5)
    model = load(f"file:{tmp_path / 'teacher.pt2'}", num_classes=10, fallback_statistics=lambda: (half, half))
    said = layers(model.module, 32)
    assert not [name for name in said if "layer" in name]
    with pytest.raises(ModelError, match="no layer 'layer3'"):
        _watch(model.module, "features:layer3")


class _Beside(nn.Module):
    """Returns a tensor that is no batch before the one that is, as layers with rotary positions do."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros(1, x.shape[1], x.shape[2]), 2 * x


class _Positions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.beside = _Beside()
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.beside(x.flatten(2))[1].mean(1)[:, :8])
        return logits


def test_a_signal_is_of_the_tensor_that_is_a_batch(images: torch.Tensor) -> None:
    net = _Positions()
    watch = _watch(net, "hidden:beside", size=8)
    net(images)
    assert watch.shapes == {"hidden:beside": (3, 64)}
    assert torch.equal(watch.take()["hidden:beside"], 2 * images.flatten(2))

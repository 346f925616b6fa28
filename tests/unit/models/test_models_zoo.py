"""The zoo has the parameters, the keys and the arithmetic of the networks it is named after."""

import pytest
import torch

from kdpipe import models

# Millions of parameters at 100 classes, as papers that distil RepDistiller's networks round them; wrn_16_2
# and resnet56 also in the table of https://github.com/clovaai/overhaul-distillation (Heo et al., 2019).
PUBLISHED_MILLIONS = {
    "resnet20": "0.28",
    "resnet56": "0.86",
    "resnet110": "1.74",
    "resnet8x4": "1.23",
    "resnet32x4": "7.43",
    "wrn_16_2": "0.70",
    "wrn_40_1": "0.57",
    "wrn_40_2": "2.26",
    "vgg8": "3.97",
    "vgg13": "9.46",
    "MobileNetV2": "0.81",
    "ShuffleV1": "0.95",
    "ShuffleV2": "1.36",
    "ResNet50": "23.71",
}


@pytest.mark.parametrize(("name", "millions"), PUBLISHED_MILLIONS.items())
def test_parameters_are_the_published_ones(name: str, millions: str) -> None:
    assert f"{models.count_parameters(models.create(name, 100)) / 1e6:.2f}" == millions


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        # https://github.com/feature-importance/model-utilities, resnet50_3x3-cifar100 and its ResNet-18.
        ("ResNet18", 11_220_132),
        ("ResNet50", 23_705_252),
        # Reproductions of AugMix (Hendrycks et al., 2020), whose CIFAR-100 network this is.
        ("wrn_40_2", 2_255_156),
    ],
)
def test_parameters_are_exactly_the_published_ones(name: str, parameters: int) -> None:
    assert models.count_parameters(models.create(name, 100)) == parameters


@pytest.mark.parametrize(
    ("name", "millions"),
    # He et al., 2016, table 6, at 10 classes.
    [
        ("resnet20", "0.27"),
        ("resnet32", "0.46"),
        ("resnet44", "0.66"),
        ("resnet56", "0.85"),
        ("resnet110", "1.7"),
    ],
)
def test_resnet_parameters_without_projections_are_the_papers(name: str, millions: str) -> None:
    # The paper pads its shortcuts with zeros; ours are two 1x1 convolutions, each with a batch norm.
    projections = 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64
    digits = len(millions.split(".")[1])
    parameters = models.count_parameters(models.create(name, 10)) - projections
    assert f"{parameters / 1e6:.{digits}f}" == millions


def test_resnet20_has_272474_parameters_for_ten_classes() -> None:
    assert models.count_parameters(models.create("resnet20", 10)) == 272_474


def test_macs_of_resnet20_are_the_closed_form() -> None:
    stem = 32 * 32 * 9 * 3 * 16
    one = 6 * 32 * 32 * 9 * 16 * 16
    two = 16 * 16 * (9 * 16 * 32 + 5 * 9 * 32 * 32 + 16 * 32)
    three = 8 * 8 * (9 * 32 * 64 + 5 * 9 * 64 * 64 + 32 * 64)
    network = models.create("resnet20", 10).train()
    assert models.macs(network, 32) == stem + one + two + three + 64 * 10
    assert all(part.training for part in network.modules())


def test_macs_of_vgg8_show_where_it_pools() -> None:
    sides, widths = (32, 16, 8, 4, 4), (3, 64, 128, 256, 512, 512)
    convolutions = sum(side**2 * 9 * widths[i] * widths[i + 1] for i, side in enumerate(sides))
    assert models.macs(models.create("vgg8", 10), 32) == convolutions + 512 * 10


@pytest.mark.parametrize("name", models.names())
def test_every_network_returns_logits_and_learns(name: str) -> None:
    torch.manual_seed(0)
    network = models.create(name, 7)
    logits = network(torch.randn(2, 3, 16 if name.startswith("ResNet") else 32, 32)[:, :, :, :16].contiguous())
    assert logits.shape == (2, 7)
    logits.square().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_networks_take_other_sizes() -> None:
    with torch.no_grad():
        for name in ("resnet8", "vgg8", "ShuffleV2", "MobileNetV2"):
            assert models.create(name, 3).eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 3)


def test_mobilenet_v1_has_the_published_parameters_and_macs() -> None:
    network = models.create("MobileNetV1", 1000)
    assert models.count_parameters(network) == 4_231_976
    # Howard et al., 2017, table 4, "1.0 MobileNet-224".
    assert f"{models.macs(network, 224) / 1e6:.0f}" == "569"


@pytest.mark.parametrize(("side", "final"), [(224, 7), (160, 5), (225, 8), (32, 1), (31, 1), (8, 1)])
def test_mobilenet_v1_takes_any_size(side: int, final: int) -> None:
    network = models.create("MobileNetV1", 3).eval()
    sides = []
    network.model.register_forward_hook(lambda _module, _shown, said: sides.append(tuple(said.shape)))  # type: ignore[union-attr]
    with torch.no_grad():
        assert network(torch.zeros(2, 3, side, side)).shape == (2, 3)
    assert sides == [(2, 1024, final, final)]


def test_mobilenet_v1_computes_what_its_definition_says() -> None:
    from torch.nn import functional as F

    torch.manual_seed(0)
    network = models.create("MobileNetV1", 5)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
            module.running_var.uniform_(0.05, 0.5)  # type: ignore[union-attr]
    state = network.eval().state_dict()

    def step(x: torch.Tensor, block: int, part: int, stride: int, groups: int, padding: int) -> torch.Tensor:
        weight = state[f"model.{block}.{part}.weight"]
        x = F.conv2d(x, weight, stride=stride, groups=groups, padding=padding)
        norm = [state[f"model.{block}.{part + 1}.{key}"] for key in ("running_mean", "running_var", "weight", "bias")]
        return F.batch_norm(x, *norm).relu()

    images = torch.randn(2, 3, 64, 64)
    x = step(images, 0, 0, 2, 1, 1)
    channels = [32, 64, 128, 128, 256, 256, *[512] * 6, 1024, 1024]
    for block in range(1, 14):
        stride = 2 if channels[block - 1] != channels[block] and block > 1 else 1
        x = step(x, block, 0, stride, channels[block - 1], 1)
        x = step(x, block, 3, 1, 1, 0)
        assert x.shape[1] == channels[block]
    logits = F.linear(x.flatten(2).mean(2), state["fc.weight"], state["fc.bias"])
    with torch.no_grad():
        torch.testing.assert_close(network(images), logits)


def test_initialization_follows_the_global_generator() -> None:
    torch.manual_seed(1)
    first = models.create("resnet8", 10).state_dict()
    torch.manual_seed(1)
    again = models.create("resnet8", 10).state_dict()
    torch.manual_seed(2)
    other = models.create("resnet8", 10).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["conv1.weight"], other["conv1.weight"])


@pytest.mark.parametrize(
    ("name", "keys"),
    # Keys and shapes as RepDistiller's models/*.py name them.
    [
        (
            "resnet8",
            {
                "conv1.weight": (16, 3, 3, 3),
                "layer1.0.conv1.weight": (16, 16, 3, 3),
                "layer2.0.downsample.0.weight": (32, 16, 1, 1),
                "layer2.0.downsample.1.running_var": (32,),
                "fc.weight": (100, 64),
            },
        ),
        (
            "resnet8x4",
            {"bn1.weight": (32,), "layer1.0.downsample.0.weight": (64, 32, 1, 1), "fc.bias": (100,)},
        ),
        (
            "wrn_16_2",
            {
                "block1.layer.0.bn1.weight": (16,),
                "block1.layer.0.convShortcut.weight": (32, 16, 1, 1),
                "block3.layer.1.conv2.weight": (128, 128, 3, 3),
                "bn1.running_mean": (128,),
                "fc.weight": (100, 128),
            },
        ),
        (
            "vgg13",
            {
                "block0.0.bias": (64,),
                "block0.1.weight": (64,),
                "block4.3.weight": (512, 512, 3, 3),
                "block4.4.running_var": (512,),
                "classifier.weight": (100, 512),
            },
        ),
        (
            "MobileNetV2",
            {
                "conv1.0.weight": (16, 3, 3, 3),
                "blocks.0.0.conv.0.weight": (16, 16, 1, 1),
                "blocks.6.0.conv.7.bias": (160,),
                "conv2.0.weight": (1280, 160, 1, 1),
                "classifier.0.weight": (100, 1280),
            },
        ),
        (
            "ShuffleV1",
            {
                "layer1.0.conv1.weight": (54, 24, 1, 1),
                "layer1.1.conv1.weight": (60, 80, 1, 1),
                "layer3.3.bn3.weight": (960,),
                "linear.weight": (100, 960),
            },
        ),
        (
            "ShuffleV2",
            {
                "layer1.0.conv5.weight": (58, 58, 1, 1),
                "layer2.7.conv3.weight": (116, 116, 1, 1),
                "conv2.weight": (1024, 464, 1, 1),
                "linear.bias": (100,),
            },
        ),
        (
            # As mdistiller's models/imagenet/mobilenetv1.py names them.
            "MobileNetV1",
            {
                "model.0.0.weight": (32, 3, 3, 3),
                "model.0.1.running_var": (32,),
                "model.1.0.weight": (32, 1, 3, 3),
                "model.12.3.weight": (1024, 512, 1, 1),
                "model.13.4.bias": (1024,),
                "fc.weight": (100, 1024),
            },
        ),
        ("ResNet18", {"layer2.0.shortcut.0.weight": (128, 64, 1, 1), "linear.weight": (100, 512)}),
        (
            "ResNet50",
            {
                "layer1.0.shortcut.1.weight": (256,),
                "layer4.2.conv3.weight": (2048, 512, 1, 1),
                "linear.weight": (100, 2048),
            },
        ),
    ],
)
def test_keys_are_those_of_public_checkpoints(name: str, keys: dict[str, tuple[int, ...]]) -> None:
    state = models.create(name, 100).state_dict()
    assert {key: tuple(state[key].shape) for key in keys if key in state} == keys


def test_resnet_keys_are_complete() -> None:
    convolution = ["weight"]
    norm = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    expected = {f"conv1.{part}" for part in convolution} | {f"bn1.{part}" for part in norm}
    for stage in (1, 2, 3):
        for index in (1, 2):
            expected |= {f"layer{stage}.0.conv{index}.{part}" for part in convolution}
            expected |= {f"layer{stage}.0.bn{index}.{part}" for part in norm}
        if stage > 1:
            expected |= {f"layer{stage}.0.downsample.0.{part}" for part in convolution}
            expected |= {f"layer{stage}.0.downsample.1.{part}" for part in norm}
    assert set(models.create("resnet8", 10).state_dict()) == expected | {"fc.weight", "fc.bias"}


def test_resnet_computes_what_its_definition_says() -> None:
    from torch.nn import functional as F

    torch.manual_seed(0)
    network = models.create("resnet8", 5)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    network.eval()
    state = network.state_dict()
    x = images = torch.randn(2, 3, 32, 32)

    def norm(x: torch.Tensor, key: str) -> torch.Tensor:
        return F.batch_norm(x, *(state[f"{key}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")))

    x = norm(F.conv2d(x, state["conv1.weight"], padding=1), "bn1").relu()
    for stage, stride in ((1, 1), (2, 2), (3, 2)):
        block = f"layer{stage}.0"
        out = norm(F.conv2d(x, state[f"{block}.conv1.weight"], stride=stride, padding=1), f"{block}.bn1").relu()
        out = norm(F.conv2d(out, state[f"{block}.conv2.weight"], padding=1), f"{block}.bn2")
        if stage > 1:
            projected = F.conv2d(x, state[f"{block}.downsample.0.weight"], stride=stride)
            x = norm(projected, f"{block}.downsample.1")
        x = (out + x).relu()
    logits = F.linear(F.avg_pool2d(x, 8).flatten(1), state["fc.weight"], state["fc.bias"])
    with torch.no_grad():
        torch.testing.assert_close(network(images), logits)


def test_shuffling_interleaves_the_groups() -> None:
    from kdpipe.models.zoo.mobile import shuffle

    channels = torch.arange(6).view(1, 6, 1, 1)
    assert shuffle(channels, 2).flatten().tolist() == [0, 3, 1, 4, 2, 5]
    assert shuffle(channels, 3).flatten().tolist() == [0, 2, 4, 1, 3, 5]


def test_a_split_block_passes_half_of_its_channels_on() -> None:
    from kdpipe.models.zoo.mobile import SplitBlock

    x = torch.randn(2, 8, 4, 4)
    assert torch.equal(SplitBlock(8).eval()(x)[:, ::2], x[:, :4])


@pytest.mark.parametrize(("channels", "stride"), [(8, 2), (4, 1)])
def test_a_preactivation_block_projects_only_activated_inputs(channels: int, stride: int) -> None:
    from kdpipe.models.zoo.resnet import PreactivationBlock

    block = PreactivationBlock(4, channels, stride).eval()
    torch.nn.init.zeros_(block.conv2.weight)
    x = torch.randn(2, 4, 6, 6)
    activated = (x / (1 + block.bn1.eps) ** 0.5).relu()
    expected = x if block.convShortcut is None else block.convShortcut(activated)
    torch.testing.assert_close(block(x), expected)

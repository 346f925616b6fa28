"""The classifiers of distillation papers: names and state-dict keys of public checkpoints.

Names, widths and keys follow RepDistiller (Tian et al., 2020, https://github.com/HobbitLong/RepDistiller)
and mdistiller (Zhao et al., 2022, https://github.com/megvii-research/mdistiller), so that their checkpoints
load. All networks take float32 ``(n, 3, S, S)``, pool globally, and return logits ``(n, classes)``; they were
made for S = 32 and accept larger inputs. Those of ``imagenet=True`` were made for S = 224 and accept S = 32.

A family registers its networks here; its file, which needs torch, is imported when one of them is built.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdpipe.models.registry import family

if TYPE_CHECKING:
    from torch import nn

RESNET = "He et al., 2016, Deep residual learning for image recognition, https://arxiv.org/abs/1512.03385"


@family({f"resnet{depth}": {"depth": depth} for depth in (8, 14, 20, 32, 44, 56, 110)}, source=RESNET)
def resnet(num_classes: int, *, depth: int) -> nn.Module:
    """ResNet for CIFAR, of basic blocks with 16, 32 and 64 channels."""
    from kdpipe.models.zoo.resnet import CifarResNet

    return CifarResNet(depth, 16, num_classes)


@family({f"resnet{depth}x4": {"depth": depth} for depth in (8, 32)}, source=RESNET)
def resnet_x4(num_classes: int, *, depth: int) -> nn.Module:
    """ResNet for CIFAR, of basic blocks with 64, 128 and 256 channels."""
    from kdpipe.models.zoo.resnet import CifarResNet

    return CifarResNet(depth, 32, num_classes)


@family({"ResNet18": {"depth": 18}, "ResNet50": {"depth": 50}}, source=RESNET)
def wide_stem_resnet(num_classes: int, *, depth: int) -> nn.Module:
    """ImageNet's ResNet with a 3x3 stem and no max pooling, for small images."""
    from kdpipe.models.zoo.imagenet import WideStemResNet

    return WideStemResNet(depth, num_classes)


@family(
    {f"wrn_{depth}_{widen}": {"depth": depth, "widen": widen} for depth in (16, 40) for widen in (1, 2)},
    source="Zagoruyko & Komodakis, 2016, Wide residual networks, https://arxiv.org/abs/1605.07146",
)
def wide_resnet(num_classes: int, *, depth: int, widen: int) -> nn.Module:
    """Wide residual network for CIFAR, without dropout."""
    from kdpipe.models.zoo.resnet import WideResNet

    return WideResNet(depth, widen, num_classes)


@family(
    {f"vgg{depth}": {"depth": depth} for depth in (8, 11, 13, 16, 19)},
    source="Simonyan & Zisserman, 2015, Very deep convolutional networks, https://arxiv.org/abs/1409.1556",
)
def vgg(num_classes: int, *, depth: int) -> nn.Module:
    """VGG with batch norm and one linear layer, for small images."""
    from kdpipe.models.zoo.imagenet import VGG

    return VGG(depth, num_classes)


@family(
    {"MobileNetV2": {}},
    source="Sandler et al., 2018, MobileNetV2: inverted residuals and linear bottlenecks, "
    "https://arxiv.org/abs/1801.04381",
)
def mobilenet_v2(num_classes: int) -> nn.Module:
    """MobileNetV2 at half width, for small images."""
    from kdpipe.models.zoo.mobile import MobileNetV2

    return MobileNetV2(num_classes)


@family({"ShuffleV1": {}}, source="Zhang et al., 2018, ShuffleNet, https://arxiv.org/abs/1707.01083")
def shufflenet_v1(num_classes: int) -> nn.Module:
    """ShuffleNet V1 with three groups, for small images."""
    from kdpipe.models.zoo.mobile import ShuffleNetV1

    return ShuffleNetV1(num_classes)


@family({"ShuffleV2": {}}, source="Ma et al., 2018, ShuffleNet V2, https://arxiv.org/abs/1807.11164")
def shufflenet_v2(num_classes: int) -> nn.Module:
    """ShuffleNet V2 at width 1, for small images."""
    from kdpipe.models.zoo.mobile import ShuffleNetV2

    return ShuffleNetV2(num_classes)


@family(
    {"MobileNetV1": {}},
    source="Howard et al., 2017, MobileNets: efficient convolutional neural networks for mobile vision, "
    "https://arxiv.org/abs/1704.04861",
    imagenet=True,
)
def mobilenet_v1(num_classes: int) -> nn.Module:
    """MobileNet V1 at width 1, for ImageNet."""
    from kdpipe.models.zoo.mobile import MobileNetV1

    return MobileNetV1(num_classes)

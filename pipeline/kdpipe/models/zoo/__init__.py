"""The classifiers of distillation papers: names and state-dict keys that public checkpoints use.

Names, widths and keys follow RepDistiller (Tian et al., 2020, https://github.com/HobbitLong/RepDistiller)
and mdistiller (Zhao et al., 2022, https://github.com/megvii-research/mdistiller), so that their checkpoints
load. All networks take float32 ``(n, 3, S, S)``, pool globally, and return logits ``(n, classes)``; they were
made for S = 32 and accept larger inputs. Those ``FOR_IMAGENET`` were made for S = 224 and accept S = 32.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from kdpipe.models.zoo.mobilenet import MobileNetV2
from kdpipe.models.zoo.mobilenet_v1 import MobileNetV1
from kdpipe.models.zoo.resnet import CifarResNet
from kdpipe.models.zoo.resnet_wide_stem import BasicBlock, Bottleneck, WideStemResNet
from kdpipe.models.zoo.shufflenet import ShuffleNetV1, ShuffleNetV2
from kdpipe.models.zoo.vgg import VGG
from kdpipe.models.zoo.wrn import WideResNet

BUILDERS: dict[str, Callable[[int], nn.Module]] = {
    **{f"resnet{depth}": partial(CifarResNet, depth, 16) for depth in (8, 14, 20, 32, 44, 56, 110)},
    **{f"resnet{depth}x4": partial(CifarResNet, depth, 32) for depth in (8, 32)},
    "ResNet18": partial(WideStemResNet, BasicBlock, (2, 2, 2, 2)),
    "ResNet50": partial(WideStemResNet, Bottleneck, (3, 4, 6, 3)),
    **{f"wrn_{depth}_{width}": partial(WideResNet, depth, width) for depth in (16, 40) for width in (1, 2)},
    **{f"vgg{depth}": partial(VGG, depth) for depth in (8, 11, 13, 16, 19)},
    "MobileNetV2": MobileNetV2,
    "ShuffleV1": ShuffleNetV1,
    "ShuffleV2": ShuffleNetV2,
    "MobileNetV1": MobileNetV1,
}
"""Builders by name; each takes the number of classes and draws weights from torch's global generator."""

FOR_IMAGENET = frozenset({"MobileNetV1"})
"""Those that see images as torchvision's classifiers do unless told otherwise."""

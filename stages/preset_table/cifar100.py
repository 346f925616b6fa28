"""Published recipes for CIFAR-100: kd, dkd and kd of standardised logits, for the pairs of RepDistiller's tables."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from kdpipe.stages.preset_table.base import DKD, KD, MDISTILLER, PUBLISHED, Figures, Preset, Settings, Source


@dataclass(frozen=True)
class _Pair:
    """A pair of RepDistiller's tables, with the figures of two papers."""

    teacher: str
    student: str
    teacher_top1: float
    baseline: float
    kd: float
    dkd: float | None = None
    beta: float = 8
    """``beta`` of dkd in mdistiller's configs/cifar100/dkd; 8 is its default."""
    notes: tuple[str, ...] = ()

    @property
    def lr(self) -> float:
        """The learning rate of both repositories."""
        return 0.01 if self.student in {"MobileNetV2", "ShuffleV1", "ShuffleV2"} else 0.05


_REPDISTILLER = Source(
    "Tian 2020, RepDistiller",
    'Tian, Krishnan and Isola, "Contrastive Representation Distillation" (2020)',
    "https://github.com/HobbitLong/RepDistiller",
)
_STANDARDIZATION = Source(
    "Sun 2024, logit-standardization",
    'Sun et al., "Logit Standardization in Knowledge Distillation" (2024)',
    "https://github.com/sunshangquan/logit-standardization-KD",
)

_ALONE = "teacher and student alone are RepDistiller's figures"
_COLUMN = (
    "mdistiller's README heads this column ResNet32x4, MobileNet-V2; its KD is that of ShuffleV2, and "
    "https://github.com/sunshangquan/logit-standardization-KD has the same figure under ShuffleNet-V2"
)

_PAIRS = (
    _Pair("wrn_40_2", "wrn_16_2", 75.61, 73.26, 74.92, 76.23, 6),
    _Pair("wrn_40_2", "wrn_40_1", 75.61, 71.98, 73.54, 74.81, 6),
    _Pair("resnet56", "resnet20", 72.34, 69.06, 70.66, 71.97, 2),
    _Pair("resnet110", "resnet20", 74.31, 69.06, 70.67),
    _Pair("resnet110", "resnet32", 74.31, 71.14, 73.08, 74.11, 2),
    _Pair("resnet32x4", "resnet8x4", 79.42, 72.50, 73.33, 76.32),
    _Pair("vgg13", "vgg8", 74.64, 70.36, 72.98, 74.68, 6),
    _Pair("vgg13", "MobileNetV2", 74.64, 64.60, 67.37, 69.71, 6),
    _Pair("ResNet50", "MobileNetV2", 79.34, 64.60, 67.35, 70.35),
    _Pair("ResNet50", "vgg8", 79.34, 70.36, 73.81),
    _Pair("resnet32x4", "ShuffleV1", 79.42, 70.50, 74.07, 76.45),
    _Pair("resnet32x4", "ShuffleV2", 79.42, 71.82, 74.45, 77.07, notes=(_COLUMN,)),
    _Pair("wrn_40_2", "ShuffleV1", 75.61, 70.50, 74.83, 76.70),
)
"""RepDistiller's README, rows Teacher, Student and KD; mdistiller's README, row DKD."""

_STANDARDIZED = {
    ("resnet32x4", "resnet8x4"): (2, 76.62),
    ("vgg13", "vgg8"): (3, 74.36),
    ("wrn_40_2", "wrn_40_1"): (2, 74.37),
    ("wrn_40_2", "wrn_16_2"): (2, 76.11),
    ("resnet56", "resnet20"): (2, 71.43),
    ("resnet110", "resnet32"): (2, 74.17),
    ("resnet32x4", "ShuffleV2"): (2, 75.56),
    ("vgg13", "MobileNetV2"): (3, 68.61),
}
"""Temperature and top-1 by pair: row KD+Ours of the README of logit-standardization-KD, and the names of its logs.

Those with another weight than 9 in the log's name, or without a log, are left out.
"""

_CIFAR_CACHING: Settings = {"recipe": "crop-flip", "views": 16}
_CIFAR_TRAINING: Settings = {
    "epochs": 240,
    "batch_size": 64,
    "optimizer": "sgd",
    "nesterov": False,
    "weight_decay": 5e-4,
    "lr_schedule": "step",
    "lr_steps": "150,180,210",
    "lr_gamma": 0.1,
    "warmup_epochs": 0,
}
_STANDARDIZED_KD: Settings = {"loss": "kd", "standardize": True, "kd_weight": 9, "ce_weight": 0.1}


def _cifar100(pair: _Pair) -> Iterator[Preset]:
    """Yield what was published for a pair."""

    def published(loss: str, settings: Settings, source: Source, distilled: float, *notes: str) -> Preset:
        return Preset(
            name=f"cifar100-{loss}-{pair.teacher}-{pair.student}",
            what=f"CIFAR-100, 240 epochs, {loss}",
            data="cifar100:PATH",
            caching={"teacher": pair.teacher, **_CIFAR_CACHING},
            settings={"student": pair.student, "lr": pair.lr, **_CIFAR_TRAINING, **settings},
            source=source,
            figures=Figures(pair.teacher_top1, pair.baseline, distilled),
            notes=(*PUBLISHED, *notes),
        )

    yield published("kd", KD, _REPDISTILLER, pair.kd)
    if pair.dkd is not None:
        yield published("dkd", {**DKD, "beta": pair.beta}, MDISTILLER, pair.dkd, _ALONE, *pair.notes)
    if (pair.teacher, pair.student) in _STANDARDIZED:
        temperature, distilled = _STANDARDIZED[pair.teacher, pair.student]
        settings = {**_STANDARDIZED_KD, "temperature": temperature}
        yield published("kd-standardized", settings, _STANDARDIZATION, distilled, _ALONE)


CIFAR100 = tuple(preset for pair in _PAIRS for preset in _cifar100(pair))

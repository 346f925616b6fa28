"""Training recipes with the results that were published for them, each figure from the page that its source names.

A figure that is on no such page is ``None``. Accuracies are test top-1 in percent.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

Settings = Mapping[str, str | int | float]
"""Parameters of a stage by name."""


@dataclass(frozen=True)
class Source:
    """Who published a recipe and its figures, and where."""

    short: str
    """Author, year and repository, for a table."""
    paper: str
    page: str
    """The page or file that the figures were read from."""


@dataclass(frozen=True)
class Figures:
    """Test top-1 in percent, as published."""

    teacher: float | None
    baseline: float | None
    """The student, trained alone."""
    distilled: float | None


@dataclass(frozen=True)
class Preset:
    """A recipe: what ``cache-teacher`` and ``train-student`` are told, and what came of it."""

    name: str
    what: str
    data: str
    """The data set as ``--data`` takes it, with PATH for where it lies."""
    caching: Settings
    """Parameters of ``cache-teacher``."""
    settings: Settings
    """Parameters of ``train-student``."""
    source: Source
    figures: Figures
    notes: tuple[str, ...] = ()
    """How this differs from what was published, and what else the figures need to be read."""

    @property
    def pair(self) -> str:
        """Teacher and student, without where they come from."""
        teacher, student = (
            str(name).rpartition(":")[2] for name in (self.caching["teacher"], self.settings["student"])
        )
        return f"{teacher} -> {student}"


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
_MDISTILLER = Source(
    "Zhao 2022, mdistiller",
    'Zhao et al., "Decoupled Knowledge Distillation" (2022)',
    "https://github.com/megvii-research/mdistiller",
)
_STANDARDIZATION = Source(
    "Sun 2024, logit-standardization",
    'Sun et al., "Logit Standardization in Knowledge Distillation" (2024)',
    "https://github.com/sunshangquan/logit-standardization-KD",
)
_TORCHDISTILL = Source(
    "Matsubara 2020, torchdistill",
    'Matsubara, "torchdistill: A Modular, Configuration-Driven Framework for Knowledge Distillation" (2020)',
    "https://github.com/yoshitomo-matsubara/torchdistill/blob/7cdde406eebabce6dfcc4f2e7e80ebd7eb7648ba/configs/"
    "official/ilsvrc2012/yoshitomo-matsubara/kd-resnet18_from_resnet34.log",
)

_FRESH_VIEWS = "published with new crops in every epoch; here the epochs take turns with the store's views"
_BEST = "the published code keeps its best epoch on the test set; here it is the last one that is reported"
_PUBLISHED = (_FRESH_VIEWS, _BEST)
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
_KD: Settings = {"loss": "kd", "temperature": 4, "kd_weight": 0.9, "ce_weight": 0.1}
_STANDARDIZED_KD: Settings = {"loss": "kd", "standardize": True, "kd_weight": 9, "ce_weight": 0.1}
_DKD: Settings = {
    "loss": "dkd",
    "temperature": 4,
    "alpha": 1,
    "kd_weight": "constant:1,warmup=20",
    "ce_weight": 1,
}


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
            notes=(*_PUBLISHED, *notes),
        )

    yield published("kd", _KD, _REPDISTILLER, pair.kd)
    if pair.dkd is not None:
        yield published("dkd", {**_DKD, "beta": pair.beta}, _MDISTILLER, pair.dkd, _ALONE, *pair.notes)
    if (pair.teacher, pair.student) in _STANDARDIZED:
        temperature, distilled = _STANDARDIZED[pair.teacher, pair.student]
        settings = {**_STANDARDIZED_KD, "temperature": temperature}
        yield published("kd-standardized", settings, _STANDARDIZATION, distilled, _ALONE)


_IMAGENET_CACHING: Settings = {
    "teacher": "torchvision:resnet34",
    "weights": "IMAGENET1K_V1",
    "recipe": "rrc-flip",
    "views": 4,
}
_IMAGENET_TRAINING: Settings = {
    "student": "torchvision:resnet18",
    "epochs": 100,
    "optimizer": "sgd",
    "nesterov": False,
    "weight_decay": 1e-4,
    "lr_schedule": "step",
    "lr_steps": "30,60,90",
    "lr_gamma": 0.1,
    "warmup_epochs": 0,
}
_HALVES: Settings = {"loss": "kd", "temperature": 1, "kd_weight": 0.5, "ce_weight": 0.5}
_TORCHVISION = "teacher and student alone are torchvision's IMAGENET1K_V1, as its weights say"


_THREE_GPUS = (
    "the log of this figure is of three GPUs, 3 x 256 images in a step at 3 x 0.1; the config beside it has what each "
    "of them did"
)


def _imagenet(name: str, what: str, settings: Settings, source: Source, distilled: float, *notes: str) -> Preset:
    """Return a recipe for ResNet-34 and ResNet-18 of torchvision."""
    return Preset(
        name=f"imagenet-{name}-resnet34-resnet18",
        what=f"ImageNet-1k, 100 epochs, {what}",
        data="folder:PATH",
        caching=_IMAGENET_CACHING,
        settings={**_IMAGENET_TRAINING, **settings},
        source=source,
        figures=Figures(73.31, 69.76, distilled),
        notes=(*_PUBLISHED, _TORCHVISION, *notes),
    )


_SHORT: Settings = {"lr": 0.1, "batch_size": 128, "weight_decay": 5e-4, "lr_schedule": "cosine", "warmup_epochs": 1}


def _short(
    name: str, what: str, data: str, caching: Settings, settings: Settings, page: str, figures: Figures, *notes: str
) -> Preset:
    """Return a recipe of kdpipe's own for a small machine."""
    source = Source("kdpipe", "kdpipe, measured by its benchmarks" if figures.distilled else "kdpipe", page)
    return Preset(name, what, data, caching, {**settings, **_SHORT, **_KD}, source, figures, notes)


PRESETS: tuple[Preset, ...] = (
    *(preset for pair in _PAIRS for preset in _cifar100(pair)),
    _imagenet("kd-768", "kd, batch 768", {"batch_size": 768, "lr": 0.3, **_HALVES}, _TORCHDISTILL, 71.37, _THREE_GPUS),
    _imagenet("kd-512", "kd, batch 512", {"batch_size": 512, "lr": 0.2, **_HALVES}, _MDISTILLER, 71.03),
    _imagenet(
        "dkd-512",
        "dkd, batch 512",
        {"batch_size": 512, "lr": 0.2, **_DKD, "temperature": 1, "beta": 0.5, "kd_weight": 1},
        _MDISTILLER,
        71.70,
    ),
    _short(
        "digits-short",
        "digits, 12 epochs: seconds on a laptop",
        "digits",
        {"teacher": "resnet20", "recipe": "crop-flip", "views": 12},
        {"student": "resnet8", "epochs": 12},
        "params.yaml",
        Figures(None, None, None),
    ),
    _short(
        "cifar10-short",
        "CIFAR-10, 10 epochs",
        "cifar10:PATH",
        {"teacher": "resnet20", "recipe": "crop-flip", "views": 4},
        {"student": "resnet8", "epochs": 10},
        "benchmarks/results/cifar10.json",
        Figures(86.89, 77.42, 80.11),
        "measured once",
    ),
    _short(
        "cifar10-short-5000",
        "5,000 images of CIFAR-10, 20 epochs",
        "cifar10:PATH",
        {"teacher": "resnet20", "recipe": "rrc-flip:0.5", "views": 16, "limit_train": 5000},
        {"student": "resnet8", "epochs": 20, "limit_train": 5000},
        "benchmarks/results/consistency.json",
        Figures(86.89, 56.51, 63.32),
        "means of three seeds",
    ),
    _short(
        "cifar100-short",
        "CIFAR-100, 30 epochs",
        "cifar100:PATH",
        {"teacher": "resnet56", "recipe": "crop-flip", "views": 16},
        {"student": "resnet20", "epochs": 30},
        "stages/preset_table.py",
        Figures(None, None, None),
        "not measured",
    ),
)
"""All recipes; MobileNet v1, the other student that is usual for ImageNet, is no model of kdpipe's."""

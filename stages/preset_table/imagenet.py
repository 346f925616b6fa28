"""Published recipes for ImageNet-1k: ResNet-34 to ResNet-18, and ResNet-50 to MobileNet v1."""

from __future__ import annotations

from dataclasses import dataclass

from kdpipe.stages.preset_table.base import DKD, MDISTILLER, PUBLISHED, Figures, Preset, Settings, Source


@dataclass(frozen=True)
class _Pair:
    """A teacher with torchvision's weights IMAGENET1K_V1, a student, and what each reaches alone."""

    teacher: str
    student: str
    teacher_top1: float
    baseline: float
    note: str
    """Where the two figures are from."""


_TORCHDISTILL = Source(
    "Matsubara 2020, torchdistill",
    'Matsubara, "torchdistill: A Modular, Configuration-Driven Framework for Knowledge Distillation" (2020)',
    "https://github.com/yoshitomo-matsubara/torchdistill/blob/7cdde406eebabce6dfcc4f2e7e80ebd7eb7648ba/configs/"
    "official/ilsvrc2012/yoshitomo-matsubara/kd-resnet18_from_resnet34.log",
)
_WSLD = Source(
    "Zhou 2021, WSLD",
    'Zhou et al., "Rethinking Soft Labels for Knowledge Distillation: A Bias-Variance Tradeoff Perspective" (2021)',
    "https://github.com/bellymonster/Weighted-Soft-Label-Distillation",
)

_RESNET18 = _Pair(
    *("torchvision:resnet34", "torchvision:resnet18", 73.31, 69.76),
    "teacher and student alone are torchvision's IMAGENET1K_V1, as its weights say",
)
_MOBILENET = _Pair(
    *("torchvision:resnet50", "MobileNetV1", 76.16, 68.87),
    f"teacher and student alone are the figures of {_WSLD.page}; torchvision says 76.13 of the teacher's IMAGENET1K_V1",
)

_THREE_GPUS = (
    "the log of this figure is of three GPUs, 3 x 256 images in a step at 3 x 0.1; the config beside it has what each "
    "of them did"
)
_TEACHER_TRAINS = (
    "the published code runs the teacher in training mode, with each batch's statistics in its batch norms"
)
_ONE_MORE = "the published code runs one epoch more than the 100 of its configuration"

_TRAINING: Settings = {
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
_DKD: Settings = {**DKD, "temperature": 1, "kd_weight": 1}
_SOFT_LABELS: Settings = {"loss": "wsld", "temperature": 2, "kd_weight": 2.5, "ce_weight": 1, "nesterov": True}


def _imagenet(
    name: str, pair: _Pair, batch: int, settings: Settings, source: Source, distilled: float, *notes: str
) -> Preset:
    """Return a recipe with the learning rate 0.1 for 256 images in a step, scaled with the batch."""
    teacher, student = (model.rpartition(":")[2] for model in (pair.teacher, pair.student))
    return Preset(
        name=f"imagenet-{name}-{batch}-{teacher}-{student}",
        what=f"ImageNet-1k, 100 epochs, {name}, batch {batch}",
        data="folder:PATH",
        caching={"teacher": pair.teacher, "weights": "IMAGENET1K_V1", "recipe": "rrc-flip", "views": 4},
        settings={"student": pair.student, **_TRAINING, "batch_size": batch, "lr": batch / 2560, **settings},
        source=source,
        figures=Figures(pair.teacher_top1, pair.baseline, distilled),
        notes=(*PUBLISHED, pair.note, *notes),
    )


IMAGENET = (
    _imagenet("kd", _RESNET18, 768, _HALVES, _TORCHDISTILL, 71.37, _THREE_GPUS),
    _imagenet("kd", _RESNET18, 512, _HALVES, MDISTILLER, 71.03),
    _imagenet("dkd", _RESNET18, 512, {**_DKD, "beta": 0.5}, MDISTILLER, 71.70),
    _imagenet("wsld", _RESNET18, 256, _SOFT_LABELS, _WSLD, 72.04, _TEACHER_TRAINS, _ONE_MORE),
    _imagenet("kd", _MOBILENET, 512, _HALVES, MDISTILLER, 70.50),
    _imagenet("dkd", _MOBILENET, 512, {**_DKD, "beta": 2}, MDISTILLER, 72.05),
    _imagenet("wsld", _MOBILENET, 256, _SOFT_LABELS, _WSLD, 71.52, _TEACHER_TRAINS, _ONE_MORE),
)

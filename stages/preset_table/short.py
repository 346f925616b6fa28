"""Recipes of kdpipe's own for a small machine."""

from __future__ import annotations

from kdpipe.stages.preset_table.base import KD, Figures, Preset, Settings, Source

_SHORT: Settings = {"lr": 0.1, "batch_size": 128, "weight_decay": 5e-4, "lr_schedule": "cosine", "warmup_epochs": 1}


def _short(
    name: str, what: str, data: str, caching: Settings, settings: Settings, page: str, figures: Figures, *notes: str
) -> Preset:
    """Return a recipe of kdpipe's own for a small machine."""
    source = Source("kdpipe", "kdpipe, measured by its benchmarks" if figures.distilled else "kdpipe", page)
    return Preset(name, what, data, caching, {**settings, **_SHORT, **KD}, source, figures, notes)


SHORT = (
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
        "stages/preset_table/short.py",
        Figures(None, None, None),
        "not measured",
    ),
)

"""Accuracies that the authors of the losses report, for pairs of teacher and student that several of them use.

    python benchmarks/published_losses.py

prints the table of docs/guides/losses.md. The figures of kd, dkd, wsld and standardized-kd are those of the published
recipes (``kdpipe presets``); the others are from the READMEs that are named here.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from kdpipe.distil.losses import LOSSES, LogitLoss
from kdpipe.presets import find

ON_LAYERS = ("features", "rkd", "itrd", "crd", "attention")
"""The losses on layers of networks on images, which need a store with signals."""
ARMS = (
    *(entry.name for entry in LOSSES if isinstance(entry.make(), LogitLoss)),
    *("standardized-kd", "ctkd", "dot"),
    *ON_LAYERS,
)
"""Every loss on logits; ``kd`` standardized, at a learned temperature and with separate momenta; losses on layers."""

PAIRS = {
    "CIFAR-100, resnet56 -> resnet20": {
        "kd": "cifar100-kd-resnet56-resnet20",
        "dkd": "cifar100-dkd-resnet56-resnet20",
        "standardized-kd": "cifar100-kd-standardized-resnet56-resnet20",
    },
    "CIFAR-100, resnet32x4 -> resnet8x4": {
        "kd": "cifar100-kd-resnet32x4-resnet8x4",
        "dkd": "cifar100-dkd-resnet32x4-resnet8x4",
        "standardized-kd": "cifar100-kd-standardized-resnet32x4-resnet8x4",
    },
    "CIFAR-100, ResNet50 -> MobileNetV2": {
        "kd": "cifar100-kd-ResNet50-MobileNetV2",
        "dkd": "cifar100-dkd-ResNet50-MobileNetV2",
    },
    "ImageNet, resnet34 -> resnet18": {
        "kd": "imagenet-kd-512-resnet34-resnet18",
        "dkd": "imagenet-dkd-512-resnet34-resnet18",
        "wsld": "imagenet-wsld-256-resnet34-resnet18",
    },
    "ImageNet, resnet50 -> MobileNetV1": {
        "kd": "imagenet-kd-512-resnet50-MobileNetV1",
        "dkd": "imagenet-dkd-512-resnet50-MobileNetV1",
        "wsld": "imagenet-wsld-256-resnet50-MobileNetV1",
    },
}
"""The published recipe for each loss, by pair."""


@dataclass(frozen=True)
class Published:
    """Test top-1 in percent."""

    top1: float
    student_alone: float
    """The same student without a teacher, as the source or the recipe has it."""
    page: str
    """Source of the figure."""


_DIST = "https://github.com/hunto/DIST_KD"
_DOT = "https://github.com/megvii-research/mdistiller"
_NKD = "https://github.com/yzd-v/cls_KD/blob/master/nkd.md"
_TTM = "https://github.com/zkxufo/TTM"
_STANDARDIZATION = "https://github.com/sunshangquan/logit-standardization-KD"
_REPDISTILLER = "https://github.com/HobbitLong/RepDistiller"
_ITRD = "https://github.com/roymiles/ITRD"
_WKD = "https://arxiv.org/abs/2412.08139"
_ELSEWHERE = {
    "CIFAR-100, resnet56 -> resnet20": {
        "dist": Published(71.75, 69.06, _DIST),
        "wttm": Published(71.92, 69.06, _TTM),
        "mlkd": Published(72.19, 69.06, _STANDARDIZATION),
        "ctkd": Published(71.19, 69.06, _STANDARDIZATION),
        "features": Published(69.21, 69.06, _REPDISTILLER),
        "rkd": Published(69.61, 69.06, _REPDISTILLER),
        "itrd": Published(71.47, 69.06, _ITRD),
        "crd": Published(71.16, 69.06, _REPDISTILLER),
        "attention": Published(70.55, 69.06, _REPDISTILLER),
    },
    "CIFAR-100, resnet32x4 -> resnet8x4": {
        "dist": Published(76.31, 72.50, _DIST),
        "wttm": Published(76.06, 72.50, _TTM),
        "mlkd": Published(77.08, 72.50, _STANDARDIZATION),
        "wkd": Published(76.53, 72.50, _WKD),
        "ctkd": Published(73.39, 72.50, _STANDARDIZATION),
        "dot": Published(75.12, 72.50, _DOT),
        "features": Published(73.50, 72.50, _REPDISTILLER),
        "rkd": Published(71.90, 72.50, _REPDISTILLER),
        "itrd": Published(76.69, 72.50, _ITRD),
        "crd": Published(75.51, 72.50, _REPDISTILLER),
        "attention": Published(73.44, 72.50, _REPDISTILLER),
    },
    "CIFAR-100, ResNet50 -> MobileNetV2": {
        "dist": Published(68.66, 64.60, _TTM),
        "wttm": Published(69.59, 64.60, _TTM),
        "mlkd": Published(71.04, 64.60, _STANDARDIZATION),
        "standardized-kd": Published(69.02, 64.60, _STANDARDIZATION),
        "ctkd": Published(68.67, 64.60, _STANDARDIZATION),
        "features": Published(63.16, 64.60, _REPDISTILLER),
        "rkd": Published(64.43, 64.60, _REPDISTILLER),
        "itrd": Published(71.34, 64.60, _ITRD),
        "crd": Published(69.11, 64.60, _REPDISTILLER),
        "attention": Published(58.58, 64.60, _REPDISTILLER),
    },
    "ImageNet, resnet34 -> resnet18": {
        "dist": Published(72.07, 69.76, _DIST),
        "nkd": Published(71.96, 69.90, _NKD),
        "wttm": Published(72.19, 69.76, _TTM),
        "wkd": Published(72.49, 69.76, _WKD),
    },
    "ImageNet, resnet50 -> MobileNetV1": {
        "dist": Published(73.24, 70.13, _DIST),
        "nkd": Published(72.58, 69.21, _NKD),
        "wttm": Published(73.09, 68.87, _TTM),
        "wkd": Published(73.17, 68.87, _WKD),
    },
}
"""Tables "ImageNet, Baseline settings" and "CIFAR-100" of DIST's README, "NKD" of NKD's, the benchmarks of TTM's, the
rows MLKD, CTKD and KD of logit-standardization-KD's (whose MLKD has 480 epochs), FitNet, AT, RKD and CRD of
RepDistiller's, ITRD's own README, "KD+DOT" of mdistiller's, and WKD-L of its paper and README."""


def published(arm: str) -> dict[str, Published]:
    """Return what is published for a loss by pair; empty where nothing is known."""
    found = {pair: others[arm] for pair, others in _ELSEWHERE.items() if arm in others}
    for pair, names in PAIRS.items():
        if arm in names:
            preset = find(names[arm])
            assert preset.figures.distilled is not None
            assert preset.figures.baseline is not None
            found[pair] = Published(preset.figures.distilled, preset.figures.baseline, preset.source.page)
    return found


def as_json(arm: str) -> dict[str, dict[str, float | str]]:
    """Return the same for a results file."""
    return {pair: asdict(figures) for pair, figures in published(arm).items()}


def table() -> str:
    """Return the table in Markdown: top-1 and how much more that is than the student alone, a dash where unknown."""

    def cell(figures: Published | None) -> str:
        return "-" if figures is None else f"{figures.top1:.2f} ({figures.top1 - figures.student_alone:+.2f})"

    rows = [("loss", *PAIRS), ("---",) * (1 + len(PAIRS))]
    rows += [(f"`{arm}`", *(cell(published(arm).get(pair)) for pair in PAIRS)) for arm in ARMS]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows).replace(" --- ", "---")


if __name__ == "__main__":
    print(table())

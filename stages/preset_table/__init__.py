"""Training recipes with the results that were published for them, each figure from the page that its source names.

A figure that is on no such page is ``None``. Accuracies are test top-1 in percent.
"""

from kdpipe.stages.preset_table.base import Figures, Preset, Settings, Source
from kdpipe.stages.preset_table.cifar100 import CIFAR100
from kdpipe.stages.preset_table.imagenet import IMAGENET
from kdpipe.stages.preset_table.short import SHORT

__all__ = ["PRESETS", "Figures", "Preset", "Settings", "Source"]

PRESETS: tuple[Preset, ...] = (*CIFAR100, *IMAGENET, *SHORT)
"""All recipes."""

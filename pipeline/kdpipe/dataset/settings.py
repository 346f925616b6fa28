"""Settings of the dataset that a stage reads."""

from __future__ import annotations

from typing import Literal

from kdpipe.settings import Positive, Settings


class DatasetSettings(Settings):
    """Data"""

    data: str
    """Dataset, such as digits or folder:PATH; kdpipe list datasets."""
    limit_train: Positive | None = None
    """Use a fixed class-balanced subset of N training samples."""
    limit_test: Positive | None = None
    """Use a fixed class-balanced subset of N test samples."""
    labels_per_class: Positive | None = None
    """Keep the labels of N training samples per class; the other samples become unlabeled."""
    download: bool = False
    """Let torchvision download the dataset."""
    loading: Literal["auto", "memory", "stream"] = "auto"
    """Keep decoded images in memory, stream them, or choose by their size."""
    workers: Positive | None = None
    """Processes that read and decode streamed images (default: one for each processor)."""
    skip_broken: bool = False
    """Leave out image files that cannot be read or decoded, and list them."""

"""Settings of a command's dataset; the texts under the fields are the command line's help."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, PositiveInt

from kdpipe.dataset.loading import Loading


class DatasetSettings(BaseModel):
    """The dataset of a command, and the samples and labels of it that are used."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    data: str
    """Dataset, such as digits or folder:PATH; kdpipe list datasets prints all kinds."""
    limit_train: PositiveInt | None = None
    """Use a fixed class-balanced subset of N training samples."""
    limit_test: PositiveInt | None = None
    """Use a fixed class-balanced subset of N test samples."""
    labels_per_class: PositiveInt | None = None
    """Keep the labels of N training samples per class, a fixed choice, and treat the others as unlabeled."""
    download: bool = False
    """Let torchvision download the dataset."""
    loading: Loading = "auto"
    """Keep decoded images in memory, stream them, or choose by their size."""

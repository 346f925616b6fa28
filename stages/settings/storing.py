"""Parameters of the stages that make a store: `cache-teacher` and `import-logits`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from kdpipe.dataset.settings import DatasetSettings
from kdpipe.encoding.settings import EncodingSettings
from kdpipe.models.interface import Interface
from kdpipe.models.settings import CodeSettings
from kdpipe.settings import Settings
from kdpipe.store.settings import PartSetting, Provenance
from kdpipe.teacher.settings import ImportSettings, TeacherSettings
from kdpipe.views.settings import CachedViewSettings, ImportedViewSettings


class StoreOutput(Settings):
    """Output"""

    out: Annotated[Path, Field(description="Store to write, NAME.zarr.")]
    order: Literal["shuffled", "dataset"] | None = None
    """Order of the rows: shuffled, so that any part of a view is a fair sample of it, or that of the dataset (default:
    that of the store if there is one, or shuffled)."""
    overwrite: bool = False
    """Rebuild a store that was made from other ingredients instead of refusing. Images that are new or have changed are
    added to a store without it."""

    memory_limit: float = Field(1.0, gt=0, allow_inf_nan=False)
    """GiB of memory for the logits that are computed, encoded or written at once; one shard is the least."""

    @property
    def memory_bytes(self) -> int:
        """The memory limit in bytes."""
        return int(self.memory_limit * 1024**3)

    @model_validator(mode="after")
    def _is_a_store(self) -> Self:
        if self.out.suffix != ".zarr":
            raise ValueError(f"out must end in .zarr, got {self.out}")
        return self


class CachedStoreOutput(StoreOutput):
    """Output"""

    part: PartSetting | None = None
    """One of several processes that write the store together, such as the tasks of a job array: 3/16. It begins with
    its part and takes what others leave; the last one seals the store."""


class Storing(Settings):
    """The settings that both stages that make a store share."""

    dataset: DatasetSettings
    encoding: EncodingSettings
    output: StoreOutput
    provenance: Provenance
    code: CodeSettings


class CacheTeacher(Storing):
    """Run the teacher once over every view and keep its logits in a store."""

    output: CachedStoreOutput
    view: CachedViewSettings
    teacher: TeacherSettings
    network: Interface


class ImportLogits(Storing):
    """Make a store of logits that someone already has, from any teacher in any framework."""

    view: ImportedViewSettings
    source: ImportSettings

"""Parameters of the stages that make a store: `cache-teacher` and `import-logits`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from kdpipe.dataset.settings import DatasetSettings
from kdpipe.encoding.settings import EncodingSettings
from kdpipe.models.settings import CodeSettings
from kdpipe.settings import Settings
from kdpipe.store.settings import Provenance
from kdpipe.teacher.settings import ImportSettings, TeacherSettings
from kdpipe.views.settings import CachedViewSettings, ImportedViewSettings


class StoreOutput(Settings):
    """Output"""

    out: Annotated[Path, Field(description="Store to write, NAME.zarr.")]
    order: Literal["shuffled", "dataset"] | None = None
    """Order of the rows: shuffled, so that any part of a view is a fair sample of it, or that of the dataset (default:
    that of the store if there is one, or shuffled)."""
    overwrite: bool = False
    """Rebuild a store that was made from other ingredients instead of refusing."""

    @model_validator(mode="after")
    def _is_a_store(self) -> Self:
        if self.out.suffix != ".zarr":
            raise ValueError(f"out must end in .zarr, got {self.out}")
        return self


class Storing(Settings):
    """The settings that both stages that make a store share."""

    dataset: DatasetSettings
    encoding: EncodingSettings
    output: StoreOutput
    provenance: Provenance
    code: CodeSettings


class CacheTeacher(Storing):
    """Run the teacher once over every view and keep its logits in a store."""

    view: CachedViewSettings
    teacher: TeacherSettings


class ImportLogits(Storing):
    """Make a store of logits that someone already has, from any teacher in any framework."""

    view: ImportedViewSettings
    source: ImportSettings

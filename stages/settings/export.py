"""Parameters of the stage `export`."""

from __future__ import annotations

from typing import Self

from pydantic import model_validator

from kdpipe.export.settings import ExportSettings, QuantizationSettings, TestDataSettings
from kdpipe.models.settings import CodeSettings
from kdpipe.settings import Settings


class Export(Settings):
    """Write a trained student as files for other runtimes, and test them."""

    artifact: ExportSettings
    quantization: QuantizationSettings
    images: TestDataSettings
    code: CodeSettings

    @model_validator(mode="after")
    def _has_one_source(self) -> Self:
        if (self.artifact.run is None) == (self.artifact.report is None):
            raise ValueError("give one of run and report")
        return self

"""Settings of the export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from kdpipe.settings import Positive, Seed, Settings


def _split(value: Any) -> Any:
    parts = value if isinstance(value, list | tuple) else [value]
    return [name for part in parts for name in (part.split(",") if isinstance(part, str) else [part])]


class ExportSettings(Settings):
    """Export"""

    run: Path | None = Field(None, json_schema_extra={"positional": True})
    """Run directory of a student, or the one above its --seeds, of which the first is exported."""
    report: Path | None = None
    """Instead of a run: directory of a report, whose recommended run is exported."""
    to: Annotated[tuple[str, ...], BeforeValidator(_split)] = ("onnx",)
    """Formats, separated by commas; kdpipe list formats."""
    out: Path
    """Directory to write, as a whole or not at all."""
    overwrite: bool = False
    """Replace an earlier export in OUT."""
    license: str | None = None
    """License of the network, preferably an SPDX identifier (default: that of the store's logits)."""


class QuantizationSettings(Settings):
    """Quantization"""

    quantize: Literal["int8"] | None = None
    """Also write int8, in the formats that have it."""
    calibration: Positive = 256
    """Training images that give the ranges of activations."""
    calibration_seed: Seed = 0
    """Seed that draws them."""
    max_drop: float = Field(0.5, ge=0, le=100)
    """Percentage points of top-1 that int8 may lose on the test split."""
    allow_drop: bool = False
    """Export int8 also where it loses more, with a warning."""

    @model_validator(mode="after")
    def _quantizes(self) -> Self:
        unused = self.model_fields_set - {"quantize"}
        if self.quantize is None and unused:
            raise ValueError(f"{min(unused).replace('_', '-')} needs quantize, such as --quantize int8")
        return self


class TestDataSettings(Settings):
    """Data"""

    data: str | None = None
    """Dataset to test and calibrate with (default: the run's own)."""
    limit_train: Positive | None = None
    """Use a fixed class-balanced subset of N training samples (default: as the run)."""
    limit_test: Positive | None = None
    """Use a fixed class-balanced subset of N test samples (default: as the run)."""
    threads: Positive | None = None
    """Threads of the test (default: torch's)."""

"""Settings of a compression."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from kdpipe.settings import Positive, Settings
from kdpipe.training.settings import Optimization


class CompressionSettings(Settings):
    """Compression"""

    run: Path
    """Finished run to compress, its parent; of a directory of seeds the run of the same seed."""
    prune: float | None = Field(None, gt=0, lt=1)
    """Fraction of the cost to remove by pruning channels, such as 0.5."""
    low_rank: float | None = Field(None, gt=0, lt=1)
    """Fraction of the cost, after pruning, to remove by factoring layers."""
    prune_by: Literal["macs", "params"] = "macs"
    """The cost: multiply-accumulates of one image, or parameters."""
    recover_epochs: int | None = Field(None, ge=0)
    """Epochs of training of the smaller network, 0 for none (default: 5, or 0 for quantize alone, without qat)."""
    toward_parent: float | None = Field(None, gt=0)
    """Weight of an L2 penalty on the distance of the weights from the parent's, such as 0.01."""
    quantize: Literal["int8"] | None = None
    """Also write the network as model.int8.onnx, quantized statically after the recovery."""
    qat: bool = False
    """Compute with int8's rounding during the recovery (quantization-aware training), where int8 loses too much."""
    calibration: Positive = 256
    """Training images that the ranges of int8 are measured on."""
    max_drop: float = Field(0.5, ge=0, le=100)
    """Top-1 that int8 may lose on the test split, in percentage points; otherwise it is refused."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.prune is None and self.low_rank is None and self.quantize is None:
            raise ValueError("nothing to do: give prune, low-rank or quantize")
        if self.toward_parent is not None and self.recover_epochs == 0:
            raise ValueError("toward-parent is for the recovery: give recover-epochs, or leave it out")
        if self.qat and (self.quantize is None or self.recover_epochs == 0):
            raise ValueError("qat is for the recovery of what is quantized: give quantize and recover-epochs with it")
        return self


class Recovery(Optimization):
    """Optimization"""

    epochs: int = Field(5, ge=0)
    """Passes over the training samples; those of the recovery."""
    lr: float = Field(0.02, gt=0)
    """Peak learning rate, lower than for random weights; with adamw the default is 0.001."""

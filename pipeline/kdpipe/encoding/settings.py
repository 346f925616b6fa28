"""Settings of the encoding of logits."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field

from kdpipe.settings import Settings, as_many

Temperatures = Annotated[tuple[Annotated[float, Field(gt=0)], ...], BeforeValidator(as_many)]


class EncodingSettings(Settings):
    """Encoding"""

    encoding: str = "fp16"
    """fp32, fp16, fp16r:BITS, sqrtp:BITS,TEMPERATURE, tailp:BITS,TEMPERATURE, klt:STEP, peaks:STEP,FLOOR or topk:K."""
    max_kl: float | None = Field(None, gt=0)
    """Choose the smallest encoding whose mean KL on a pilot of logits is at most this, divided by 1.2."""
    at_temperature: Temperatures = Field((1.0, 4.0), min_length=1)
    """Temperature at which --max-kl must hold, and between them; repeat for several."""

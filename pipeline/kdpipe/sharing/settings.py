"""Settings of the commands that share stores; the texts under fields are help."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from kdpipe.settings import Choices, Settings


class Withholding(Settings):
    """Withholding

    The parts of a store that a published version lacks.
    """

    views: Annotated[int, Field(ge=0)] | None = None
    """Publish the plain view and this many augmented ones (default: all)."""
    splits: Choices | None = None
    """Publish these splits alone, separated by commas (default: all)."""
    encoding: str | None = None
    """Encode the logits again, such as topk8; the loss is measured against the store."""
    max_temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Encode the logits again by the smallest encoding for temperatures up to this one, which serves no higher ones."""
    max_kl: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e-3
    """Mean KL against the store that the encoding of --max-temperature may lose."""
    no_labels: bool = False
    """Leave the hard labels out."""
    no_signals: bool = False
    """Leave features and attention maps out."""
    hide_names: bool = False
    """Key ids by a secret and leave out digests of content and pixels, so that nobody can look up names or images."""

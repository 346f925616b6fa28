"""The interface of a teacher's network: the layout of its images, and which of its outputs are its logits.

Importing this does not import torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ValidationError

from kdpipe.errors import ModelError
from kdpipe.settings import Settings

if TYPE_CHECKING:
    import torch
    from torch import nn

FLOOR = 1e-30
"""The least probability of which the logarithm is taken.

At a temperature of 4, a floor of 1e-12 would give each class a thousandth of the largest one's weight, so that of 1,000
classes all others together would weigh as much as the largest."""


class Interface(Settings):
    """Teacher network"""

    layout: Literal["nchw", "nhwc"] | None = None
    """Order of the dimensions of the images of an ONNX teacher, also where they are flattened (default: what the file
    says)."""
    output: str | None = None
    """Name of the output of an ONNX teacher that has the classes (default: its only one of their number)."""
    outputs: Literal["logits", "probabilities"] = "logits"
    """The teacher's outputs; logarithms are taken of probabilities, of at least 1e-30."""

    def describe(self) -> dict[str, Any]:
        """Return what a store records beside the preset: empty for a network of PyTorch that returns logits."""
        found: dict[str, Any] = {}
        for key in ("layout", "output"):
            if getattr(self, key) is not None:
                found[key] = getattr(self, key)
        if self.outputs == "probabilities":
            found |= {"outputs": self.outputs, "floor": FLOOR}
        return found

    @classmethod
    def parse(cls, described: Mapping[str, Any]) -> Interface:
        """Rebuild an interface from what a store records; other keys are left out.

        Raises:
            ModelError: it is not one.
        """
        try:
            return cls.model_validate({key: described[key] for key in cls.model_fields if key in described})
        except ValidationError as error:
            place = error.errors()[0]["loc"][0]
            raise ModelError(f"the recorded interface of a teacher is unusable: its {place}") from None

    def over(self, other: Interface) -> Interface:
        """Return this interface, with the parts of ``other`` for those that are not given."""
        return Interface(**(other.model_dump(exclude_unset=True) | self.model_dump(exclude_unset=True)))


def take_logarithms(module: nn.Module) -> None:
    """Let a network that returns probabilities return their logarithms, which differ from its logits by a constant."""
    module.register_forward_hook(_logarithms)


def _logarithms(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
    import torch

    return logarithms(output) if isinstance(output, torch.Tensor) else output


def logarithms(probabilities: torch.Tensor) -> torch.Tensor:
    """Return float32 logarithms of probabilities, of at least ``FLOOR``."""
    return probabilities.float().clamp(min=FLOOR).log()

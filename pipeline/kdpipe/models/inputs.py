"""Inputs of networks: images of a size, or tensors of a form, and how a network is called with them.

Importing this does not import torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from kdpipe.dataset.forms import MASK, Array, Form
from kdpipe.errors import ModelError
from kdpipe.models.preset import Preset
from kdpipe.printable import printable
from kdpipe.reading import parse_json

if TYPE_CHECKING:
    import torch
    from torch import nn

    from kdpipe.dataset.forms import Tensors


class InputsRecord(BaseModel):
    """A ``TensorPreset`` as files record it: name, type and shape of each tensor."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    inputs: Annotated[
        tuple[
            Annotated[
                tuple[
                    Annotated[str, Field(max_length=128)],
                    Literal["int64", "float32"],
                    Annotated[tuple[Annotated[int, Field(ge=1, lt=2**31)], ...], Field(strict=False, max_length=8)],
                ],
                Field(strict=False),
            ],
            ...,
        ],
        Field(strict=False, min_length=1, max_length=64),
    ]


InputSize = int | Form
"""The input of a network: square images of this side, or tensors of this form."""


@dataclass(frozen=True)
class TensorPreset:
    """The preparation of a model's input tensors: none, they are passed as they are."""

    form: Form

    @property
    def size(self) -> Form:
        """The form, which is to tensors what the side is to images."""
        return self.form

    def normalize(self, packed: torch.Tensor) -> Any:
        """Convert packed items, uint8 ``(n, 3, 1, width)``, to the tensors that the model takes."""
        return self.form.unpack(packed)

    def describe(self) -> dict[str, Any]:
        """Return the preset as plain JSON values."""
        return {"inputs": self.form.describe()}


AnyPreset = Preset | TensorPreset


def parse_preset(described: dict[str, Any]) -> AnyPreset:
    """Rebuild a preset from its ``describe()``.

    Raises:
        ModelError: it is not one, or a value is out of the bounds of real ones.
    """
    if "inputs" not in described:
        return Preset.parse(described)
    try:
        return TensorPreset(Form.parse(described["inputs"]))
    except (ValueError, TypeError) as error:
        raise ModelError(f"the recorded inputs of a model are unusable: {printable(error)[:200]}") from None


def form_in_header(header: Mapping[str, str], path: Path) -> Form | None:
    """Return the form of tensors that the header of the weights at ``path`` records; ``None`` where there is none.

    Raises:
        ModelError: it cannot be read.
    """
    if "inputs" not in header:
        return None
    described = parse_json(header["inputs"].encode(), of=path, error=ModelError)
    found = parse_preset({"inputs": described})
    assert isinstance(found, TensorPreset)
    return found.form


def of_images(preset: AnyPreset, what: str) -> Preset:
    """Return the preset of a model of images.

    Raises:
        ModelError: the model takes tensors, which ``what`` is not for.
    """
    if isinstance(preset, TensorPreset):
        raise ModelError(f"{what} is for images, the model takes tensors ({preset.form}): leave it out.")
    return preset


def blank(size: InputSize, count: int, device: torch.device | None = None) -> Any:
    """Return inputs of zeros: float32 ``(count, 3, S, S)``, or tensors as ``TensorPreset.normalize``; masks are 1."""
    import torch

    if isinstance(size, int):
        return torch.zeros(count, 3, size, size, device=device)
    return _tensors(
        size, lambda array: torch.zeros(count, *array.shape, device=device, dtype=getattr(torch, array.dtype))
    )


def noise(size: InputSize, count: int, device: torch.device | None = None) -> Any:
    """Return fixed inputs that differ: random images, or tensors of random floats, and of zeros and ones."""
    import torch

    generator = torch.Generator().manual_seed(0)
    if isinstance(size, int):
        return torch.rand(count, 3, size, size, generator=generator).to(device)

    def drawn(array: Array) -> torch.Tensor:
        values = torch.rand(count, *array.shape, generator=generator)
        return (values if array.dtype == "float32" else values.round().to(torch.int64)).to(device)

    return _tensors(size, drawn)


def example(form: Form, device: torch.device | None = None) -> Any:
    """Return one item of a closed formula: floats in 0..1 by 1/256, integers that are 0 or 1."""
    import torch

    def made(array: Array) -> torch.Tensor:
        place = torch.arange(math.prod(array.shape), dtype=torch.int64).view(1, *array.shape)
        mixed = (place * place + 11 * place + 5) % 256
        return (mixed / 256 if array.dtype == "float32" else mixed * 3 // 256 % 2).to(device)

    return _tensors(form, made)


def _tensors(form: Form, make: Callable[[Array], torch.Tensor]) -> Tensors:
    """Return tensors by name, or the only one, each made for its array; masks are 1."""
    import torch

    made = {array.name: make(array) for array in form.arrays}
    if MASK in made:
        made[MASK] = torch.ones_like(made[MASK])
    return made if form.named else made[""]


@contextmanager
def taking(preset: AnyPreset) -> Iterator[None]:
    """Calls of a network of tensors with a batch, whose failures are told in one line.

    Its code is not kdpipe's, and may refuse values that its check with zeros does not show, such as unknown tokens.

    Raises:
        ModelError: it raises an error for values of its inputs.
    """
    try:
        yield
    except (LookupError, ValueError) as error:
        if not isinstance(preset, TensorPreset):
            raise
        raise ModelError(
            f"the network fails for values of its tensors ({preset.form}): {type(error).__name__}: "
            f"{printable(error)[:200]}. Check the values of the data and of the recipe, such as a token's id that is "
            "not below the size of its vocabulary."
        ) from error


def adapt(module: nn.Module) -> None:
    """Let a network be called with one argument, and return logits: it is passed a dictionary as keyword arguments.

    Of an output with ``logits``, as those of transformers, these are returned. Done by hooks, so that the names of its
    layers and weights stay the same.
    """
    module.register_forward_pre_hook(_as_keywords, with_kwargs=True)
    module.register_forward_hook(_logits)


def _as_keywords(_module: nn.Module, given: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    if len(given) == 1 and isinstance(given[0], Mapping):
        return (), {**given[0], **keywords}
    return None


def _logits(_module: nn.Module, _given: Any, output: Any) -> Any:
    found = getattr(output, "logits", None)
    return output if found is None else found

"""Programs of ``torch.export`` as models: weights and graph, without the code that made them."""

from __future__ import annotations

import io
from pathlib import Path

import torch
from blake3 import blake3
from torch import nn

from kdpipe.errors import ModelError
from kdpipe.models.archive import sanitized
from kdpipe.models.optional import quiet
from kdpipe.printable import first_line

PIXELS = ((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255))
"""Mean and standard deviation of the normalization that leaves pixels as they are."""


class ExportedModel(nn.Module):
    """A loaded program as a module in evaluation mode; ``train()`` and ``eval()`` change nothing."""

    def __init__(self, program: nn.Module, *, size: int | None, dtype: torch.dtype, source_digest: str) -> None:
        """Wrap ``program``; ``size`` is its fixed input side, ``source_digest`` identifies its file."""
        super().__init__()
        self.program = program
        self.size = size
        self.dtype = dtype
        self.source_digest = source_digest
        self.training = False

    @property
    def takes_pixels(self) -> bool:
        """Whether its images are uint8, so that it normalizes them itself."""
        return self.dtype == torch.uint8

    @property
    def is_onnx(self) -> bool:
        """Whether it is run by ONNX Runtime, not by torch."""
        return hasattr(self.program, "onnx_parameters")

    def train(self, mode: bool = True) -> ExportedModel:  # noqa: ARG002
        """Change nothing."""
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images ``(n, 3, S, S)`` to logits ``(n, classes)``, in the program's own type.

        A program of uint8 images is given those of ``PIXELS``, which are numbers from 0 to 255 up to rounding.
        """
        images = x.round().clamp(0, 255) if self.takes_pixels else x
        logits: torch.Tensor = self.program(images.to(self.dtype))
        return logits


def load_program(path: Path, *, trust_code: bool = False) -> ExportedModel:
    """Load a ``.pt2`` file; its code is run only with ``trust_code``.

    Raises:
        ModelError: the file is missing or damaged, or does not take one batch ``(n, 3, S, S)`` with n free.
        UntrustedCodeError: it needs code that is not trusted.
    """
    if not path.is_file():
        raise ModelError(f"{path}: there is no such file")
    source = io.BytesIO(path.read_bytes()) if trust_code else sanitized(path)
    try:
        with quiet():
            program = torch.export.load(source)
            module = program.module()
    except Exception as error:  # torch.export documents no exceptions for a damaged file
        raise ModelError(f"{path}: not a program saved with torch.export.save: {first_line(error)}") from error
    size, dtype = input_size(program, path), input_dtype(program)
    content = blake3(path.read_bytes()).hexdigest(length=16)
    return ExportedModel(module, size=size, dtype=dtype, source_digest=content)


def input_dtype(program: torch.export.ExportedProgram) -> torch.dtype:
    """Return the type of the images that the program takes."""
    inputs = program.graph_signature.user_inputs
    node = next(node for node in program.graph.nodes if node.op == "placeholder" and node.name in inputs)
    dtype: torch.dtype = node.meta["val"].dtype
    return dtype


def input_size(program: torch.export.ExportedProgram, path: Path) -> int | None:
    """Return the side of the square images that the program takes, or None if it takes any side.

    Raises:
        ModelError: it does not take one batch of RGB squares, or only batches of one size.
    """
    inputs = program.graph_signature.user_inputs
    values = [node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder" and node.name in inputs]
    if len(inputs) != 1 or len(values) != 1 or not isinstance(values[0], torch.Tensor) or values[0].ndim != 4:
        raise ModelError(f"{path}: expected a program with one input (n, 3, S, S), found {len(inputs)} inputs")
    # Free dimensions are symbolic here, fixed ones are plain integers.
    shape: tuple[object, ...] = tuple(values[0].shape)
    batch, channels, height, width = shape
    if isinstance(batch, int):
        raise ModelError(
            f"{path}: the program only takes batches of {batch}; export it with a dynamic first dimension"
            " (torch.export.export(..., dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)))"
        )
    if channels != 3 or (isinstance(height, int) and isinstance(width, int) and height != width):
        raise ModelError(f"{path}: expected square RGB images, the program takes {channels}x{height}x{width}")
    return next((side for side in (height, width) if isinstance(side, int)), None)

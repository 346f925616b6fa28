"""ONNX models as networks of PyTorch, which ONNX Runtime computes. ``kdpipe.models.onnx`` reads their files."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from kdpipe.errors import ModelError
from kdpipe.models.optional import required
from kdpipe.models.program import ExportedModel
from kdpipe.printable import first_line

_GRAY = (0.299, 0.587, 0.114)
"""Shares of red, green and blue in the brightness of ITU-R BT.601, which Pillow takes, too."""
_EQUAL = 1e-6
"""Largest difference of statistics that count as equal."""

Layout = Literal["nchw", "nhwc"]


@dataclass(frozen=True)
class Images:
    """The images that a network takes."""

    layout: Layout
    channels: int
    """3, or 1 for brightness alone."""
    rank: int
    """Dimensions of a batch: 4, 3 without channels, 2 where images are flattened."""
    side: int | None
    """Side in pixels; ``None`` for any."""
    batch: int | None
    """Images that it takes at once; ``None`` for any number."""

    def arranged(self, images: torch.Tensor) -> torch.Tensor:
        """Return images ``(n, 3, S, S)`` as the network takes them."""
        if self.channels == 1:
            shares = torch.tensor(_GRAY, device=images.device).view(1, 3, 1, 1)
            gray = (images.to(torch.float32) * shares).sum(1, keepdim=True)
            images = (gray if images.is_floating_point() else gray.round()).to(images.dtype)
        if self.rank == 3:
            return images[:, 0].contiguous()
        if self.layout == "nhwc":
            images = images.movedim(1, 3)
        return (images.flatten(1) if self.rank == 2 else images).contiguous()


class OnnxNetwork(nn.Module):
    """An ONNX model in ONNX Runtime; maps images ``(n, 3, S, S)`` of its type to float32 outputs ``(n, classes)``.

    On a CUDA device it computes there if ONNX Runtime was installed with CUDA, else on the CPU.
    """

    def __init__(
        self, content: bytes, external: Mapping[str, bytes], *, images: Images, names: tuple[str, str], parameters: int
    ) -> None:
        """Load ``content``, whose tensors may lie in the files ``external``; ``names`` are those of input and output.

        Raises:
            ModelError: ONNX Runtime is not installed, or does not take the model.
        """
        super().__init__()
        self.images = images
        self.onnx_parameters = parameters
        self.register_buffer("_where", torch.empty(0), persistent=False)
        self._input, self._output = names
        self._source = (content, external)
        self._sessions = {"cpu": self._session(["CPUExecutionProvider"])}

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Run the model; a batch of another size than it takes is cut and its last piece filled up.

        Raises:
            ModelError: a gradient is asked for.
        """
        if images.requires_grad and torch.is_grad_enabled():
            raise ModelError("an ONNX model has no gradients: use a network of PyTorch")
        rows = self.images.arranged(images.detach()).cpu().numpy()
        session, step = self._on(images.device), self.images.batch or max(1, len(rows))
        pieces = [self._run(session, rows[first : first + step]) for first in range(0, len(rows), step)]
        outputs = np.concatenate(pieces) if len(pieces) > 1 else pieces[0]
        if outputs.ndim == 4 and outputs.shape[2:] == (1, 1):
            outputs = outputs[:, :, 0, 0]
        return torch.from_numpy(outputs.astype(np.float32)).to(images.device)

    def __deepcopy__(self, memo: dict[int, Any]) -> OnnxNetwork:
        """Return a copy that shares the sessions, which cannot be copied and do not change."""
        other = copy.copy(self)
        other._buffers = dict(self._buffers)
        return other

    def _run(self, session: Any, rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
        count, batch = len(rows), self.images.batch
        if batch is not None and count < batch:
            rows = np.concatenate([rows, np.repeat(rows[-1:], batch - count, axis=0)])
        try:
            outputs: npt.NDArray[Any] = session.run([self._output], {self._input: rows})[0]
        except Exception as error:  # its exceptions derive from Exception alone
            raise RuntimeError(first_line(error)) from error
        return outputs[:count]

    def _on(self, device: torch.device) -> Any:
        name = str(device) if device.type == "cuda" and _has_cuda() else "cpu"
        if name not in self._sessions:
            # In TF32, logits would differ from those of a CPU from the third digit on.
            options = {"device_id": str(device.index or 0), "use_tf32": "0"}
            self._sessions[name] = self._session([("CUDAExecutionProvider", options), "CPUExecutionProvider"])
        return self._sessions[name]

    def _session(self, providers: Sequence[Any]) -> Any:
        runtime = package("onnxruntime")
        content, external = self._source
        options = runtime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
        options.log_severity_level = 4  # an error is raised besides
        if external:
            files = list(external.values())
            options.add_external_initializers_from_files_in_memory(list(external), files, [len(file) for file in files])
        try:
            # Without a provider to fall back to, it would print that it tries the same again.
            return runtime.InferenceSession(
                content, options, providers=list(providers), enable_fallback=int(len(providers) > 1)
            )
        except Exception as error:  # its exceptions derive from Exception alone
            raise ModelError(f"ONNX Runtime does not load this model: {first_line(error)}") from error


def refuse_statistics(module: nn.Module, mean: Sequence[float], std: Sequence[float], *, name: str) -> None:
    """Check that an ONNX model of gray images has one mean and one standard deviation.

    Raises:
        ModelError: those of the three channels differ.
    """
    network = module.program if isinstance(module, ExportedModel) else None
    gray = isinstance(network, OnnxNetwork) and network.images.channels == 1
    if gray and max(max(each) - min(each) for each in (mean, std)) > _EQUAL:
        raise ModelError(
            f"{name} takes gray images, which have one mean and one standard deviation: give three equal numbers as "
            f"--mean and as --std, found {', '.join(f'{each:g}' for each in (*mean, *std))}"
        )


def _has_cuda() -> bool:
    return "CUDAExecutionProvider" in package("onnxruntime").get_available_providers()


def package(name: str) -> Any:
    """Return onnx or ONNX Runtime.

    Raises:
        ModelError: it is not installed.
    """
    return required(name, extra="deploy", by="an ONNX model")

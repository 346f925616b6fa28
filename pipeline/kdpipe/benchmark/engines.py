"""Engines that run a network: uint8 images ``(n, 3, S, S)`` in, float32 logits ``(n, classes)`` out.

    subject = Subject(network, module, preset)
    run = ENGINES.make("onnx").load(subject.source("onnx", "int8"), threads=2, batch_size=8, device="cpu")
    logits = run(images)

All of them normalize, since the comparison would not be fair otherwise. An engine of your own is a function that
returns an ``Engine`` and is registered in ``ENGINES``.
"""

from __future__ import annotations

import copy
import os
import shutil
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import nn

from kdpipe.benchmark.timing import Network
from kdpipe.errors import ModelError
from kdpipe.export.onnx import onnx_bytes, quantized
from kdpipe.export.runtimes import Images, Logits, Run, onnx_run, openvino_run, package
from kdpipe.export.wrapped import Wrapped
from kdpipe.models import AnyPreset, TensorPreset, of_images, parse_preset
from kdpipe.models.interface import Interface
from kdpipe.models.layout import arrange, choose
from kdpipe.models.optional import quiet
from kdpipe.printable import first_line
from kdpipe.registry import Registry

Form = Literal["module", "onnx"]

PRECISIONS = ("fp32", "int8")


class Load(Protocol):
    """Makes a network ready for batches of one size."""

    def __call__(self, source: Any, *, threads: int, batch_size: int, device: str) -> Run:
        """Return the function from images to logits; torch's number of threads is ``threads`` here and in each call.

        ``source`` is a ``Wrapped`` module or the bytes of an ONNX model, as the engine's ``form`` says.
        """
        ...


@dataclass(frozen=True)
class Engine:
    """One way to run networks."""

    load: Load
    form: Form = "module"
    """Form of the network that ``load`` takes: a module, or an ONNX model."""
    precisions: tuple[str, ...] = ("fp32",)
    devices: tuple[str, ...] = ("cpu", "cuda", "mps")
    static: bool = True
    """Whether what ``load`` returns takes batches of one size only."""
    check: Callable[[], object] = field(default=lambda: None)
    """Raises a ``ModelError`` that names the extra where a package is missing."""
    package: str = "torch"
    """The package that runs the network."""
    start: str = ""
    """``module:function`` that loads the network from its file in a process of its own, see ``starts``; empty where
    load time and memory are not measured."""


ENGINES: Registry[Engine] = Registry("engine")


@ENGINES.register("eager", source="https://docs.pytorch.org")
def eager() -> Engine:
    """PyTorch, one operation after another, on a CPU in channels-last; at batch 1 dispatch takes much of the time."""
    return Engine(_eager, static=False, start="kdpipe.benchmark.engines:eager_from")


@ENGINES.register("compile", source="https://docs.pytorch.org/docs/stable/generated/torch.compile.html")
def compiled() -> Engine:
    """torch.compile with its default backend, for one batch size; needs a C++ compiler, and a while to compile."""
    return Engine(_compile, check=_compiler, start="kdpipe.benchmark.engines:compile_from")


@ENGINES.register("onnx", source="https://onnxruntime.ai")
def onnx() -> Engine:
    """ONNX Runtime on the CPU, with any batch size; needs kdpipe[deploy]."""
    check = _packages("onnxscript", "onnx", "onnxruntime")
    start = "kdpipe.export.runtimes:onnx_run"
    return Engine(_onnx, "onnx", PRECISIONS, ("cpu",), static=False, check=check, package="onnxruntime", start=start)


@ENGINES.register("openvino", source="https://docs.openvino.ai")
def openvino() -> Engine:
    """OpenVINO on the CPU, for one batch size, from the same ONNX model; needs kdpipe[openvino] and kdpipe[deploy]."""
    check = _packages("onnxscript", "onnx", "openvino")
    start = "kdpipe.export.runtimes:openvino_run"
    return Engine(_openvino, "onnx", PRECISIONS, ("cpu",), check=check, package="openvino", start=start)


@dataclass(frozen=True)
class Origin:
    """The source of a network: arguments of ``models.load``."""

    name: str
    num_classes: int
    weights: str | None
    trust_code: bool = False
    interface: Mapping[str, Any] = field(default_factory=dict)
    """The result of ``Interface.describe``; empty for a network without an interface."""


@dataclass
class Subject:
    """A network to be timed, and the forms in which engines take it; each form is made once, when it is asked for."""

    network: Network
    module: nn.Module
    """In evaluation mode."""
    preset: AnyPreset
    images: Images
    """uint8 ``(n, 3, S, S)``, at least one: those on which engines are compared, and which are timed."""
    origin: Origin | None = None
    """Files and name to load the network from; None where no other process can load it."""
    calibration: Callable[[], Images] | None = None
    """Returns the images that int8 is calibrated with; None where there are none."""
    forms: dict[tuple[Form, str], Any] = field(default_factory=dict)
    """The forms that were made, or the ``ModelError`` that says why one cannot be, by form and precision."""
    logits: dict[str, Logits] = field(default_factory=dict)
    """Logits of eager fp32 by device."""

    def source(self, form: Form, precision: str = "fp32") -> Any:
        """Return the network in one form.

        Raises:
            ModelError: it cannot be written like this, or there are no images to calibrate with.
        """
        if (form, precision) not in self.forms:
            try:
                self.forms[form, precision] = self._make(form, precision)
            except ModelError as error:
                self.forms[form, precision] = error
        found = self.forms[form, precision]
        if isinstance(found, ModelError):
            raise found
        return found

    def expected(self, device: str) -> Logits:
        """Return the logits of eager fp32 of its images, which all others are compared with."""
        if device not in self.logits:
            run = _eager(self.source("module"), threads=1, batch_size=1, device=device)
            blocks = [run(self.images[start : start + 64]) for start in range(0, len(self.images), 64)]
            self.logits[device] = np.concatenate(blocks)
        return self.logits[device]

    def _make(self, form: Form, precision: str) -> Any:
        if form == "module":
            return Wrapped(self.module, self.preset)
        if precision == "fp32":
            return onnx_bytes(self.module, of_images(self.preset, "an ONNX model"))
        if self.calibration is None:
            raise ModelError("int8 is calibrated with training images, and there are none")
        return quantized(self.source("onnx"), self.calibration())


def eager_from(origin: dict[str, Any], *, threads: int, batch_size: int) -> Run:
    """Load a network in a process of its own, and return its eager function; see ``starts``."""
    return _eager(_loaded(origin, threads), threads=threads, batch_size=batch_size, device="cpu")


def compile_from(origin: dict[str, Any], *, threads: int, batch_size: int) -> Run:
    """Load a network in a process of its own, and compile it; see ``starts``."""
    return _compile(_loaded(origin, threads), threads=threads, batch_size=batch_size, device="cpu")


def _loaded(origin: dict[str, Any], threads: int) -> Wrapped:
    from kdpipe.models import load

    torch.set_num_threads(threads)
    given = dict(origin)
    preset = parse_preset(given.pop("preset"))
    given["interface"] = Interface.parse(given["interface"])
    if isinstance(preset, TensorPreset):
        return Wrapped(load(**given, form=preset.form, fallback_statistics=None).module, preset)
    statistics: dict[str, Any] = {"mean": preset.mean, "std": preset.std, "size": preset.size}
    return Wrapped(load(**given, **statistics, fallback_statistics=None).module, preset)


def _eager(source: Wrapped, *, threads: int, batch_size: int, device: str) -> Run:  # noqa: ARG001
    module = source.to(device)
    if choose(module.module, source.size, asked=None, device=torch.device(device), name=""):
        module = copy.deepcopy(module)
        arrange(module, channels_last=True)
        module.module.register_forward_pre_hook(_in_channels_last)
    return _torch_run(module, device)


def _in_channels_last(_module: nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
    return (inputs[0].contiguous(memory_format=torch.channels_last),)


def _compile(source: Wrapped, *, threads: int, batch_size: int, device: str) -> Run:  # noqa: ARG001
    module = source.to(device)

    def forward(images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = module(images)
        return logits

    # torch limits the compilations of one code object, and beyond that silently runs eagerly.
    own = types.FunctionType(
        forward.__code__.replace(), globals(), f"forward_{id(module)}", closure=forward.__closure__
    )
    run = _torch_run(torch.compile(own, dynamic=False, fullgraph=True), device)
    try:
        with quiet():
            run(source.example().numpy()[:1].repeat(batch_size, axis=0))
    except Exception as error:  # the compiler documents no exceptions
        raise ModelError(f"torch.compile fails: {first_line(error)}") from error
    return run


def _torch_run(module: Callable[[torch.Tensor], torch.Tensor], device: str) -> Run:
    def run(images: Images) -> Logits:
        with torch.inference_mode():
            logits: Logits = module(torch.from_numpy(images).to(device)).cpu().numpy()
        return logits

    return run


def _onnx(source: bytes, *, threads: int, batch_size: int, device: str) -> Run:  # noqa: ARG001
    return onnx_run(source, threads=threads, batch_size=batch_size)


def _openvino(source: bytes, *, threads: int, batch_size: int, device: str) -> Run:  # noqa: ARG001
    return openvino_run(source, threads=threads, batch_size=batch_size)


def _packages(*modules: str) -> Callable[[], object]:
    extras = {"openvino": "openvino"}
    return lambda: [package(each, extra=extras.get(each, "deploy")) for each in modules]


def _compiler() -> None:
    if shutil.which(os.environ.get("CXX", "")) is None and not any(map(shutil.which, ("g++", "clang++", "c++"))):
        raise ModelError("torch.compile needs a C++ compiler, and there is none: install g++")

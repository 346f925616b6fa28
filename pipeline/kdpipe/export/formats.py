"""Formats of exported networks: each registers a function that writes a network, and code that runs the file.

    for artifact in write(network, ["onnx", "pt2"]):
        artifact.files, artifact.predict(images)

All take uint8 images ``(n, 3, S, S)`` and return float32 logits; see ``safetensors`` for the exception.
"""

from __future__ import annotations

import io
import json
import struct
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from kdpipe import models
from kdpipe.errors import ModelError, ParamsError
from kdpipe.export.images import Pixels
from kdpipe.export.onnx import Session, onnx_bytes, quantized
from kdpipe.export.runtimes import openvino_core
from kdpipe.export.wrapped import Wrapped, reason
from kdpipe.models import Model, of_images
from kdpipe.models.archive import DESCRIPTION
from kdpipe.models.optional import quiet, required
from kdpipe.registry import Registry

Precision = Literal["fp32", "int8"]
Predict = Callable[[Pixels], npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Network:
    """A network to export."""

    model: Model
    weights: bytes
    """Its safetensors file."""
    classes: tuple[str, ...]
    metadata: Mapping[str, str]
    """Texts for the metadata of every file."""
    calibration: Pixels | None = None
    """Training images for int8, which is written where they are given."""
    threads: int = 1
    """Threads of the artifacts' ``predict``."""

    @cached_property
    def onnx(self) -> bytes:
        """The network as an ONNX model."""
        return onnx_bytes(
            self.model.module, of_images(self.model.preset, "export"), names=self.classes, metadata=self.metadata
        )

    @cached_property
    def onnx_int8(self) -> bytes:
        """The network as an ONNX model in int8."""
        assert self.calibration is not None
        return quantized(self.onnx, self.calibration)

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """The precisions that are written by formats that have both."""
        return ("fp32",) if self.calibration is None else ("fp32", "int8")


@dataclass(frozen=True)
class Artifact:
    """A network in one format and precision."""

    format: str
    precision: Precision
    files: Mapping[str, bytes]
    """Its files by name; the first is the one to open."""
    predict: Predict
    """Runs these files, not the network that they were made of."""
    code: str
    """Lines of Python that load the file and compute ``logits`` of ``images``, then ``classes``."""
    imports: tuple[str, ...]
    """Modules that ``code`` imports."""
    remarks: tuple[str, ...] = field(default=())
    """Sentences for its users."""

    @property
    def bytes(self) -> int:
        """Its size on disk."""
        return sum(map(len, self.files.values()))


FORMATS: Registry[tuple[Artifact, ...]] = Registry("format")
"""All formats by name: functions of a ``Network`` and the format's own settings."""

INT8 = ("onnx", "openvino")
"""Formats that are also written in int8."""

FILES = (
    *("model.onnx", "model-int8.onnx", "model.pt2", "model.safetensors"),
    *("model.xml", "model.bin", "model-int8.xml", "model-int8.bin", "model.pte"),
)
"""All files that a format may write."""


def write(network: Network, names: Sequence[str]) -> list[Artifact]:
    """Return the network in each of the formats, fp32 before int8.

    Raises:
        ParamsError: there is no such format, or none of several that int8 is asked of has it.
        ModelError: a package is not installed, or the network cannot be written in a format.
    """
    bound = [FORMATS.bind(FORMATS.one(name)) for name in names]
    return [artifact for entry, given, _ in bound for artifact in entry.make(network, **given)]


def check(names: Sequence[str], *, int8: bool) -> None:
    """Check the names of formats.

    Raises:
        ParamsError: there is no such format, one is named twice, or int8 is asked of none that has it.
    """
    terms = [FORMATS.one(name) for name in names]
    for term in terms:
        FORMATS.bind(term)
    twice = next((term.name for term in terms if [each.name for each in terms].count(term.name) > 1), None)
    if twice is not None:
        raise ParamsError(f"the format {twice} is given twice: leave one out.")
    if int8 and not any(term.name in INT8 for term in terms):
        raise ParamsError(f"int8 is written as {' or '.join(INT8)}: add one of them to --to, or leave --quantize out.")


def write_onnx(network: Network) -> tuple[Artifact, ...]:
    """ONNX, one file for ONNX Runtime and most other runtimes; also in int8."""
    content = {"fp32": network.onnx} | ({"int8": network.onnx_int8} if "int8" in network.precisions else {})
    return tuple(
        Artifact(
            "onnx",
            precision,
            {name: content[precision]},
            Session(content[precision], network.threads),
            f'session = onnxruntime.InferenceSession("{name}", providers=["CPUExecutionProvider"])\n'
            'classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])\n'
            '(logits,) = session.run(None, {"images": images})',
            ("json", "onnxruntime"),
        )
        for precision, name in zip(network.precisions, ("model.onnx", "model-int8.onnx"), strict=False)
    )


def write_openvino(network: Network) -> tuple[Artifact, ...]:
    """OpenVINO's IR, a graph in XML with its weights beside it; also in int8."""
    openvino = required("openvino", extra="openvino")
    found = []
    for precision, stem in zip(network.precisions, ("model", "model-int8"), strict=False):
        given = network.onnx if precision == "fp32" else network.onnx_int8
        try:
            with quiet(), tempfile.TemporaryDirectory() as folder:
                model = openvino.convert_model(io.BytesIO(given))
                for key, value in {**network.metadata, "classes": json.dumps(network.classes)}.items():
                    model.set_rt_info(value, ["kdpipe", key])
                openvino.save_model(model, Path(folder) / f"{stem}.xml", compress_to_fp16=False)
                files = {name: (Path(folder) / name).read_bytes() for name in (f"{stem}.xml", f"{stem}.bin")}
        except Exception as error:  # its exceptions derive from RuntimeError and Exception
            raise ModelError(f"this network cannot be written for OpenVINO: {reason(error)}") from error
        code = (
            "core = openvino.Core()\n"
            f'model = core.read_model("{stem}.xml")  # reads {stem}.bin beside it, too\n'
            'classes = json.loads(model.get_rt_info(["kdpipe", "classes"]).value)\n'
            'logits = core.compile_model(model, "CPU")(images)[0]'
        )
        predict = _openvino(*files.values(), threads=network.threads)
        found.append(Artifact("openvino", precision, files, predict, code, ("json", "openvino")))
    return tuple(found)


def _openvino(graph: bytes, weights: bytes, *, threads: int) -> Predict:
    core = openvino_core()
    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(core.read_model(model=graph, weights=weights), "CPU", settings)

    def predict(images: Pixels) -> npt.NDArray[np.float32]:
        logits: npt.NDArray[np.float32] = compiled(np.ascontiguousarray(images))[0]
        return logits

    return predict


def write_executorch(network: Network) -> tuple[Artifact, ...]:
    """ExecuTorch, for phones and other devices: computed by XNNPACK, one image at a time."""
    exir = required("executorch.exir", extra="executorch")
    partitioner = required("executorch.backends.xnnpack.partition.xnnpack_partitioner", extra="executorch")
    wrapped = Wrapped(network.model.module, of_images(network.model.preset, "export"))
    about = json.dumps({**network.metadata, "classes": json.dumps(network.classes)})
    try:
        with quiet(), torch.no_grad():
            program = torch.export.export(wrapped, (wrapped.example()[:1],))
            edge = exir.to_edge_transform_and_lower(
                program, partitioner=[partitioner.XnnpackPartitioner()], constant_methods={"metadata": about}
            )
            content = bytes(edge.to_executorch().buffer)
    except Exception as error:  # the exporter documents no exceptions of its own
        raise ModelError(f"this network cannot be written for ExecuTorch: {reason(error)}") from error
    loaded = required("executorch.runtime", extra="executorch").Runtime.get().load_program(content)
    method = loaded.load_method("forward")

    def predict(images: torch.Tensor) -> torch.Tensor:
        return torch.cat([method.execute([image[None]])[0].clone() for image in images])

    code = (
        'program = Runtime.get().load_program("model.pte")\n'
        'about = json.loads(program.load_method("metadata").execute([])[0])\n'
        'classes = json.loads(about["classes"])\n'
        'network = program.load_method("forward")\n'
        "logits = torch.cat([network.execute([image[None]])[0].clone() for image in torch.from_numpy(images)])"
    )
    imports = ("json", "torch", "from executorch.runtime import Runtime")
    remark = "A .pte takes one image at a time."
    return (Artifact("executorch", "fp32", {"model.pte": content}, partial(_torch, predict), code, imports, (remark,)),)


def write_pt2(network: Network) -> tuple[Artifact, ...]:
    """A program of torch.export, for PyTorch without the network's code, and for `--teacher file:PATH.pt2`."""
    wrapped = Wrapped(network.model.module, of_images(network.model.preset, "export"))
    content = io.BytesIO()
    extra = {DESCRIPTION: json.dumps({**network.metadata, "classes": json.dumps(network.classes)})}
    try:
        with quiet(), torch.no_grad():
            shapes = ({0: torch.export.Dim.DYNAMIC},)
            program = torch.export.export(wrapped, (wrapped.example(),), dynamic_shapes=shapes)
            torch.export.save(program, content, extra_files=extra)
            loaded = torch.export.load(io.BytesIO(content.getvalue())).module()
    except Exception as error:  # the exporter documents no exceptions of its own
        raise ModelError(f"this network cannot be written by torch.export: {reason(error)}") from error
    code = (
        f'extra = {{"{DESCRIPTION}": ""}}\n'
        'network = torch.export.load("model.pt2", extra_files=extra).module()\n'
        f'classes = json.loads(json.loads(extra["{DESCRIPTION}"])["classes"])\n'
        "logits = network(torch.from_numpy(images))"
    )
    remark = "torch.export.load runs code that a .pt2 file holds: load only files that you trust."
    files = {"model.pt2": content.getvalue()}
    return (Artifact("pt2", "fp32", files, partial(_torch, loaded), code, ("json", "torch"), (remark,)),)


def write_safetensors(network: Network) -> tuple[Artifact, ...]:
    """The weights alone, with their preparation in the header, for kdpipe and other PyTorch code."""
    content = with_header(network.weights, {**network.metadata, "classes": json.dumps(network.classes)})
    name, classes = network.model.name, len(network.classes)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        path.write_bytes(content)
        loaded = models.load(name, num_classes=classes, weights=path, fallback_statistics=None)

    def predict(images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = loaded.module(loaded.preset.normalize(images))
        return logits

    given = f'{json.dumps(name)}, num_classes={classes}, weights="model.safetensors", fallback_statistics=None'
    code = (
        f"model = models.load({given})\n"
        "with torch.inference_mode():\n"
        "    logits = model.module(model.preset.normalize(torch.from_numpy(images)))\n"
        "classes = model.classes"
    )
    remark = "This file has weights only: the network and its normalization are code, here kdpipe's."
    files = {"model.safetensors": content}
    imports = ("torch", "from kdpipe import models")
    return (Artifact("safetensors", "fp32", files, partial(_torch, predict), code, imports, (remark,)),)


@torch.inference_mode()
def _torch(module: Callable[[torch.Tensor], torch.Tensor], images: Pixels) -> npt.NDArray[np.float32]:
    logits: npt.NDArray[np.float32] = module(torch.from_numpy(images)).float().numpy()
    return logits


def with_header(content: bytes, metadata: Mapping[str, str]) -> bytes:
    """Return a safetensors file with further texts in its header; those that it has are kept."""
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"] = dict(sorted({**metadata, **header.get("__metadata__", {})}.items()))
    encoded = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    encoded += b" " * (-len(encoded) % 8)
    return struct.pack("<Q", len(encoded)) + encoded + content[8 + length :]


FORMATS.add("onnx", write_onnx, skip=1, source="https://onnx.ai")
FORMATS.add("pt2", write_pt2, skip=1, source="https://docs.pytorch.org/docs/stable/export.html")
FORMATS.add("safetensors", write_safetensors, skip=1, source="https://huggingface.co/docs/safetensors")
FORMATS.add("openvino", write_openvino, skip=1, source="https://docs.openvino.ai")
FORMATS.add("executorch", write_executorch, skip=1, source="https://docs.pytorch.org/executorch")

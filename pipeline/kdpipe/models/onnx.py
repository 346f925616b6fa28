"""ONNX files as networks: read without running code, and computed by ONNX Runtime (``kdpipe.models.runtime``).

Files of strangers are read without custom operators, and external data only from plain files in the file's own folder.
Needs the extra ``deploy``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from blake3 import blake3

from kdpipe.errors import ModelError
from kdpipe.models.interface import Interface
from kdpipe.models.optional import quiet
from kdpipe.models.program import ExportedModel
from kdpipe.models.runtime import Images, Layout, OnnxNetwork, package
from kdpipe.printable import first_line, printable
from kdpipe.reading import open_regular, read_bytes, why_unread

_LARGEST = 2**31 - 1
"""Bytes of the largest protobuf message."""
_COPIED = "copy both files into one folder with cp -L"
"""The remedy for data behind a link."""
_MAX_NODES = 1_000_000
_MAX_DEPTH = 32
"""Levels of graphs within operators."""
_DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")
"""Domains of the operators that ONNX Runtime brings."""
_READS_FILES = ("EPContext",)
"""Operators that name files which ONNX Runtime would open."""
_CHANNELS = (1, 3)
_FLOATS = (1, 10, 11, 16)
"""``TensorProto`` types float32, float16, float64 and bfloat16."""
_TYPES = {1: torch.float32, 10: torch.float16, 11: torch.float64, 2: torch.uint8}
"""Types of images by ``TensorProto`` type."""


@dataclass(frozen=True)
class OnnxFile:
    """A loaded ONNX file."""

    module: ExportedModel
    metadata: dict[str, str]
    """The texts that its writer added."""
    interface: Interface
    """The layout and the output that were found."""


def load_onnx(path: Path, *, num_classes: int, asked: Interface) -> OnnxFile:
    """Load an ONNX file whose images and output are as ``asked``, or as the file says.

    Raises:
        ModelError: onnx or ONNX Runtime is not installed, the file is missing, damaged or uses custom operators, it
            takes something else than images, or does not say which layout or output is meant.
    """
    onnx = package("onnx")
    content = read_bytes(path, limit=_LARGEST, error=ModelError, follow=True)
    try:
        with quiet():
            model = onnx.load_model_from_string(content)
    except Exception as error:  # protobuf's exceptions derive from Exception alone
        raise ModelError(f"{path}: not an ONNX file: {first_line(error)}") from error
    if not model.graph.output:
        raise ModelError(f"{path}: not an ONNX file: it has no graph with outputs")
    external = _external(list(_checked(model, path)), path)
    metadata = {each.key: each.value for each in model.metadata_props}
    layout = asked.layout or metadata.get("layout")
    given, images, dtype = _input(model, path, layout=layout if layout in ("nchw", "nhwc") else None)
    output = _output(model, path, name=asked.output, num_classes=num_classes)
    parameters = sum(math.prod(each.dims) for each in model.graph.initializer if each.data_type in _FLOATS)
    del model
    try:
        network = OnnxNetwork(content, external, images=images, names=(given, output), parameters=parameters)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    digest = blake3(content)
    for name in sorted(external):
        digest.update(name.encode()).update(blake3(external[name]).digest())
    module = ExportedModel(network, size=images.side, dtype=dtype, source_digest=digest.hexdigest(length=16))
    return OnnxFile(module, metadata, Interface(layout=images.layout, output=output))


def _input(model: Any, path: Path, *, layout: Layout | None) -> tuple[str, Images, torch.dtype]:
    """Return name and properties of the one input, which ``layout`` completes."""
    constants = {each.name for each in model.graph.initializer}
    inputs = [each for each in model.graph.input if each.name not in constants]
    if len(inputs) != 1:
        names = ", ".join(printable(each.name)[:50] for each in inputs[:5]) or "none"
        raise ModelError(f"{path}: expected a network with one input, a batch of images; found {names}")
    tensor = inputs[0].type.tensor_type
    if tensor.elem_type not in _TYPES:
        raise ModelError(
            f"{path}: expected images of float32, float16, float64 or uint8, its input has type {tensor.elem_type}"
        )
    shape = _shape(tensor)
    shown = f"{path}: its input {printable(inputs[0].name)[:50]} has shape ({', '.join(map(_dim, shape))})"
    if len(shape) == 2 and shape[1] is not None:
        images = _flat(shape, layout, shown)
    elif len(shape) == 3:
        images = Images("nchw", 1, 3, _side(shape[1:], shown), shape[0])
    elif len(shape) == 4:
        images = _image(shape, layout, shown)
    else:
        raise ModelError(f"{shown}, expected images (n, 3, S, S), (n, S, S, 3) or flattened ones (n, 3 S S)")
    return inputs[0].name, images, _TYPES[tensor.elem_type]


def _image(shape: list[int | None], layout: Layout | None, shown: str) -> Images:
    fits: dict[Layout, int | None] = {"nchw": shape[1], "nhwc": shape[3]}
    named = [each for each, channels in fits.items() if channels in _CHANNELS]
    # Three pixels are no image: of two fitting dimensions, that of a fixed channel count decides only if it is alone.
    found = layout or (named[0] if len(named) == 1 else None)
    if found is None and not any(channels is None for channels in fits.values()) and not named:
        raise ModelError(f"{shown}, expected images of 3 channels or 1")
    if found is None:
        raise ModelError(f"{shown}, which does not say where its channels are: give --layout nchw or nhwc")
    channels = fits[found]
    if channels not in (*_CHANNELS, None):
        raise ModelError(f"{shown}, which is not --layout {found} with 3 channels or 1")
    sides = shape[2:] if found == "nchw" else shape[1:3]
    return Images(found, channels or 3, 4, _side(sides, shown), shape[0])


def _flat(shape: list[int | None], layout: Layout | None, shown: str) -> Images:
    values = shape[1] or 0
    for channels in _CHANNELS:
        side = math.isqrt(values // channels)
        if values and channels * side * side == values:
            if channels == 3 and layout is None:
                raise ModelError(f"{shown}, images of 3x{side}x{side} in one row: give their --layout, nchw or nhwc")
            return Images(layout or "nchw", channels, 2, side, shape[0])
    raise ModelError(f"{shown}, which is no flattened square image of 3 channels or 1")


def _side(sides: Sequence[int | None], shown: str) -> int | None:
    known = {side for side in sides if side is not None}
    if len(known) > 1:
        raise ModelError(f"{shown}, expected square images")
    return next(iter(known), None)


def _output(model: Any, path: Path, *, name: str | None, num_classes: int) -> str:
    """Return the name of the output that has the classes."""
    outputs: dict[str, Any] = {each.name: each.type for each in model.graph.output}
    listed = ", ".join(printable(each)[:50] for each in list(outputs)[:10])
    if name is not None and name not in outputs:
        raise ModelError(f"{path} has no output '{name}' (its outputs: {listed})")
    tensors = {each: kind.tensor_type for each, kind in outputs.items() if kind.HasField("tensor_type")}
    floats = [each for each, tensor in tensors.items() if tensor.elem_type in _FLOATS]
    if name is not None and name in floats:
        return name
    if name is not None or not floats:
        hint = ": convert it with options={'zipmap': False}" if len(tensors) < len(outputs) else ""
        what = (
            f"its output '{name}' is no tensor" if name is not None else f"none of its outputs ({listed}) is a tensor"
        )
        raise ModelError(f"{path}: {what} of floats{hint}")
    if len(floats) == 1:
        return floats[0]
    fitting = [each for each in floats if [*_shape(tensors[each])[1:2]] == [num_classes]]
    if len(fitting) == 1:
        return fitting[0]
    raise ModelError(f"{path} has several outputs ({listed}): name the one of the {num_classes} classes by --output")


def _shape(tensor: Any) -> list[int | None]:
    return [dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else None for dim in tensor.shape.dim]


def _dim(size: int | None) -> str:
    return "any" if size is None else str(size)


def _checked(model: Any, path: Path) -> Iterator[Any]:
    """Check all operators, also in graphs within others, and yield all tensors.

    Raises:
        ModelError: an operator is not one of ONNX Runtime's or the file's own functions, or opens files.
    """
    own = {(each.domain, each.name) for each in model.functions}
    waiting = [(model.graph, 0), *((each, 0) for each in model.functions)]
    nodes = 0
    while waiting:
        graph, depth = waiting.pop()
        if hasattr(graph, "initializer"):
            yield from graph.initializer
            for sparse in graph.sparse_initializer:
                yield from (sparse.values, sparse.indices)
        for node in graph.node:
            nodes += 1
            if (node.domain not in _DOMAINS and (node.domain, node.op_type) not in own) or node.op_type in _READS_FILES:
                named = f"{printable(node.op_type)[:50]} of '{printable(node.domain)[:50]}'"
                raise ModelError(
                    f"{path} uses the operator {named}, which is none of ONNX's: custom operators are code, which "
                    "kdpipe does not load. Export it without them."
                )
            for given in node.attribute:
                yield from (given.t, *given.tensors)
                for sparse in (given.sparse_tensor, *given.sparse_tensors):
                    yield from (sparse.values, sparse.indices)
                waiting += [
                    (inner, depth + 1) for inner in (*([given.g] if given.HasField("g") else []), *given.graphs)
                ]
        if nodes > _MAX_NODES or depth > _MAX_DEPTH:
            raise ModelError(f"{path}: its graph is larger than {_MAX_NODES:,} operators or {_MAX_DEPTH} levels")


def _external(tensors: Sequence[Any], path: Path) -> dict[str, bytes]:
    """Return the files of external data, by the name in the model.

    Raises:
        ModelError: one lies outside the folder, is a link, is missing, or is shorter than its tensors.
    """
    found: dict[str, bytes] = {}
    for tensor in tensors:
        if tensor.data_location != 1:
            continue
        entries = {each.key: each.value for each in tensor.external_data}
        name = entries.get("location", "")
        if name not in found:
            found[name] = _beside(path, name)
        numbers = [entries.get(key, "0") for key in ("offset", "length")]
        if not all(each.isascii() and each.isdecimal() and len(each) < 19 for each in numbers):
            raise ModelError(
                f"{path} is damaged: {printable(tensor.name)[:50]} has no whole place in {printable(name)}"
            )
        if sum(map(int, numbers)) > len(found[name]):
            raise ModelError(f"{path}: {printable(name)[:100]} is shorter than its tensors: copy both files again")
    return found


def _beside(path: Path, name: str) -> bytes:
    relative, shown = PurePosixPath(name), printable(name)[:100]
    folder = path.resolve().parent
    if not name or "\0" in name or "\\" in name or relative.is_absolute() or ".." in relative.parts:
        raise ModelError(f"{path}: its data {shown!r} is not in its folder: not read")
    file = folder / relative
    try:
        if file.resolve() != file:
            raise ModelError(f"{path}: its data {shown} is a link, and links are not followed: {_COPIED}")
        with open_regular(file) as stream:
            return stream.read()
    except FileNotFoundError:
        left = f"not beside {path.resolve()}, to which this link leads out of its folder: {_COPIED}"
        why = left if path.is_symlink() else "missing: copy it beside the file"
        raise ModelError(f"{path}: its data {shown} is {why}") from None
    except OSError as failure:
        raise ModelError(f"{path}: its data {shown} cannot be read: {why_unread(failure)}") from None

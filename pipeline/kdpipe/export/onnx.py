"""ONNX: networks as bytes, quantized to int8, and run by ONNX Runtime.

    written = onnx_bytes(model.module, model.preset)
    session = Session(quantized(written, images), threads=1)
    logits = session(images)

``images`` are uint8 ``(n, 3, S, S)``; normalization is part of the graph, and any number of images is a batch. Needs
the extra ``deploy``.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from kdpipe.errors import ModelError
from kdpipe.export.wrapped import Wrapped, reason
from kdpipe.models import Preset
from kdpipe.models.optional import quiet, required

OPSET = 18
"""Version of ONNX's operators, that of ONNX 1.13 (2022)."""
INPUT, OUTPUT, BATCH = "images", "logits", "batch"
"""Names of the input, the output and their first dimension."""

_LARGEST = 2**31 - 1
"""Bytes of the largest protobuf message."""
_CALIBRATION_BATCH = 32


def onnx_bytes(
    module: nn.Module, preset: Preset, *, names: Sequence[str] = (), metadata: Mapping[str, str] | None = None
) -> bytes:
    """Return a network as an ONNX model: uint8 ``(n, 3, S, S)`` to float32 logits ``(n, classes)``, n free.

    Class ``names`` are written as a JSON list into the model's metadata, under ``classes``, beside ``metadata``.

    Raises:
        ModelError: a package is not installed, or the network cannot be written as ONNX with a free batch size.
    """
    required("onnxscript", extra="deploy")
    onnx = required("onnx", extra="deploy")
    wrapped = Wrapped(module, preset)
    try:
        with quiet(), torch.no_grad():
            program = torch.onnx.export(
                wrapped,
                (wrapped.example(),),
                dynamo=True,
                verbose=False,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
            )
            assert program is not None
            model = program.model_proto
    except Exception as error:  # the exporter documents no exceptions of its own
        raise ModelError(f"this network cannot be written as ONNX: {reason(error)}") from error
    _name_batch(model)
    written = {**(metadata or {}), **({"classes": json.dumps(list(names))} if names else {})}
    onnx.helper.set_model_props(model, written)
    return _serialized(model)


def quantized(model: bytes, calibration: npt.NDArray[np.uint8], *, weight_bits: Literal[7, 8] = 7) -> bytes:
    """Return an ONNX model in int8, quantized statically with the ranges of activations on ``calibration``.

    ``calibration`` has uint8 images ``(n, 3, S, S)``. Weights are symmetric, with a scale per output channel;
    activations are uint8 with one scale per tensor: Jacob et al., "Quantization and Training of Neural Networks for
    Efficient Integer-Arithmetic-Only Inference" (2018). Pairs of QuantizeLinear and DequantizeLinear surround each
    operator, so that any runtime of ONNX computes the same. Weights of 7 bits are right on every processor: sums of
    two products of 8-bit numbers saturate on x86 processors without VNNI.

    Raises:
        ModelError: a package is not installed, there are no images, or the model cannot be quantized.
    """
    onnx = required("onnx", extra="deploy")
    quantization = required("onnxruntime.quantization", extra="deploy")
    if not len(calibration):
        raise ModelError("int8 needs calibration images, found none.")
    source = onnx.load_from_string(model)
    try:
        with quiet(), tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "quantized.onnx"
            quantization.quantize_static(
                source,
                target,
                _reader(quantization.CalibrationDataReader, calibration),
                quant_format=quantization.QuantFormat.QDQ,
                per_channel=True,
                reduce_range=weight_bits == 7,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
            )
            result = onnx.load(target)
    except Exception as error:  # ONNX Runtime raises what its protobufs and its own sessions do
        raise ModelError(f"this network cannot be quantized to int8: {reason(error)}") from error
    onnx.helper.set_model_props(result, {prop.key: prop.value for prop in onnx.load_from_string(model).metadata_props})
    return _serialized(result)


class Session:
    """An ONNX model in ONNX Runtime, on the CPU."""

    def __init__(self, model: bytes, threads: int) -> None:
        """Load ``model``; each operator uses ``threads`` threads.

        Raises:
            ModelError: ONNX Runtime is not installed, or does not take the model.
        """
        runtime = required("onnxruntime", extra="deploy")
        options = runtime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3  # errors only
        try:
            self._session = runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions derive from Exception alone
            raise ModelError(f"ONNX Runtime does not load this model: {reason(error)}") from error
        self._input = self._session.get_inputs()[0].name

    def __call__(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Return the float32 logits ``(n, classes)`` of uint8 images ``(n, 3, S, S)``."""
        logits: npt.NDArray[np.float32] = self._session.run(None, {self._input: images})[0]
        return logits


def metadata_of(model: bytes) -> dict[str, str]:
    """Return the metadata of an ONNX model."""
    onnx = required("onnx", extra="deploy")
    return {prop.key: prop.value for prop in onnx.load_from_string(model).metadata_props}


def _reader(base: Any, images: npt.NDArray[np.uint8]) -> Any:
    """Return an instance of ONNX Runtime's ``CalibrationDataReader``, which returns ``None`` after the last batch."""

    class Reader(base):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches = iter(
                images[at : at + _CALIBRATION_BATCH] for at in range(0, len(images), _CALIBRATION_BATCH)
            )

        def get_next(self) -> dict[str, npt.NDArray[np.uint8]] | None:
            batch = next(self.batches, None)
            return None if batch is None else {INPUT: batch}

    return Reader()


def _name_batch(model: Any) -> None:
    """Give the first dimension of input and output, which the exporter numbers, the name ``BATCH``.

    Raises:
        ModelError: one of the two is a constant.
    """
    (image,), (logits,) = model.graph.input, model.graph.output
    symbol, returned = (value.type.tensor_type.shape.dim[0].dim_param for value in (image, logits))
    if not symbol or returned != symbol:
        raise ModelError("this network cannot be written as ONNX: it only takes batches of one size")
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param == symbol:
                dim.dim_param = BATCH


def _serialized(model: Any) -> bytes:
    if model.ByteSize() > _LARGEST:
        raise ModelError(
            f"this network is too large for one ONNX file: {model.ByteSize():,} bytes, at most {_LARGEST:,}"
        )
    written: bytes = model.SerializeToString(deterministic=True)
    return written

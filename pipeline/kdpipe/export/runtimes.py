"""ONNX models in ONNX Runtime and in OpenVINO.

Importing this does not import torch, which would count as their memory.
"""

from __future__ import annotations

import importlib
import io
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from kdpipe.errors import ModelError
from kdpipe.printable import first_line

Images = npt.NDArray[np.uint8]
Logits = npt.NDArray[np.float32]
Run = Callable[[Images], Logits]


def onnx_run(model: bytes, *, threads: int, batch_size: int) -> Run:  # noqa: ARG001
    """Load an ONNX model into ONNX Runtime, for batches of any size.

    Raises:
        ModelError: the package is missing, or does not take the model.
    """
    runtime = package("onnxruntime", extra="deploy")
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3  # errors only
    try:
        session = runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions derive from Exception alone
        raise ModelError(f"ONNX Runtime does not load this model: {first_line(error)}") from error
    name = session.get_inputs()[0].name

    def run(images: Images) -> Logits:
        logits: Logits = session.run(None, {name: images})[0]
        return logits

    return run


def openvino_run(model: bytes, *, threads: int, batch_size: int) -> Run:
    """Load an ONNX model into OpenVINO, for batches of one size.

    Raises:
        ModelError: the package is missing, or does not take the model.
    """
    core = openvino_core()
    # On processors with bfloat16, OpenVINO would compute in it and call that fp32.
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
    }
    try:
        read = core.read_model(io.BytesIO(model))
        read.reshape([batch_size, *(each.get_length() for each in list(read.inputs[0].partial_shape)[1:])])
        request = core.compile_model(read, "CPU", settings).create_infer_request()
    except RuntimeError as error:
        raise ModelError(f"OpenVINO does not take this network: {first_line(error)}") from error

    def run(images: Images) -> Logits:
        logits: Logits = request.infer([images], share_inputs=True)[0]
        return logits

    return run


@cache
def openvino_core() -> Any:
    """Return the one core of OpenVINO in this process.

    A core gives the thread that makes it another stack for signals and frees that stack with itself. After the second
    core is gone, a signal such as that of Ctrl-C would be a segmentation fault.

    Raises:
        ModelError: the package is missing.
    """
    return package("openvino", extra="openvino").Core()


def package(name: str, *, extra: str) -> Any:
    """Import an optional package.

    Raises:
        ModelError: it is not installed; the message names the extra of kdpipe that has it.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ModelError(f"{name} is not installed: pip install 'kdpipe[{extra}]'") from error

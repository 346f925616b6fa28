"""State dicts in files: read them safely, fit them to a module, write them reproducibly."""

from __future__ import annotations

import argparse
import json
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from kdpipe import durable
from kdpipe.errors import ClassMismatchError, ModelError
from kdpipe.models.inputs import AnyPreset, TensorPreset
from kdpipe.models.preset import parse_list
from kdpipe.printable import first_line, printable
from kdpipe.reading import MEGABYTE, open_regular

COUNTER = "num_batches_tracked"
"""Batch norm's step counter: it does not affect the logits, and files often lack it."""

WRAPPERS = ("model", "state_dict", "net", "model_state_dict", "model_state", "weights")
AVERAGED = ("model_ema", "state_dict_ema", "ema_state_dict", "model_ema_state_dict", "ema")
"""Keys of a moving average of the weights, which is taken where the weights themselves are not in the file."""
PREFIXES = ("module.", "_orig_mod.")
SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".tar")
"""Files of torch: its own, Lightning's, transformers', and ``.pth.tar``."""
_DENSE = re.compile(r"^(.*denselayer\d+\.(?:norm|conv))\.([12]\.\w+)$", re.ASCII)
"""Keys in the published files of torchvision's DenseNets, with a point that the networks no longer have."""
_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")
"""Prefixes of torchvision's classifiers that serve in training only."""

_MAX_HEADER = 32 * MEGABYTE
_MAX_CLASS_NAME = 1000
"""Characters."""

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True)
class WeightsFile:
    """The content of a file of weights."""

    path: Path
    """Its path."""
    state: dict[str, torch.Tensor]
    """Tensors by state-dict key, on the CPU, without wrappers and prefixes."""
    metadata: dict[str, str] = field(default_factory=dict)
    """The header's strings; empty for ``.pt`` and ``.pth``."""
    classes: tuple[str, ...] | None = None
    """The class names that the header records, in the order of the logits."""
    remarks: tuple[str, ...] = ()
    """Which of several weights were taken."""


def read_weights(path: Path) -> WeightsFile:
    """Read a state dict from ``.safetensors`` or one of ``SUFFIXES``, without running code from the file.

    A dict that holds the state dict under one of ``WRAPPERS`` or ``AVERAGED`` is unwrapped, and the prefixes that
    ``DataParallel`` and ``torch.compile`` leave are removed.

    Raises:
        ModelError: the file is missing, damaged, of another kind, or a pickle that would run code.
    """
    refuse_irregular(path)
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    if path.suffix in SUFFIXES:
        state, remarks = unwrap(read_pickle(path), path)
        return WeightsFile(path, state, remarks=remarks)
    others = ", ".join(SUFFIXES[2:])
    raise ModelError(f"{path}: expected weights in .safetensors, .pt or .pth (or {others}), found '{path.suffix}'")


def read_safetensors(path: Path) -> WeightsFile:
    """Read tensors and header of a safetensors file."""
    with _safetensors(path) as file:
        state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (the handle is no dict)
        metadata = dict(file.metadata() or {})
    return WeightsFile(path, strip_prefixes(state), metadata, read_classes(metadata, path))


def read_classes(metadata: Mapping[str, str], path: Path) -> tuple[str, ...] | None:
    """Return the class names in a header; ``None`` where it has none.

    Raises:
        ModelError: they are not a list of different names.
    """
    if not metadata.get("classes"):
        return None
    try:
        classes = tuple(map(str, parse_list(metadata["classes"], of=path)))
    except ModelError as error:
        raise ModelError(f"{path}: its header records unusable classes: {error}") from None
    if len(set(classes)) < len(classes) or max(map(len, classes), default=0) > _MAX_CLASS_NAME:
        raise ModelError(f"{path}: its header records unusable classes: expected different names, found {len(classes)}")
    return classes


def refuse_irregular(path: Path) -> None:
    """Check that the path, or what it links to, is a file, and that a safetensors header is of a sensible length.

    Raises:
        ModelError: there is no such file, or it is something else.
    """
    try:
        with open_regular(path, follow=True) as file:
            length = file.read(8)
    except OSError as error:
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else error.strerror
        raise ModelError(f"{path}: {reason}") from None
    if path.suffix == ".safetensors" and len(length) == 8 and struct.unpack("<Q", length)[0] > _MAX_HEADER:
        raise ModelError(f"{path}: not a readable safetensors file: its header is longer than {_MAX_HEADER:,} bytes")


def read_header(path: Path) -> dict[str, str]:
    """Read the header's strings of a safetensors file, without its tensors.

    Raises:
        ModelError: the file is missing or damaged.
    """
    refuse_irregular(path)
    with _safetensors(path) as file:
        return dict(file.metadata() or {})


@contextmanager
def _safetensors(path: Path) -> Iterator[Any]:
    """Open a safetensors file.

    Raises:
        ModelError: it is damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            yield file
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(f"{path}: not a readable safetensors file: {printable(error)[:200]}") from error


def read_pickle(path: Path) -> Any:
    """Unpickle a torch file that holds nothing but tensors, containers and numbers."""
    # Published checkpoints carry flags in a Namespace and accuracies as numpy scalars; both are inert.
    numbers = [type(np.dtype(kind)) for kind in (np.float32, np.float64, np.int64)]
    scalar = np.float64(0).__reduce__()[0]
    inert: list[Any] = [
        argparse.Namespace,
        np.dtype,
        *numbers,
        scalar,
        (scalar, "numpy.core.multiarray.scalar"),
    ]
    try:
        with torch.serialization.safe_globals(inert):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise anything
        reason = first_line(error)
        if "weights_only" in str(error).lower() or "weights only" in str(error).lower():
            reason = "it holds Python objects, which could run code; save the state_dict() alone"
        raise ModelError(f"{path}: not a readable torch file of weights: {reason}") from error


def unwrap(content: Any, path: Path) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    """Return the state dict in the content of a torch file, and a remark where it also has averaged weights."""
    remarks: tuple[str, ...] = ()
    while isinstance(content, Mapping):
        plain, averaged = (
            [key for key in keys if isinstance(content.get(key), Mapping)] for keys in (WRAPPERS, AVERAGED)
        )
        found = (*plain, *averaged)
        if not found:
            break
        if averaged:
            other = f"; it also has averaged ones, '{averaged[0]}': save them alone to use them" if plain else ""
            remarks = (f"{path}: its weights '{found[0]}' are taken{other}.",)
        content = content[found[0]]
    tensors = content if isinstance(content, Mapping) else {}
    state = {str(key): value for key, value in tensors.items() if isinstance(value, torch.Tensor)}
    if not state or len(state) != len(tensors):
        odd = next((f"'{key}'" for key in tensors if key not in state), type(content).__name__)
        raise ModelError(f"{path}: expected a state dict of tensors, found {odd}")
    return strip_prefixes(state), remarks


def strip_prefixes(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Remove the prefixes that wrapping modules leave on every key."""
    while prefix := next((p for p in PREFIXES if state and all(key.startswith(p) for key in state)), None):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def fit(module: nn.Module, weights: WeightsFile, *, num_classes: int) -> None:
    """Copy the weights into ``module``; a missing batch norm step counter is left at 0.

    A network that is part of the one which was saved, such as that of a Lightning module, is found by its keys.

    Raises:
        ModelError: a key is missing or unexpected, or has another shape, or several parts fit; one line with both.
    """
    expected = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    state = _own_part(weights, [key for key in expected if not key.endswith(COUNTER)])
    found = {key: tuple(value.shape) for key, value in state.items()}
    missing = [key for key in expected if key not in found and not key.endswith(COUNTER)]
    surplus = [key for key in found if key not in expected and not key.endswith(COUNTER)]
    common = [key for key in expected if key in found and not key.endswith(COUNTER)]
    misshaped = [key for key in common if expected[key] != found[key]]
    if misshaped and not missing and not surplus:
        heads = {found[key][0] for key in misshaped if differ_in_classes(expected[key], found[key], num_classes)}
        if len(heads) == 1 and all(expected[key][:1] == (num_classes,) for key in misshaped):
            raise class_mismatch(weights.path, heads.pop(), num_classes)
    complaints = [
        *([f"expected {few(missing)}, not found"] if missing else []),
        *([f"found {few(surplus)}, not expected"] if surplus else []),
        *(f"{key}: expected {expected[key]}, found {found[key]}" for key in misshaped[:3]),
    ]
    if complaints:
        recorded = weights.metadata.get("architecture")
        header = f" (its header names {recorded})" if recorded else ""
        raise ModelError(f"{weights.path}: the weights do not fit{header}: {'; '.join(complaints)}")
    kept = {key: state[key] for key in (*common, *found) if key in expected}
    module.load_state_dict(kept, strict=False)


def _own_part(weights: WeightsFile, expected: Sequence[str]) -> dict[str, torch.Tensor]:
    """Return the weights under the one prefix that has all expected keys; all of them if there is none."""
    state = weights.state
    if not all(key in state for key in expected):
        state = {_DENSE.sub(r"\1\2", key): value for key, value in state.items()}
    if not expected or all(key in state for key in expected):
        aside = [key for key in state if key.startswith(_AUXILIARY) and key not in expected]
        return {key: value for key, value in state.items() if key not in aside}
    starts = {key.removesuffix(expected[0]) for key in state if key.endswith(f".{expected[0]}")}
    fitting = sorted(start for start in starts if all(start + key in state for key in expected))
    if len(fitting) > 1:
        raise ModelError(
            f"{weights.path} holds several such networks ({few([printable(each) for each in fitting])}): save the "
            "state dict of one alone"
        )
    if not fitting:
        return state
    return {key.removeprefix(fitting[0]): value for key, value in state.items() if key.startswith(fitting[0])}


def differ_in_classes(expected: tuple[int, ...], found: tuple[int, ...], num_classes: int) -> bool:
    """Return whether two shapes of one tensor differ in the number of classes only."""
    return bool(expected and found) and expected[0] == num_classes and expected[1:] == found[1:]


def class_mismatch(origin: object, found: int, num_classes: int) -> ClassMismatchError:
    """Return the error for weights of another number of classes."""
    return ClassMismatchError(f"{origin}: the weights have {found} classes, the dataset has {num_classes}", found=found)


def few(keys: Sequence[str]) -> str:
    """Return the first three keys and the number of the others."""
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return ", ".join(keys[:3]) + more


def save_weights(
    path: Path, module: nn.Module, *, architecture: str, preset: AnyPreset, classes: Sequence[str]
) -> None:
    """Write a safetensors file, whole or not at all, that ``load`` needs no other arguments for.

    Equal weights give equal bytes: tensors and header are sorted, which safetensors' writer does not do
    for the metadata. Batch norm step counters are left out, and shared tensors are written once per name.

    Raises:
        ModelError: a tensor has a type that safetensors lacks.
    """
    metadata = {
        "architecture": architecture,
        "classes": json.dumps(list(classes), ensure_ascii=False),
        "format": "pt",
        **_header(preset),
    }
    state = {key: value.detach() for key, value in module.state_dict().items() if not key.endswith(COUNTER)}
    # Wide types come first, which keeps every tensor aligned.
    keys = sorted(state, key=lambda key: (-state[key].element_size(), key))
    header: dict[str, Any] = {"__metadata__": metadata}
    offset = 0
    for key in keys:
        tensor = state[key]
        if tensor.dtype not in DTYPES:
            raise ModelError(f"cannot write '{key}': safetensors has no type for {tensor.dtype}")
        end = offset + tensor.numel() * tensor.element_size()
        header[key] = {
            "data_offsets": [offset, end],
            "dtype": DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
        }
        offset = end
    encoded = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    encoded += b" " * (-len(encoded) % 8)

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            file.write(struct.pack("<Q", len(encoded)))
            file.write(encoded)
            for key in keys:
                file.write(tensor_bytes(state[key]))

    durable.replace(path, write)


def _header(preset: AnyPreset) -> dict[str, str]:
    """Return the preset as ``from_header`` and ``form_in_header`` read it."""
    if isinstance(preset, TensorPreset):
        return {"inputs": json.dumps(preset.form.describe())}
    return {
        "input_size": str(preset.size),
        "interpolation": preset.interpolation,
        "mean": ",".join(map(repr, preset.mean)),
        "resize": str(preset.resize),
        "std": ",".join(map(repr, preset.std)),
    }


def refuse_broken(module: nn.Module, *, origin: object) -> None:
    """Check that the weights are numbers: finite parameters, and buffers without NaN, which may hold infinity.

    Raises:
        ModelError: a tensor is not; the message names it.
    """
    for key, parameter in module.named_parameters():
        if not torch.isfinite(parameter).all():
            raise ModelError(f"{origin}: the weights are damaged: {key} holds NaN or infinity")
    for key, buffer in module.named_buffers():
        if buffer.isnan().any():
            raise ModelError(f"{origin}: the weights are damaged: {key} holds NaN")


def tensor_bytes(tensor: torch.Tensor) -> bytes:
    """Return a tensor's elements in row-major order, as the machine stores them (little-endian)."""
    return tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes()

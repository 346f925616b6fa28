"""One shard on disk: encoded, written whole, flushed, digested, and its loss measured."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch
import zarr

from kdpipe import durable
from kdpipe.encoding.base import Encoding
from kdpipe.encoding.blocks import encode
from kdpipe.errors import DivergedError
from kdpipe.store import arrays, finished
from kdpipe.store.ledger import Entry
from kdpipe.store.plan import Shard
from kdpipe.store.planes import Plane
from kdpipe.store.sections import array_name
from kdpipe.store.tree import CONTENTS, PIXELS


def write(
    path: Path,
    root: zarr.Group,
    shard: Shard,
    *,
    encoding: Encoding,
    temperatures: Sequence[float],
    logits: torch.Tensor,
    signals: Mapping[str, torch.Tensor],
    keys: Sequence[str],
) -> dict[str, Entry]:
    """Write a shard of float32 ``logits``, and return the entries of its files by path.

    ``signals`` are written in float16, digests of images among them as they are. ``keys`` are those of the split's
    samples, if they are known.

    Raises:
        DivergedError: a value is not finite; nothing is written.
    """
    _refuse_not_finite(shard, "logits", logits, keys)
    encoded, lost = encode(encoding, logits, temperatures=tuple(temperatures))
    values = {"codes": encoded.codes, "row_max": encoded.row_max}
    for name, signal in signals.items():
        if name in shard.digests:
            values[name] = signal.numpy()
            continue
        kept = signal.to(torch.float16).flatten(1)
        _refuse_not_finite(shard, f"{name}, in float16,", kept, keys)
        values[array_name(name)] = kept.cpu().numpy()
    contents = values.pop(CONTENTS, None)
    entries = _put(path, root, shard, values)
    codes = shard.paths[0]
    learned = None if contents is None else base64.b64encode(contents.tobytes()).decode()
    entries[codes] = replace(entries[codes], fidelity=lost, contents=learned)
    return entries


def copy(
    path: Path, root: zarr.Group, shard: Shard, rows: Plane, pixels: npt.NDArray[Any] | None = None
) -> dict[str, Entry]:
    """Write a shard of rows of another store, as they are encoded, and return the entries of its files by path."""
    values = {"codes": rows.codes.numpy(), "row_max": rows.row_max.numpy()}
    values |= {array_name(name): kept.flatten(1).numpy() for name, kept in rows.beside.items()}
    if pixels is not None:
        values[PIXELS] = pixels
    return _put(path, root, shard, values)


def name_of(device: torch.device) -> str:
    """Return the name of a device, for the ledger."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _put(path: Path, root: zarr.Group, shard: Shard, values: Mapping[str, npt.NDArray[Any]]) -> dict[str, Entry]:
    for name in shard.paths:
        finished.clear(path / name)
    for name, block in values.items():
        rows = slice(shard.start, shard.stop)
        arrays.member(root, shard.split, name)[rows if name == PIXELS else (shard.view, rows)] = block
    for name in shard.paths:
        durable.fsync_file(path / name, up_to=path)
    return {name: finished.entry_of(path, name) for name in shard.paths}


def _refuse_not_finite(shard: Shard, what: str, values: torch.Tensor, keys: Sequence[str]) -> None:
    finite = torch.isfinite(values).all(dim=1)
    if finite.all():
        return
    row = shard.start + int((~finite).nonzero()[0])
    raise DivergedError(
        f"the teacher's {what} of {shard.split} row {row}{f' ({keys[row]})' if keys else ''}, view "
        f"{shard.view} are not finite; nothing of this shard was written. Try --precision fp32, and check "
        "the weights."
    )

"""Other ways to keep one row of codes per sample, each written by its own library and read in shuffled batches.

A peer is made from ``(folder, codes)`` and returns a function from rows, int64 ``(n,)``, to codes ``(n, width)``.
None of them is needed by kdpipe: ``pip install -c constraints.txt -e '.[bench]'``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import lmdb
import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy
import torch

Codes = npt.NDArray[Any]
Read = Callable[[npt.NDArray[np.int64]], Any]


def in_lmdb(folder: Path, codes: Codes) -> Read:
    """One entry per sample in a memory-mapped B-tree."""
    environment = lmdb.open(str(folder / "lmdb"), map_size=4 * codes.nbytes + 2**26, readahead=False)
    with environment.begin(write=True) as transaction:
        for row, values in enumerate(codes):
            transaction.put(row.to_bytes(8, "big"), values.tobytes(), append=True)
    reading = environment.begin(buffers=True)

    def read(rows: npt.NDArray[np.int64]) -> Codes:
        found = np.empty((len(rows), codes.shape[1]), dtype=codes.dtype)
        for place, row in enumerate(rows.tolist()):
            found[place] = np.frombuffer(reading.get(row.to_bytes(8, "big")), dtype=codes.dtype)
        return found

    return read


def in_hdf5(folder: Path, codes: Codes) -> Read:
    """One contiguous data set, not compressed; it takes rising indices only."""
    with h5py.File(folder / "codes.h5", "w") as file:
        file.create_dataset("codes", data=codes)
    dataset = h5py.File(folder / "codes.h5", "r")["codes"]

    def read(rows: npt.NDArray[np.int64]) -> Codes:
        distinct, place = np.unique(rows, return_inverse=True)
        return np.asarray(dataset[distinct])[place]

    return read


def in_safetensors(folder: Path, codes: Codes) -> Read:
    """One tensor, memory-mapped."""
    safetensors.numpy.save_file({"codes": codes}, folder / "codes.safetensors")
    with safetensors.safe_open(folder / "codes.safetensors", framework="pt") as file:
        mapped = file.get_tensor("codes").numpy()
    return lambda rows: mapped[rows]


def in_pt_files(folder: Path, codes: Codes) -> Read:
    """One file per sample, as many public recipes keep them."""
    for row, values in enumerate(codes):
        torch.save(torch.from_numpy(values.copy()), folder / f"{row}.pt")
    return lambda rows: torch.stack([torch.load(folder / f"{row}.pt", weights_only=True) for row in rows]).numpy()


PEERS: dict[str, Callable[[Path, Codes], Read]] = {
    "lmdb": in_lmdb,
    "hdf5": in_hdf5,
    "safetensors_mapped": in_safetensors,
    "pt_files": in_pt_files,
}

"""CPU milliseconds per row of the figures of loss that a store records, beside encoding and compressing, and bytes.

    python benchmarks/fidelity.py --threads 2

The plain way computes the same KL over all rows of a shard at once; its figures are equal, bit for bit. Writes
benchmarks/results/fidelity.json, or what --result names.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numcodecs.blosc
import numpy as np
import torch
from timing import interleaved, machine

from kdpipe.encoding.base import Compression
from kdpipe.encoding.fidelity import TEMPERATURES, Fidelity
from kdpipe.encoding.registry import get_encoding
from kdpipe.models.parts import keep_memory

RESULT = Path(__file__).parent / "results" / "fidelity.json"


def main() -> None:
    """Time each way on rows of each number of classes, and write the medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--classes", type=int, nargs="+", default=[100, 1_000, 21_841])
    parser.add_argument("--encodings", nargs="+", default=["fp16", "sqrtp:8,4"])
    parser.add_argument("--values", type=int, default=2**22, help="logits of all rows together")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--result", type=Path, default=RESULT)
    options = parser.parse_args()
    keep_memory()
    torch.set_num_threads(options.threads)
    numcodecs.blosc.use_threads = False
    found = [measured(classes, name, options) for classes in options.classes for name in options.encodings]
    command = f"python benchmarks/fidelity.py {' '.join(sys.argv[1:])}".rstrip()
    options.result.write_text(json.dumps({"command": command, "machine": machine(), "rows": found}, indent=2) + "\n")
    for row in found:
        print(json.dumps(row))


def measured(classes: int, name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return the median milliseconds per row of each way."""
    generator = torch.Generator().manual_seed(0)
    rows = max(64, options.values // classes)
    logits = torch.randn(rows, classes, generator=generator).mul_(2)
    logits[torch.rand(logits.shape, generator=generator) < 0.001] += 10
    encoding = get_encoding(name).calibrate(logits)
    encoded = encoding.encode(logits)
    decoded = encoding.decode(torch.from_numpy(encoded.codes), torch.from_numpy(encoded.row_max), classes)
    assert Fidelity.of(logits, decoded).sums == plain(logits, decoded)
    ways: dict[str, Callable[[], object]] = {
        "encode": lambda: encoding.encode(logits),
        "compress": lambda: compressed(encoded.codes, encoding.compression),
        "figures": lambda: Fidelity.of(logits, decoded),
        "figures_plain": lambda: plain(logits, decoded),
    }
    seconds = interleaved({way: timed(work) for way, work in ways.items()}, rounds=options.rounds)
    medians = {f"{way}_ms": float(np.median(values)) / rows * 1e3 for way, values in seconds.items()}
    return {
        "classes": classes,
        "encoding": encoding.name,
        "bytes": compressed(encoded.codes, encoding.compression) / rows + encoded.row_max.nbytes / rows,
        **medians,
    }


def plain(logits: torch.Tensor, decoded: torch.Tensor) -> tuple[int, ...]:
    """Return the sums of KL in units of 2^-60, computed over all rows at once."""
    sums = []
    for temperature in TEMPERATURES:
        p, q = ((each.double() / temperature).log_softmax(dim=1) for each in (logits, decoded))
        values = (p.exp() * (p - q)).sum(dim=1).clamp_(min=0).numpy()
        sums.append(sum(map(int, np.rint(values * 2.0**60).tolist())))
    return tuple(sums)


def compressed(codes: np.ndarray[Any, Any], settings: Compression) -> int:
    """Return the bytes of codes after compression, in chunks of about 2 MB as in a store."""
    kinds = {"noshuffle": 0, "shuffle": 1, "bitshuffle": 2}
    codec = numcodecs.blosc.Blosc(settings.cname, settings.level, kinds[settings.shuffle], settings.block)
    step = max(1, 2**21 // codes[0].nbytes)
    return sum(len(codec.encode(np.ascontiguousarray(codes[at : at + step]))) for at in range(0, len(codes), step))


def timed(work: Callable[[], object]) -> Callable[[], float]:
    """Return a function that returns the seconds of all threads that ``work`` takes."""

    def seconds() -> float:
        began = time.process_time()
        work()
        return time.process_time() - began

    return seconds


if __name__ == "__main__":
    main()

"""Windows of chunks against a full shuffle: distinct classes in a batch of a dataset that is sorted by class.

The rows of the store are in the order of the dataset, or shuffled, which is the default of `cache-teacher`.

    python benchmarks/shuffle.py

Chunks are cut as a store of float16 codes would be. Writes benchmarks/results/shuffle.json; it reads no store, and the
figures are the same on any machine.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kdpipe.pairing.growth import row_order
from kdpipe.store.blocks import draw
from kdpipe.store.plan import Layout
from kdpipe.views import permutation

RESULT = Path(__file__).parent / "results" / "shuffle.json"


def main() -> None:
    """Count classes per batch for several sizes of window."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=1_281_167)
    parser.add_argument("--classes", type=int, default=1_000)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument(
        "--parts", type=int, nargs="+", default=[2, 4, 8, 20, 50, 100], help="windows of 1/N of a plane"
    )
    options = parser.parse_args()
    labels = np.sort(np.arange(options.samples) % options.classes)
    chunk_rows = Layout.choose(samples=options.samples, row_bytes=2 * options.classes).chunk_rows
    chunk = np.arange(options.samples) // chunk_rows
    full = permutation(options.samples, seed=0, stream=0)
    in_rows = labels[row_order(options.samples, seed=0)]
    rows = []
    for part in options.parts:
        windows = draw(chunk, held=max(1, (int(chunk[-1]) + 1) // part), data_seed=0, epoch=0)
        order = np.concatenate(windows)
        rows.append(
            {
                "window": f"1/{part} of a plane",
                "windows": len(windows),
                "distinct_classes": round(distinct_classes(labels[order], options.batch_size), 1),
                "of_shuffled_rows": round(distinct_classes(in_rows[order], options.batch_size), 1),
            }
        )
    result = {
        "command": "python benchmarks/shuffle.py",
        **{key: getattr(options, key) for key in ("samples", "classes", "batch_size")},
        "chunk_rows": chunk_rows,
        "full_shuffle": round(distinct_classes(labels[full], options.batch_size), 1),
        "windows": rows,
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


def distinct_classes(labels: npt.NDArray[np.int64], batch_size: int) -> float:
    """Return the mean number of different labels in a batch, the last one left out where it is smaller."""
    batches = np.sort(labels[: len(labels) // batch_size * batch_size].reshape(-1, batch_size), axis=1)
    return float(((batches[:, 1:] != batches[:, :-1]).sum(axis=1) + 1).mean())


if __name__ == "__main__":
    main()

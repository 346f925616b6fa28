"""The pilot of ``klt``, its time beside a training step, and what it saves where stores are published and pulled.

    python benchmarks/transform_coding.py --logits lite0.npy

``--logits`` are those of a teacher with 1,000 classes for several views of each image, float32 (views, images,
classes). Encodings are fitted to all views of 80 % of the images and measured on those of the others; bytes are those
of ``benchmarks/encodings.py``, which compares all encodings. Seconds are those of one thread, in turns: encoding and
compressing, decompressing and decoding, BLAKE3, and decoding a batch of 128 beside a step of a resnet8 with as many
classes. From them follow the seconds of a store of ImageNet. Writes benchmarks/results/transform_coding.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numcodecs.blosc
import numpy as np
import torch
from blake3 import blake3
from teacher_logits import by_image

from kdpipe import models
from kdpipe.encoding.base import Encoding
from kdpipe.encoding.chooser import largest_kl, stored_bytes
from kdpipe.encoding.registry import get_encoding
from kdpipe.stages.provenance import git_revision, versions

RESULT = Path(__file__).parent / "results" / "transform_coding.json"
PILOTS = (500, 1_000, 2_000, 4_000, 8_000)
STEP = "klt0.32"
"""The largest step of those that ``--max-kl`` tries whose KL is within 1e-3 from T = 1 to 4."""
STORED = ("fp32", "fp16", "tailp7@16", STEP)
"""Encodings that are compared in a store of ImageNet; the last two are within 1e-3 from T = 1 to 4."""
BATCH = 128
ROWS = 512
"""Rows whose encoding and decoding is timed."""
IMAGES, VIEWS = 1_281_167, 50
"""The training images of ImageNet, and the views beside the plain one."""
MEGABITS = (100, 1_000)
"""Rates of transfer per second."""

Row = dict[str, Any]


def main() -> None:
    """Measure, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--logits", type=Path, required=True, help="float32 (views, images, 1000), .npy")
    parser.add_argument("--result", type=Path, default=RESULT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    pilot, held_out = by_image(torch.from_numpy(np.load(options.logits)))
    stored = {name: get_encoding(name).calibrate(pilot) for name in STORED}
    sizes = {name: measured(encoding, held_out) for name, encoding in stored.items()}
    seconds = speed(stored, held_out)
    result = {
        "command": "python benchmarks/transform_coding.py --logits lite0.npy",
        "rows": {"pilot": len(pilot), "held_out": len(held_out)},
        "pilots": [
            {"rows": rows} | measured(get_encoding(STEP).calibrate(pilot[:rows]), held_out)
            for rows in PILOTS
            if rows <= len(pilot)
        ],
        "unrotated": measured(get_encoding(STEP), held_out),
        "seconds": seconds,
        "imagenet": [imagenet(sizes[name], seconds) for name in STORED],
        "versions": versions(),
        "git_revision": git_revision(),
    }
    options.result.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def measured(encoding: Encoding, logits: torch.Tensor) -> Row:
    """Return bytes per row without the table, those of the table, and the largest mean KL from T = 1 to 4."""
    encoded = encoding.encode(logits)
    decoded = encoding.decode(torch.from_numpy(encoded.codes), torch.from_numpy(encoded.row_max), logits.shape[1])
    return {
        "name": encoding.name,
        "bytes": stored_bytes(encoded, encoding.compression) / len(logits),
        "table_bytes": len(json.dumps(encoding.describe())),
        "kl_span": largest_kl(logits, decoded, (1.0, 4.0)),
    }


def imagenet(size: Row, seconds: Row) -> Row:
    """Return what a store of ImageNet takes: bytes, and hours to transfer, to check and to decode it.

    A plane has a row for each image; decoding a plane includes decompressing it.
    """
    rows = IMAGES * (VIEWS + 1)
    stored = size["bytes"] * rows + size["table_bytes"]
    name = size["name"]
    return {
        "name": name,
        "kl_span": size["kl_span"],
        "plane_megabytes": size["bytes"] * IMAGES / 1e6,
        "gigabytes": stored / 1e9,
        "encode_hours": rows * (seconds[f"encode {name}"] + seconds[f"compress {name}"]) / 3600,
        **{f"transfer_hours_{rate}": stored * 8 / (rate * 1e6) / 3600 for rate in MEGABITS},
        "check_hours": stored * seconds["check a byte"] / 3600,
        "decode_plane_seconds": IMAGES * (seconds[f"decompress {name}"] + seconds[f"decode {name}"]),
    }


def speed(stored: dict[str, Encoding], logits: torch.Tensor) -> Row:
    """Return processor seconds, medians of 9: of a training step and of its batch, and of a row or a byte."""
    numcodecs.blosc.use_threads = False
    works: dict[str, tuple[Callable[[], object], int]] = {"step": (_step(logits.shape[1]), 1)}
    some, classes = logits[:ROWS], logits.shape[1]
    for name, encoding in stored.items():
        encoded = encoding.encode(some)
        rows = np.ascontiguousarray(encoded.codes.T if encoding.compression.transposed else encoded.codes)
        codec = _codec(encoding)
        packed, codes, row_max = codec.encode(rows), torch.from_numpy(encoded.codes), torch.from_numpy(encoded.row_max)
        works |= {
            f"encode {name}": (partial(encoding.encode, some), ROWS),
            f"compress {name}": (partial(codec.encode, rows), ROWS),
            f"decompress {name}": (partial(codec.decode, packed), ROWS),
            f"decode {name}": (partial(encoding.decode, codes, row_max, classes), ROWS),
            f"decode a batch of {name}": (partial(encoding.decode, codes[:BATCH], row_max[:BATCH], classes), 1),
        }
    content = bytes(64 * 1024**2)
    works["check a byte"] = (lambda: blake3(content).digest(), len(content))
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(11):
        for name, (work, count) in works.items():
            began = time.process_time()
            work()
            seconds[name].append((time.process_time() - began) / count)
    medians = {name: statistics.median(each[2:]) for name, each in seconds.items()}
    return medians | {"decode a batch / step": medians[f"decode a batch of {STEP}"] / medians["step"]}


def _codec(encoding: Encoding) -> Any:
    compression = encoding.compression
    return numcodecs.blosc.Blosc(
        cname=compression.cname,
        clevel=compression.level,
        shuffle=getattr(numcodecs.blosc, compression.shuffle.upper()),
        blocksize=compression.block,
    )


def _step(classes: int) -> Callable[[], object]:
    student = models.create("resnet8", classes).train()
    images, labels = torch.randn(BATCH, 3, 32, 32), torch.randint(0, classes, (BATCH,))
    optimizer = torch.optim.SGD(student.parameters(), 0.1, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(student(images), labels).backward()
        optimizer.step()

    return step


if __name__ == "__main__":
    main()

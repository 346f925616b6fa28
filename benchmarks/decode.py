"""Which decoder for JPEG files: Pillow, simplejpeg and torchvision.io, and Pillow's decoding at half size.

    python benchmarks/decode.py --small PATH/cifar10 --resized PATH/imagenet-samples --photos PATH/photos

Everything runs in one thread and ends as uint8 (3, height, width); files are in memory beforehand. "kdpipe" is
simplejpeg where that is installed, with Pillow for what it refuses. Pixels are compared with Pillow's, also of files
that were broken on purpose. "planes only" is the part of Pillow's time that is not decoding: from its pixels to
(3, height, width). Writes benchmarks/results/decode.json.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timing import interleaved, machine, ratio
from torchvision.io import ImageReadMode, decode_jpeg

from kdpipe.dataset.decode import Pixels, decode, decoder_name, describe, from_pillow
from kdpipe.errors import DatasetError

RESULT = Path(__file__).parent / "results" / "decode.json"
_EOI = b"\xff\xd9"
_SOS = b"\xff\xda"


def main() -> None:
    """Compare pixels and times of small and of large files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", type=Path, required=True, help="folder of JPEG files of 32 x 32")
    parser.add_argument("--resized", type=Path, required=True, help="folder of JPEG files of about 256 x 256")
    parser.add_argument("--photos", type=Path, required=True, help="folder of JPEG photographs")
    parser.add_argument("--compared", type=int, default=10_000, help="how many files of each to compare at most")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    result = {
        "command": "python benchmarks/decode.py --small CIFAR10 --resized IMAGENET_SAMPLES --photos PHOTOS",
        "machine": machine(),
        "decoder": decoder_name(),
        "torchvision": metadata.version("torchvision"),
        "small": measured(contents(options.small, options.compared), timed=1000, rounds=options.rounds),
        "resized": measured(contents(options.resized, options.compared), timed=100, rounds=options.rounds),
        "photos": measured(contents(options.photos, options.compared), timed=50, rounds=options.rounds),
    }
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


def contents(folder: Path, count: int) -> list[bytes]:
    """Return the bytes of up to ``count`` JPEG files, spread evenly over the folder's sorted paths."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    return [path.read_bytes() for path in paths[:: max(1, len(paths) // count)][:count]]


def measured(files: Sequence[bytes], *, timed: int, rounds: int) -> dict[str, Any]:
    """Take the seconds for ``timed`` files, then compare the pixels of all."""
    generator = np.random.default_rng(0)
    some = files[:: max(1, len(files) // timed)][:timed]
    images = [Image.open(io.BytesIO(content)) for content in some]
    for image in images:
        image.load()
    ways = {
        "pillow": lambda: seconds(by_pillow, some),
        "kdpipe": lambda: seconds(by_kdpipe, some),
        "torchvision": lambda: seconds(by_torchvision, some),
        "pillow at 1/2": lambda: seconds(at_half, some),
        "planes only": lambda: seconds(from_pillow, images),
    }
    taken = interleaved(ways, rounds=rounds)
    return {
        "files": len(files),
        "pixels_per_file": round(statistics.mean(math.prod(describe(content, "")[:2]) for content in files)),
        **{
            name: {
                "intact": dict(Counter(verdict(content, name) for content in files)),
                "broken": {
                    fault: dict(Counter(verdict(breaking(content, generator), name) for content in files))
                    for fault, breaking in BREAKINGS.items()
                },
            }
            for name in OTHERS
        },
        "timed_files": len(some),
        "seconds": taken,
        "microseconds_per_file": {
            way: round(1e6 * statistics.median(times) / len(some), 1) for way, times in taken.items()
        },
        "pillow_over_kdpipe": ratio(taken["pillow"], taken["kdpipe"]),
        "pillow_over_torchvision": ratio(taken["pillow"], taken["torchvision"]),
        "half_over_pillow": ratio(taken["pillow at 1/2"], taken["pillow"]),
    }


def seconds(function: Callable[[Any], Pixels], items: Sequence[Any]) -> float:
    """Return the CPU seconds that the function takes over all items."""
    began = time.process_time()
    for item in items:
        function(item)
    return time.process_time() - began


def by_pillow(content: bytes) -> Pixels:
    """Decode by Pillow alone."""
    with Image.open(io.BytesIO(content)) as image:
        return from_pillow(image)


def by_kdpipe(content: bytes) -> Pixels:
    """Decode as kdpipe does."""
    return decode(content, "")


def by_torchvision(content: bytes) -> Pixels:
    """Decode with the CPU decoder of torchvision.io, which gives channels last in memory."""
    image: torch.Tensor = decode_jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8), ImageReadMode.RGB)
    return np.ascontiguousarray(image.numpy())


def at_half(content: bytes) -> Pixels:
    """Let libjpeg scale by 1/2 while decoding: other pixels than those of the file."""
    with Image.open(io.BytesIO(content)) as image:
        image.draft("RGB", (image.width // 2, image.height // 2))
        return from_pillow(image)


OTHERS: dict[str, tuple[Callable[[bytes], Pixels], type[Exception]]] = {
    "kdpipe": (by_kdpipe, DatasetError),
    "torchvision": (by_torchvision, RuntimeError),
}
"""The decoders that are compared with Pillow, each with its error for a file that it refuses."""


def verdict(content: bytes, name: str) -> str:
    """Return who decodes a file, and whether the pixels of both are the same."""
    pillow: Pixels | None = None
    other: Pixels | None = None
    with contextlib.suppress(Exception):
        pillow = by_pillow(content)
    function, error = OTHERS[name]
    with contextlib.suppress(error):
        other = function(content)
    if pillow is not None and other is not None:
        return "same pixels" if np.array_equal(pillow, other) else "other pixels"
    if pillow is None and other is None:
        return "both refuse"
    return "only Pillow refuses" if pillow is None else f"only {name} refuses"


def cut(content: bytes, generator: np.random.Generator) -> bytes:
    """Keep the header and a part of the scan."""
    return content[: generator.integers(content.rindex(_SOS) + 14, len(content) - 2)]


def flip(content: bytes, generator: np.random.Generator) -> bytes:
    """Flip one bit of the scan."""
    place = int(generator.integers(content.rindex(_SOS) + 14, len(content) - 2))
    return content[:place] + bytes([content[place] ^ 1 << int(generator.integers(8))]) + content[place + 1 :]


BREAKINGS: dict[str, Callable[[bytes, np.random.Generator], bytes]] = {
    "truncated": cut,
    "truncated, then ended properly": lambda content, generator: cut(content, generator) + _EOI,
    "without its last two bytes": lambda content, _: content[:-2],
    "one bit of the scan flipped": flip,
}


if __name__ == "__main__":
    main()

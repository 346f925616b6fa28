"""The start of a teacher pass against the number of images: seconds to the first batch, and memory.

    python benchmarks/scale.py --sizes 10000,100000,1000000

Makes so many JPEG files of 32 x 32 in 1,000 classes, and measures in new processes, from after their imports:

- ``listing``: torchvision's ``ImageFolder``, which lists the files and nothing more;
- ``loader``: that, and the first batch of a ``DataLoader`` over it;
- ``first``: kdpipe's first pass over these images, up to the first batch of a linear teacher: files are listed, and the
  images of the batch are decoded, hashed and rendered to the plain view; images are streamed;
- ``read``: a first command that must know all images before it begins, as growth and mixing: every file is read, hashed
  and decoded once, then as ``first``;
- ``again``: a later command: every file's state is compared with what is remembered.

Seconds are CPU seconds of all processes, which include those of starting workers. Those of kdpipe import PyTorch once;
those of ``DataLoader`` are forks. All but ``read`` are repeated, in turn. Memory is the peak of the main process, and
what each worker shares with no other, beyond those of the same measurement on 1,000 images.
Writes benchmarks/results/scale.json.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timing import machine

from kdpipe import dataset
from kdpipe.stages.provenance import git_revision
from kdpipe.views import Geometry, Renderer

RESULT = Path(__file__).parent / "results" / "scale.json"
CLASSES = 1_000
BATCH = 256
FEWEST = 1_000
"""Images of the measurement that the memory of others is compared with."""


def main() -> None:
    """Measure all sizes and write the figures, or do one measurement in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=lambda text: [int(size) for size in text.split(",")], default=[10_000, 100_000])
    parser.add_argument("--workers", type=int, default=dataset.processors())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=Path, help="folder for the images, which are kept; default: a temporary one")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--measure", nargs=2, metavar=("WAY", "ROOT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure is not None:
        way, root = options.measure
        print(json.dumps(_measured(way, Path(root), workers=options.workers)))
        return
    with tempfile.TemporaryDirectory() as folder:
        sizes = {}
        for count in sorted({FEWEST, *options.sizes}):
            root = make((options.images or Path(folder)) / str(count), count)
            sizes[count] = _size(root, options, Path(folder) / "cache")
            if options.images is None:
                shutil.rmtree(root)
        result = {
            "command": f"python benchmarks/scale.py --sizes {','.join(map(str, options.sizes))}",
            "git_revision": git_revision(),
            "machine": machine(),
            "workers": options.workers,
            "sizes": {str(count): _compared(figures, sizes[FEWEST]) for count, figures in sizes.items()},
        }
    options.out.write_text(json.dumps(result, indent=2) + "\n")


def make(root: Path, count: int) -> Path:
    """Write ``count`` different JPEG files, unless they are there already; return the dataset's folder."""
    if root.exists():
        return root
    draws = np.random.default_rng(0)
    contents = []
    for _ in range(CLASSES):
        levels = np.kron(draws.integers(0, 256, (4, 4, 3), dtype=np.uint8), np.ones((8, 8, 1), dtype=np.uint8))
        buffer = io.BytesIO()
        Image.fromarray(levels).save(buffer, "JPEG")
        contents.append(buffer.getvalue())
    for number in range(CLASSES):
        folder = root / "train" / f"n{number:08}"
        folder.mkdir(parents=True)
        for index in range(count // CLASSES):
            content = contents[(7 * number + index) % CLASSES]
            comment = b"\xff\xfe\x00\x0a" + (number * 10**6 + index).to_bytes(8, "big")
            (folder / f"n{number:08}_{index}.JPEG").write_bytes(content[:2] + comment + content[2:])
    return root


def _size(root: Path, options: argparse.Namespace, cache: Path) -> dict[str, list[dict[str, float]]]:
    shutil.rmtree(cache, ignore_errors=True)
    time.sleep(3)  # files that were written just now are not remembered
    found: dict[str, list[dict[str, float]]] = {"listing": [], "loader": [], "first": [], "read": [], "again": []}
    for way in (*("listing", "first") * options.rounds, "read", *("listing", "again", "loader") * options.rounds):
        if way == "first":
            shutil.rmtree(cache, ignore_errors=True)
        command = [sys.executable, __file__, "--measure", way, str(root), "--workers", str(options.workers)]
        environment = {**os.environ, "KDPIPE_CACHE": str(cache)}
        ran = subprocess.run(command, env=environment, capture_output=True, text=True, start_new_session=True)
        if ran.returncode:
            sys.exit(ran.stderr)
        found[way].append(json.loads(ran.stdout))
        print(root.name, way, {name: round(value, 2) for name, value in found[way][-1].items()}, flush=True)
    return found


def _measured(way: str, root: Path, *, workers: int) -> dict[str, float]:
    """Do one measurement in this process, the first of its session."""
    from torchvision.datasets import ImageFolder  # not in worker processes, which import this file
    from torchvision.transforms.functional import pil_to_tensor

    wall, before = time.perf_counter(), _cpu()
    figures: dict[str, float] = {}
    if way in ("listing", "loader"):
        images = ImageFolder(str(root / "train"), transform=pil_to_tensor)
        if way == "loader":
            loader = torch.utils.data.DataLoader(images, batch_size=BATCH, num_workers=workers, shuffle=True)
            batches = iter(loader)
            next(batches)
    else:
        unread = way == "first"
        loaded = dataset.load(f"folder:{root}", "train", loading="stream", workers=workers, unread=unread)
        figures["load_cpu_seconds"] = _cpu() - before
        renderer = Renderer(loaded, "crop-flip", seed=0, geometry=Geometry(32, 32, "bilinear"), workers=workers)
        teacher = torch.nn.Linear(3 * 32 * 32, CLASSES)
        order = [np.arange(first, first + BATCH) for first in range(0, min(len(loaded), 4 * BATCH) - BATCH + 1, BATCH)]
        rendered = renderer.looks(order)
        teacher(next(rendered)[0].flatten(1).float() / 255)
    figures |= {"cpu_seconds": _cpu() - before, "wall_seconds": time.perf_counter() - wall}
    if way in ("read", "again"):
        next(rendered)  # from a worker process
        figures["worker_private_mb"] = max(_private_mb(each) for each in _session() if _command(each) == "worker")
    return {**figures, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3}


def _session() -> Iterator[int]:
    """Yield the processes of this session."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if int(path.name) != os.getpid() and os.getsid(int(path.name)) == os.getsid(0):
                yield int(path.name)
        except ProcessLookupError:
            continue


def _cpu() -> float:
    """Return the CPU seconds of this session's processes, and of those that they have waited for."""
    ticks = 0
    for process in (os.getpid(), *_session()):
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        ticks += sum(map(int, fields[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def _command(process: int) -> str:
    """Return ``worker`` for a process that the fork server has started."""
    parent = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    return "worker" if parent != os.getpid() else "other"


def _private_mb(process: int) -> float:
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024


def _compared(figures: dict[str, list[dict[str, float]]], fewest: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Return the medians of each way, relative to the listing, and the memory beyond that of the fewest images."""

    def median(of: dict[str, list[dict[str, float]]], way: str, name: str) -> float:
        return statistics.median(each[name] for each in of[way])

    summary: dict[str, Any] = {}
    for way, measured in figures.items():
        summary[way] = {name: median(figures, way, name) for name in measured[0]}
        summary[way]["peak_mb_beyond"] = summary[way]["peak_mb"] - median(fewest, way, "peak_mb")
        summary[way]["times_listing"] = summary[way]["cpu_seconds"] / median(figures, "listing", "cpu_seconds")
        summary[way]["rounds"] = len(measured)
        if "worker_private_mb" in summary[way]:
            own = summary[way]["worker_private_mb"] - median(fewest, way, "worker_private_mb")
            summary[way]["worker_private_mb_beyond"] = own
            summary[way]["load_times_listing"] = summary[way]["load_cpu_seconds"] / summary["listing"]["cpu_seconds"]
    return summary


if __name__ == "__main__":
    main()

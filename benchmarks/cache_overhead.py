"""Cost of caching beyond the teacher: cache-teacher's steady state against a loop that throws its logits away.

    python benchmarks/cache_overhead.py --data folder:PATH/cifar10 --weights PATH/cifar10-resnet20.safetensors

Both render the same views of the same images. The loop runs the bare network in whichever memory format and batch size
is the fastest here: all are tried first, alternating. ``cache-teacher`` runs it as it always does, encodes, measures
what that lost, writes, flushes and enters every shard; its time ends when the last is on disk. Start-up and sealing
are left out. Also counts the bytes that the process wrote per byte stored. Writes
benchmarks/results/cache_overhead.json.
"""

from __future__ import annotations

import argparse
import copy
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timing import interleaved, machine, ratio

from kdpipe import dataset, models
from kdpipe.dataset import Dataset
from kdpipe.encoding.registry import get_encoding
from kdpipe.models.parts import keep_memory
from kdpipe.stages.sources import load_model
from kdpipe.store.plan import Plan
from kdpipe.store.writer import Builder, build
from kdpipe.teacher.cache import cache_plane, plan
from kdpipe.teacher.forward import Forward
from kdpipe.views import Geometry, Recipe, Renderer

RESULT = Path(__file__).parent / "results" / "cache_overhead.json"
LAYOUTS = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last}
SIZES = (1, 8, 32, 64, 128, 256)
"""Images that are passed at once."""
TRIED = 256
ROUNDS = 5
"""Images and rounds of each try."""


def main() -> None:
    """Measure both loops in interleaved rounds for each encoding, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="images as kdpipe takes them")
    parser.add_argument("--teacher", default="resnet20")
    parser.add_argument("--weights", required=True)
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--views", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--encoding", action="append", help="default: fp16")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--work", type=Path, default=Path("benchmarks/scratch/cache_overhead"))
    parser.add_argument("--result", type=Path, default=RESULT)
    options = parser.parse_args()

    keep_memory()  # as the command does
    images = dataset.load(options.data, "train", options.samples)
    model = load_model(options.teacher, images, weights=options.weights)
    loops = Loops(images, Forward(model, device=models.resolve_device(options.device)), options)
    loops.find_fastest()
    names = options.encoding or ["fp16"]
    loops.thrown_away()
    loops.cpu_seconds.clear()
    seconds = interleaved(
        {"thrown away": loops.thrown_away, **{name: partial(loops.cached, name) for name in names}},
        rounds=options.rounds,
    )
    rows = len(images) * (1 + options.views)
    result = {
        "command": "python benchmarks/cache_overhead.py --data folder:CIFAR10 --weights cifar10-resnet20.safetensors "
        f"--samples {options.samples} --rounds {options.rounds}",
        "machine": machine(),
        "rows": rows,
        "tried": loops.tried,
        "fastest": loops.fastest,
        "seconds": seconds,
        "rows_per_second_thrown_away": rows / float(np.median(seconds["thrown away"])),
        "cached_over_thrown_away": {name: ratio(seconds[name], seconds["thrown away"]) for name in names},
        "cpu_seconds": loops.cpu_seconds,
        "cached_over_thrown_away_in_cpu_seconds": {
            name: ratio(loops.cpu_seconds[name], loops.cpu_seconds["thrown away"]) for name in names
        },
        "bytes_written_over_stored": {name: loops.written(name) for name in names},
    }
    options.result.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


class Loops:
    """The two ways to run one teacher over the views of one dataset."""

    def __init__(self, images: Dataset, forward: Forward, options: argparse.Namespace) -> None:
        """Take what both ways share."""
        self.options = options
        self.cpu_seconds: dict[str, list[float]] = {}
        """Of all threads, by loop, those included in which they wait for each other at a barrier."""
        self.forward = forward
        self.tried: dict[str, float] = {}
        """Median CPU seconds of the bare network on the same images, by memory format and batch size."""
        self.fastest = ""
        """The least of them."""
        self._networks: dict[str, torch.nn.Module] = {}
        self.images = images
        self.renderer = Renderer(
            images, "crop-flip", seed=0, geometry=Geometry.of(forward.preset), device=forward.device
        )

    def find_fastest(self) -> None:
        """Try every memory format and batch size on the bare network, in turn."""
        pixels = self.renderer(np.arange(min(TRIED, len(self.images))), 0).to(self.forward.device)
        ways = {f"{layout} {size}": (layout, size) for layout in LAYOUTS for size in SIZES}
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for way in list(ways) * (1 + ROUNDS):
            began = time.process_time()
            self._bare(pixels, *ways[way])
            self._finish()
            seconds[way].append(time.process_time() - began)
        self.tried = {way: float(np.median(taken[1:])) for way, taken in seconds.items()}
        self.fastest = min(self.tried, key=lambda way: self.tried[way])

    @torch.inference_mode()
    def _bare(self, pixels: torch.Tensor, layout: str, size: int) -> None:
        """Pass pixels through a copy of the network in a memory format, so many images at a time."""
        form = LAYOUTS[layout]
        network = self._networks.setdefault(layout, copy.deepcopy(self.forward.model.module).to(memory_format=form))
        for part in pixels.split(size):
            network(self.forward.model.preset.normalize(part).to(memory_format=form))

    def thrown_away(self) -> float:
        """Render and run the teacher in the fastest way; return the seconds it took."""
        layout, size = self.fastest.rsplit(" ", 1)
        rows = np.arange(len(self.images))
        batches = [rows[start : start + self.options.batch_size] for start in rows[:: self.options.batch_size].tolist()]
        with self._timed("thrown away") as seconds:
            for view in range(1 + self.options.views):
                for pixels in self.renderer.batches(batches, view):
                    self._bare(pixels.to(self.forward.device), layout, int(size))
            self._finish()
        return seconds[0]

    def cached(self, name: str) -> float:
        """Cache into a fresh store; return the seconds from the first batch until the last shard is on disk."""
        with build(self._store(name), self._plan(name)) as builder, self._timed(name) as seconds:
            self._fill(builder)
            builder.drain()
        return seconds[0]

    def written(self, name: str) -> dict[str, Any]:
        """Build and seal a store; return what the process wrote (write calls, from Linux's /proc) and what it kept."""
        store, wanted = self._store(name), self._plan(name)
        before = _bytes_written()
        with build(store, wanted) as builder:
            self._fill(builder)
            builder.seal({})
        wrote = _bytes_written() - before
        kept = sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
        return {"written": wrote, "stored": kept, "ratio": wrote / kept}

    def _fill(self, builder: Builder) -> None:
        for view in range(1 + self.options.views):
            cache_plane(
                *(builder, "train", view),
                forward=self.forward,
                renderer=self.renderer,
                batch_size=self.options.batch_size,
                advance=lambda _done: None,
            )

    @contextmanager
    def _timed(self, name: str) -> Iterator[list[float]]:
        """Yield a list that gets the seconds of the block at its end."""
        seconds: list[float] = []
        wall, cpu = time.perf_counter(), time.process_time()
        yield seconds
        seconds.append(time.perf_counter() - wall)
        self.cpu_seconds.setdefault(name, []).append(time.process_time() - cpu)

    def _plan(self, name: str) -> Plan:
        chosen = get_encoding(name)
        if "table" in chosen.describe():
            chosen = chosen.calibrate(self.forward(self.renderer(np.arange(min(512, len(self.images))), 0)).cpu())
        return plan(
            self.forward,
            {"train": self.images},
            recipe=Recipe.parse("crop-flip"),
            seed=0,
            views=self.options.views,
            encoding=chosen,
            batch_size=self.options.batch_size,
        )

    def _store(self, name: str) -> Path:
        path: Path = self.options.work / f"{name}.zarr"
        shutil.rmtree(path, ignore_errors=True)
        path.with_name(path.name + ".ledger").unlink(missing_ok=True)
        return path

    def _finish(self) -> None:
        if self.forward.device.type == "cuda":
            torch.cuda.synchronize(self.forward.device)


def _bytes_written() -> int:
    counts = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(counts["wchar"])


if __name__ == "__main__":
    main()

"""Every stage of a large store against the number of images: CPU seconds, wall seconds and peak memory.

    python benchmarks/large.py --sizes 10000,100000,1280000

Makes so many JPEG files of 32 x 32 in 1,000 classes, and runs kdpipe's commands on them as a user would: a linear
teacher, four augmented views beside the plain one, ``tailp:6,8``. Each runs once, on one thread per process:

- ``first batch``: a first command on these images, up to its first batch;
- ``1 rank``: ``cache-teacher``, which reads images that no command has read;
- ``seal``: the end of ``1 rank``, which digests what the ledger does not have and writes the manifest;
- ``verify``, ``open``: all digests; and opening the store, without a plane;
- ``epoch``, ``epoch in windows``: a linear student's command with one epoch, its plane in memory, and with a
  ``--memory-limit`` of a quarter of it;
- ``2 ranks``: ``cache-teacher`` by two processes of torchrun, when the images are known.

The peak is that of the command's processes together (their proportional set size, looked at every half second).
The images are streamed, and stay in the page cache. Writes benchmarks/results/large.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from commands import describe
from scale import BATCH, CLASSES, make
from timing import machine

from kdpipe.stages.provenance import git_revision

RESULT = Path(__file__).parent / "results" / "large.json"
VIEWS = 4
LINEAR = f"""
import torch

def linear(num_classes={CLASSES}):
    generator = torch.Generator().manual_seed(0)
    layer = torch.nn.Linear(3 * 32 * 32, num_classes)
    torch.nn.init.normal_(layer.weight, std=0.05, generator=generator)
    return torch.nn.Sequential(torch.nn.Flatten(), layer)
"""
SEAL = """
import sys, time
from kdpipe.store.writer import Builder
from kdpipe.stages.cli import main

def timed(builder, about, seal=Builder.seal):
    wall, cpu = time.perf_counter(), time.process_time()
    sealed = seal(builder, about)
    print("SEAL", time.process_time() - cpu, time.perf_counter() - wall, flush=True)
    return sealed

Builder.seal = timed
main()
"""
OPEN = """
import sys, time
from kdpipe.store.reader import open_store

wall, cpu = time.perf_counter(), time.process_time()
open_store(sys.argv[1])
print("OPEN", time.process_time() - cpu, time.perf_counter() - wall, flush=True)
"""


def main() -> None:
    """Measure all sizes, and write the figures after each stage."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=lambda text: [int(size) for size in text.split(",")], default=[10_000, 100_000])
    parser.add_argument("--images", type=Path, help="folder for the images, which are kept; default: a temporary one")
    parser.add_argument("--work", type=Path, help="folder for the stores; default: a temporary one")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    result: dict[str, Any] = {
        "command": f"python benchmarks/large.py --sizes {','.join(map(str, options.sizes))}",
        "git_revision": git_revision(),
        "machine": machine(),
        "classes": CLASSES,
        "views": 1 + VIEWS,
        "sizes": {},
    }
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        for count in options.sizes:
            images = make((options.images or Path(folder)) / str(count), count)
            for figures in Stages(images, count, Path(folder) / "work").measured():
                result["sizes"][str(count)] = figures
                options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
            shutil.rmtree(Path(folder) / "work")
            if options.images is None:
                shutil.rmtree(images)


class Stages:
    """The commands over one dataset."""

    def __init__(self, images: Path, count: int, work: Path) -> None:
        """Take the images' folder, their number, and a folder that is made for stores, runs and the cache."""
        self.count, self.work, self.store = count, work, work / "one.zarr"
        work.mkdir()
        (work / "flat.py").write_text(LINEAR, encoding="utf-8")
        paths = os.pathsep.join([str(work), os.environ.get("PYTHONPATH", "")])
        self.environment = {
            **os.environ,
            "PYTHONPATH": paths,
            "KDPIPE_CACHE": str(work / "cache"),
            "OMP_NUM_THREADS": "1",
        }
        data = ("--data", f"folder:{images}", "--loading", "stream")
        preset = ("--input-size", "32", "--mean", "0.5,0.5,0.5", "--std", "0.3,0.3,0.3")
        self.teaching = (
            *("cache-teacher", *data, "--teacher", "flat:linear", *preset, "--trust-code", "--device", "cpu"),
            *("--views", str(VIEWS), "--recipe", "crop-flip", "--encoding", "tailp:6,8", "--batch-size", str(BATCH)),
        )
        self.student = (
            *("train-student", *data, "--store", str(self.store), "--student", "flat:linear", "--trust-code"),
            *("--device", "cpu", "--epochs", "1", "--no-dvclive", "--batch-size", str(BATCH)),
        )
        self.survey = (str(Path(__file__).parent / "scale.py"), "--measure", "first", str(images), "--workers", "2")
        time.sleep(3)  # files that were written just now are not remembered

    def measured(self) -> Iterator[dict[str, Any]]:
        """Run the commands in turn; yield seconds and peaks by stage, and the store's size, as they grow."""
        kdpipe, torchrun = ("-m", "kdpipe"), ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone")
        stages: dict[str, Any] = {"first batch": self._run(self.survey)[0]}
        stages["1 rank"], lines = self._run(("-c", SEAL, *self.teaching, "--out", str(self.store)))
        stages["seal"] = _told(lines, "SEAL")
        files = [path for path in self.store.rglob("*") if path.is_file()]
        found = {"bytes": sum(path.stat().st_size for path in files), "files": len(files), "stages": stages}
        stages["verify"], _ = self._run((*kdpipe, "verify", str(self.store)))
        stages["open"] = _told(self._run(("-c", OPEN, str(self.store)))[1], "OPEN")
        yield found
        stages["epoch"], _ = self._run((*kdpipe, *self.student, "--out", str(self.work / "whole")))
        yield found
        plane = self.count * CLASSES / 1024**3  # a byte of each class
        limit = ("--memory-limit", f"{max(plane / 4, 0.006):.4f}", "--out", str(self.work / "windows"))
        stages["epoch in windows"], _ = self._run((*kdpipe, *self.student, *limit))
        yield found
        other = self.work / "two.zarr"
        stages["2 ranks"], _ = self._run((*torchrun, *kdpipe, *self.teaching, "--out", str(other)))
        digests = {describe(each)["digest"] for each in (self.store, other)}
        if len(digests) > 1:
            sys.exit(f"one and two ranks made different stores: {digests}")
        yield found

    def _run(self, arguments: Sequence[str]) -> tuple[dict[str, float], list[str]]:
        """Run Python with these arguments; return what it and its processes took, and the lines that it printed."""
        began, peak = time.perf_counter(), 0.0
        with tempfile.TemporaryFile("w+", encoding="utf-8") as printed:
            process = subprocess.Popen([sys.executable, *arguments], stdout=printed, env=self.environment)
            while process.poll() is None:
                peak = max(peak, _memory_mb())
                time.sleep(0.5)
            used = os.times()
            if process.returncode:
                sys.exit(f"{' '.join(arguments)} failed with {process.returncode}")
            printed.seek(0)
            lines = printed.read().splitlines()
        cpu = used.children_user + used.children_system - self._before()
        figures = {"cpu_seconds": cpu, "wall_seconds": time.perf_counter() - began, "peak_mb": peak}
        print(
            " ".join(each for each in arguments[:4] if len(each) < 60),
            {name: round(value, 1) for name, value in figures.items()},
            flush=True,
        )
        return figures, lines

    _counted = 0.0

    def _before(self) -> float:
        """Return the CPU seconds of all earlier commands."""
        used = os.times()
        earlier, type(self)._counted = self._counted, used.children_user + used.children_system
        return earlier


def _told(lines: Sequence[str], what: str) -> dict[str, float]:
    """Return the seconds that a command printed of itself."""
    _, cpu, wall = next(line for line in lines if line.startswith(what)).split()
    return {"cpu_seconds": float(cpu), "wall_seconds": float(wall)}


def _memory_mb() -> float:
    """Return the proportional set size of all processes that this one has started, and of theirs."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(path.name)] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    total = 0
    for process in parents:
        above = parents[process]
        while above not in (os.getpid(), 0):
            above = parents.get(above, 0)
        try:
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines() if above else []
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


if __name__ == "__main__":
    main()

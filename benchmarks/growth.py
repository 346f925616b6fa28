"""Cost of a growth: some images are added to a store, against a pass over all images.

    python benchmarks/growth.py --samples 50000 --added 1000

Random images of 32 x 32, an untrained resnet8, four augmented views, on one thread of a CPU. Seconds are CPU time of
the whole command, with the reading and hashing of all images. Bytes are those of files that are new or have changed,
which DVC or rsync would move. Writes benchmarks/results/growth.json.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

from timing import machine

from kdpipe.testing.stores import contents

DATA = """
import os
import numpy as np, torch

class Images:
    classes = [str(number) for number in range(10)]
    def __init__(self, split):
        self.split, self.count = split, int(os.environ["SAMPLES"]) if split == "train" else 500
        self.keys = [f"{split} {index}" for index in range(self.count)]
        self.targets = [index % 10 for index in range(self.count)]
    def __len__(self):
        return self.count
    def __getitem__(self, index):
        if index >= self.count:
            raise IndexError
        drawn = np.random.default_rng([index, self.split == "test"]).integers(0, 256, (3, 32, 32), dtype=np.uint8)
        return torch.from_numpy(drawn), self.targets[index]

def build(split):
    return Images(split)
"""


def cache(folder: Path, store: Path, samples: int) -> float:
    """Run ``cache-teacher`` over so many images; return the CPU seconds."""
    command = ("cache-teacher", "--data", "images:build", "--teacher", "resnet8", "--mean", "0.5,0.5,0.5")
    more = ("--std", "0.3,0.3,0.3", "--views", "4", "--device", "cpu", "--out", str(store))
    paths = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "SAMPLES": str(samples), "PYTHONPATH": paths, "KDPIPE_CACHE": str(folder / "cache")}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "kdpipe", *command, *more], check=True, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(samples: int, added: int) -> dict[str, Any]:
    """Return the cost of the growth, and of a pass over all images."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "images.py").write_text(DATA)
        store, whole = folder / "grown.zarr", folder / "whole.zarr"
        first = cache(folder, store, samples)
        before = contents(store)
        growth = cache(folder, store, samples + added)
        after = contents(store)
        nothing = cache(folder, store, samples + added)
        return {
            "samples": samples,
            "added": added,
            "first_pass_cpu_s": round(first, 1),
            "growth_cpu_s": round(growth, 1),
            "nothing_new_cpu_s": round(nothing, 1),
            "whole_pass_cpu_s": round(cache(folder, whole, samples + added), 1),
            "growth_bytes": sum(len(content) for path, content in after.items() if before.get(path) != content),
            "growth_files": sum(before.get(path) != content for path, content in after.items()),
            "whole_bytes": sum(map(len, contents(whole).values())),
        }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=50_000)
    parser.add_argument("--added", type=int, default=1_000)
    options = parser.parse_args()
    found = {
        "command": f"python benchmarks/growth.py --samples {options.samples} --added {options.added}",
        "machine": machine(),
        **measure(options.samples, options.added),
    }
    path = Path(__file__).parent / "results" / "growth.json"
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()

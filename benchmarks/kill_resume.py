"""Kill cache-teacher ten times at random moments; the store must equal an uninterrupted one.

    python benchmarks/kill_resume.py --data folder:PATH/cifar10 --weights PATH/cifar10-resnet20.safetensors

Writes benchmarks/results/kill_resume.json: when each kill came, how many shards were finished then, and both
digests.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from commands import describe

RESULT = Path(__file__).parent / "results" / "kill_resume.json"


def main() -> None:
    """Build once undisturbed, once with kills, and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--teacher", default="resnet20")
    parser.add_argument("--weights", required=True)
    parser.add_argument("--limit-train", type=int, default=10_000)
    parser.add_argument("--views", type=int, default=4)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("runs/kill_resume"))
    options = parser.parse_args()

    shutil.rmtree(options.work, ignore_errors=True)
    began = time.perf_counter()
    undisturbed = start(options, options.work / "undisturbed.zarr")
    if undisturbed.wait():
        sys.exit("the undisturbed run failed")
    seconds = time.perf_counter() - began

    store = options.work / "killed.zarr"
    draw = random.Random(options.seed)
    kills: list[dict[str, Any]] = []
    while len(kills) < options.kills:
        process = start(options, store)
        delay = draw.uniform(0, 1.2 * seconds / options.kills)
        try:
            process.wait(delay)
            sys.exit(f"finished after {len(kills)} kills only: give it more to do with --limit-train")
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        kills.append({"after_seconds": round(delay, 2), "shards_done": shards_done(store)})
        print(f"kill {len(kills)} after {delay:.1f} s: {kills[-1]['shards_done']} shards on disk", flush=True)
    if start(options, store).wait():
        sys.exit("the last run failed")
    digests = {name: describe(options.work / f"{name}.zarr")["digest"] for name in ("undisturbed", "killed")}
    same = subprocess.run(["diff", "-rq", "--exclude=zarr.json", *(str(options.work / f"{n}.zarr") for n in digests)])
    result = {
        "command": f"python benchmarks/kill_resume.py --data folder:CIFAR10 --limit-train {options.limit_train}",
        "uninterrupted_seconds": round(seconds, 1),
        "kills": kills,
        "digests": digests,
        "equal": digests["undisturbed"] == digests["killed"] and same.returncode == 0,
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))
    sys.exit(0 if result["equal"] else 1)


def start(options: argparse.Namespace, out: Path) -> subprocess.Popen[bytes]:
    """Start cache-teacher in a process of its own."""
    command = (
        *("cache-teacher", "--data", options.data, "--teacher", options.teacher, "--weights", options.weights),
        *("--limit-train", options.limit_train, "--views", options.views, "--out", out),
    )
    return subprocess.Popen([sys.executable, "-m", "kdpipe", *map(str, command)], stderr=subprocess.DEVNULL)


def shards_done(store: Path) -> int:
    """Return the number of finished shards, 0 where the store is not there yet."""
    return int(describe(store)["shards_done"]) if store.exists() else 0


if __name__ == "__main__":
    main()

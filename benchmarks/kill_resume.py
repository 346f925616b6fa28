"""Kill cache-teacher fifty times at random moments; the store must equal an uninterrupted one.

    python benchmarks/kill_resume.py --data folder:PATH/cifar10 --weights PATH/cifar10-resnet20.safetensors

The kills are spread over the run's length: each comes a random time after its process took the store's lock, and the
next process goes on from there. Few samples and many views make many shards, so that each stretch finishes some.
Writes benchmarks/results/kill_resume.json: when each kill came, how many shards were finished then, and both digests.
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
    parser.add_argument("--limit-train", type=int, default=250)
    parser.add_argument("--limit-test", type=int, default=250)
    parser.add_argument("--views", type=int, default=200)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("benchmarks/scratch/kill_resume"))
    options = parser.parse_args()

    shutil.rmtree(options.work, ignore_errors=True)
    undisturbed, killed = options.work / "undisturbed.zarr", options.work / "killed.zarr"
    process = start(options, undisturbed)
    began = time.perf_counter()
    if process.wait():
        sys.exit("the undisturbed run failed")
    seconds = time.perf_counter() - began

    kills = kill_again_and_again(options, killed, longest=1.5 * seconds / options.kills)
    if start(options, killed).wait():
        sys.exit("the last run failed")
    described = {"undisturbed": describe(undisturbed), "killed": describe(killed)}
    digests = {name: found["digest"] for name, found in described.items()}
    same = subprocess.run(["diff", "-rq", "--exclude=zarr.json", undisturbed, killed])
    left = sorted(path.name for path in options.work.iterdir() if path not in (undisturbed, killed))
    result = {
        "command": "python benchmarks/kill_resume.py --data folder:CIFAR10 "
        f"--weights {Path(options.weights).name} --limit-train {options.limit_train} "
        f"--limit-test {options.limit_test} --views {options.views} --kills {options.kills}",
        "uninterrupted_seconds": round(seconds, 1),
        "shards_total": described["undisturbed"]["shards_total"],
        "kills": kills,
        "digests": digests,
        "left_beside": left,
        "equal": digests["undisturbed"] == digests["killed"] and same.returncode == 0 and not left,
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))
    sys.exit(0 if result["equal"] else 1)


def start(options: argparse.Namespace, out: Path) -> subprocess.Popen[bytes]:
    """Start cache-teacher in a process of its own; return once it has taken the store's lock."""
    command = (
        *("cache-teacher", "--data", options.data, "--teacher", options.teacher, "--weights", options.weights),
        *("--limit-train", options.limit_train, "--limit-test", options.limit_test, "--views", options.views),
        *("--out", out),
    )
    process = subprocess.Popen([sys.executable, "-m", "kdpipe", *map(str, command)], stderr=subprocess.DEVNULL)
    lock = out.with_name(out.name + ".lock")
    while process.poll() is None and not (lock.exists() and lock.read_bytes() == str(process.pid).encode()):
        time.sleep(0.005)
    return process


def kill_again_and_again(options: argparse.Namespace, store: Path, *, longest: float) -> list[dict[str, Any]]:
    """Kill ``options.kills`` processes in turn, each up to ``longest`` seconds after it took the lock."""
    draw = random.Random(options.seed)
    kills: list[dict[str, Any]] = []
    while len(kills) < options.kills:
        process = start(options, store)
        delay = draw.uniform(0, longest)
        try:
            process.wait(delay)
            sys.exit(f"finished or failed after {len(kills)} kills: give it more to do with --views")
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        kills.append({"after_seconds": round(delay, 2), "shards_done": shards_done(store)})
        print(f"kill {len(kills)} after {delay:.2f} s: {kills[-1]['shards_done']} shards on disk", flush=True)
    return kills


def shards_done(store: Path) -> int:
    """Return the number of shards in the ledger, 0 where there is none yet."""
    ledger = store.with_name(store.name + ".ledger")
    return ledger.read_bytes().count(b"/codes/c/") if ledger.exists() else 0


if __name__ == "__main__":
    main()

"""Pulling a store from real servers, whole and in part: bytes and seconds, against rsync and DVC; and kills.

    python benchmarks/sharing.py --samples 50000 --kills 20

Publishes a store of random logits with four augmented views as v1, and with eight as v2, to a folder, nginx, an S3
server (moto, which is slow) and sshd, all on this machine. Each command runs in a process of its own, and its seconds
include the start of Python. ``again`` is the same command once more, ``update`` pulls v2 beside v1.

Of the others, ``rsync`` copies from sshd, and ``dvc import`` from a Git repository with a DVC remote in a folder. What
they copy in part cannot be opened, since the manifest names files that are not there.

``--kills`` ends pulls from a slow nginx at random moments, in turn the client by SIGKILL and the server; afterwards the
store has to be that which was published. ``sent`` are the bytes that nginx logged, without those of killed connections.

Writes benchmarks/results/sharing.json.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

from timing import machine

from kdpipe.stages.provenance import git_revision
from kdpipe.store.plan import Limits
from kdpipe.testing.stores import contents, small_plan, small_store

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests import servers
from tests.servers import Place

RESULT = Path(__file__).parent / "results" / "sharing.json"
SAID = ("--license", "CC-BY-4.0", "--contact", "benchmark@example.org")
PARTS: Mapping[str, tuple[str, ...]] = {
    "test split": ("--split", "test"),
    "one view": ("--split", "train", "--views", "0"),
    "all": (),
    "again": (),
}
SERVERS: Mapping[str, Callable[[Path], AbstractContextManager[Place]]] = {
    "http (nginx)": lambda base: servers.nginx(base, writable=True),
    "s3 (moto)": servers.s3,
    "ssh (sshd)": servers.sshd,
}


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=50_000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--only-kills", action="store_true", help="measure no pulls, and write nothing")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--result", type=Path, default=RESULT)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        os.environ["KDPIPE_CONFIG"], os.environ["KDPIPE_CACHE"] = str(work / "config"), str(work / "cache")
        if asked.only_kills:
            print(kills(made(work, asked.samples, 4), work / "killed", count=asked.kills, seed=asked.seed))
            return
        stores = {version: made(work, asked.samples, views) for version, views in (("v1", 4), ("v2", 8))}
        rows: dict[str, dict[str, dict[str, float]]] = {}
        place = work / "place"
        rows["a folder"] = pulled(stores, str(place), work / "pulled" / "folder")
        for name, start in SERVERS.items():
            with start(work / name.split()[0]) as server:
                os.environ.update(server.env)
                rows[name] = pulled(stores, server.url, work / "pulled" / name.split()[0])
                if name.startswith("ssh"):
                    rows["rsync over ssh"] = by_rsync(server, work / "rsync")
        rows["dvc import, a folder"] = by_dvc(stores, work / "dvc")
        killed = kills(stores["v1"], work / "killed", count=asked.kills, seed=asked.seed) if asked.kills else None
        result = {
            "command": " ".join(["python benchmarks/sharing.py", *sys.argv[1:]]),
            "machine": machine(),
            "git_revision": git_revision(),
            "samples": asked.samples,
            "store_bytes": {version: size(store) for version, store in stores.items()},
            "rows": rows,
            "kills": killed,
        }
    show(result)
    asked.result.write_text(json.dumps(result, indent=1) + "\n")


def made(work: Path, samples: int, views: int) -> Path:
    """Return a store of random logits of 100 classes, with a fifth as many test images."""
    path = work / "made" / f"cars{views}.zarr"
    limits = Limits(shard_rows=8192)
    small_store(path, small_plan(train=samples, test=samples // 5, views=views, classes=100, limits=limits))
    return path


def pulled(stores: Mapping[str, Path], url: str, out: Path) -> dict[str, dict[str, float]]:
    """Publish both versions at a place and pull parts of them."""
    kdpipe("publish", stores["v1"], f"{url}/cars@v1", *SAID)
    found = {"publish v2": timed(lambda: kdpipe("publish", stores["v2"], f"{url}/cars@v2", *SAID), lambda: 0)}
    for part, flags in PARTS.items():
        target = out / f"{'all' if part == 'again' else part.replace(' ', '-')}" / "cars.zarr"
        before = size(target) if target.exists() else 0
        target.parent.mkdir(parents=True, exist_ok=True)
        found[part] = timed(partial(kdpipe, "pull", f"{url}/cars@v1", "--out", target, *flags), partial(size, target))
        found[part]["bytes"] -= before
    new = out / "all" / "cars-v2.zarr"
    found["update"] = timed(lambda: kdpipe("pull", f"{url}/cars@v2", "--out", new), lambda: own(new))
    assert contents(new).keys() >= contents(stores["v2"]).keys()
    return found


def by_rsync(server: Place, out: Path) -> dict[str, dict[str, float]]:
    """Copy parts of the published stores by rsync."""
    assert server.folder is not None
    host, port = server.url.split("//")[1].split("/")[0].rsplit(":", 1)
    shell = f"{server.env['KDPIPE_SSH']} -p {port}"

    def copy(part: str, target: Path) -> dict[str, float]:
        target.mkdir(parents=True, exist_ok=True)
        command = ["rsync", "-a", "--stats", "-e", shell, f"{host}:{server.folder}/cars/{part}", f"{target}/"]
        began = time.perf_counter()
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        line = next(line for line in printed.splitlines() if line.startswith("Total bytes received"))
        return {"seconds": time.perf_counter() - began, "bytes": int(line.split()[-1].replace(",", ""))}

    return {
        "test split": copy("v1/test", out / "test"),
        "one view": copy("v1/train/codes/c/0", out / "view"),
        "all": copy("v1/", out / "all"),
        "again": copy("v1/", out / "all"),
        "update": copy("v2/", out / "all"),
    }


def by_dvc(stores: Mapping[str, Path], work: Path) -> dict[str, dict[str, float]]:
    """Import parts of the stores by DVC, from a repository whose remote is a folder."""
    producer, consumer = work / "producer", work / "consumer"
    identity = ["-c", "user.name=benchmark", "-c", "user.email=benchmark@example.org"]

    def run(where: Path, *command: object) -> None:
        subprocess.run([str(each) for each in command], cwd=where, check=True, capture_output=True)

    for repository in (producer, consumer):
        repository.mkdir(parents=True)
        run(repository, "git", "init", "--quiet")
        run(repository, "dvc", "init", "--quiet")
    run(producer, "dvc", "remote", "add", "--default", "shared", work / "remote")
    for version, store in stores.items():
        shutil.rmtree(producer / "cars.zarr", ignore_errors=True)
        shutil.copytree(store, producer / "cars.zarr")
        run(producer, "dvc", "add", "cars.zarr")
        run(producer, "dvc", "push")
        run(producer, "git", "add", "--all")
        run(producer, "git", *identity, "commit", "--quiet", "-m", version)
        run(producer, "git", "tag", version)

    def take(part: str, out: str) -> dict[str, float]:
        def measured() -> int:
            return size(consumer / out)

        return timed(
            lambda: run(consumer, "dvc", "import", producer, part, "--rev", "v1", "--out", out, "--force"), measured
        )

    found = {
        "test split": take("cars.zarr/test", "test"),
        "one view": take("cars.zarr/train/codes/c/0", "view"),
        "all": take("cars.zarr", "cars.zarr"),
    }
    found["again"] = timed(lambda: run(consumer, "dvc", "update", "cars.zarr.dvc", "--rev", "v1"), lambda: 0)
    before = contents(stores["v1"])
    new = {name: content for name, content in contents(stores["v2"]).items() if before.get(name) != content}
    found["update"] = timed(
        lambda: run(consumer, "dvc", "update", "cars.zarr.dvc", "--rev", "v2"), lambda: sum(map(len, new.values()))
    )
    return found


def kills(store: Path, work: Path, *, count: int, seed: int) -> dict[str, Any]:
    """Kill pulls and their server at random moments; return how often."""
    drawn, port, out = random.Random(seed), servers.free_port(), work / "out" / "cars.zarr"
    kdpipe("publish", store, f"{work / 'served'}/cars@v1", *SAID)
    out.parent.mkdir(parents=True)
    command = [sys.executable, "-m", "kdpipe", "pull", f"http://127.0.0.1:{port}/cars@v1", "--out", str(out)]
    rate = f"{max(1, size(store) // (4 * count * 1024))}k"
    ended = {"client": 0, "server": 0}
    os.environ["KDPIPE_TIMEOUT"] = "2"
    while sum(ended.values()) < count:
        with servers.nginx(work, rate=rate, port=port):
            process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
            time.sleep(drawn.uniform(1, 6))
            if process.poll() is not None:
                assert process.returncode == 0, process.communicate()[1]
                break
            side = "client" if sum(ended.values()) % 2 == 0 else "server"
            if side == "client":
                process.kill()
        _, said = process.communicate()
        assert side == "client" or (process.returncode == 1 and "Traceback" not in said), said
        assert not out.exists()
        ended[side] += 1
    del os.environ["KDPIPE_TIMEOUT"]
    with servers.nginx(work, port=port):
        subprocess.run(command, check=True)
    published = {name: len(content) for name, content in contents(work / "served" / "cars" / "v1").items()}
    assert {name: len(content) for name, content in contents(out).items()} == published
    kdpipe("verify", out, "--deep")
    lines = (work / "nginx" / "access.log").read_text().splitlines()
    sent = sum(int(line.split('"')[2].split()[1]) for line in lines)
    return {"ended": ended, "bytes": sum(published.values()), "sent": sent, "verified": True}


def kdpipe(*arguments: object) -> None:
    """Run a kdpipe command, quietly."""
    command = [sys.executable, "-m", "kdpipe", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: {done.stderr}")


def timed(run: Callable[[], None], measured: Callable[[], int]) -> dict[str, float]:
    """Return the seconds of ``run``, and the bytes that are ``measured`` after it."""
    began = time.perf_counter()
    run()
    return {"seconds": time.perf_counter() - began, "bytes": measured()}


def size(folder: Path) -> int:
    """Return the bytes of the files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def own(folder: Path) -> int:
    """Return the bytes of the files below a folder that no other store has."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and path.stat().st_nlink == 1)


def show(result: Mapping[str, Any]) -> None:
    """Print a table of MB and seconds."""
    columns = [*PARTS, "update"]
    print(f"{'':24}" + "".join(f"{each:>22}" for each in columns))
    for name, row in result["rows"].items():
        cells = [f"{row[each]['bytes'] / 1e6:10.2f} MB {row[each]['seconds']:6.1f} s" for each in columns]
        print(f"{name:24}" + "".join(f"{cell:>22}" for cell in cells))
    if result["kills"] is not None:
        print("kills:", result["kills"])


if __name__ == "__main__":
    main()

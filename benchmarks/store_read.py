"""Reading a store: batches from memory, decoding a plane, verifying, and what others take for the same batches.

    pip install -c constraints.txt -e '.[bench]'
    python benchmarks/store_read.py --samples 200000 --classes 1000
    python benchmarks/store_read.py --store PATH/logits.zarr --result benchmarks/results/store_read_cifar10.json
    python benchmarks/store_read.py --only logits

Makes a store of random logits in --work, or takes a real one, and keeps the same codes as one array in memory and as
LMDB, HDF5, safetensors and one .pt file per sample. Ways to do the same thing are timed in turn, round by round; files
are in the page cache and freed memory stays with the process (as in kdpipe's commands), for all alike. Writes
benchmarks/results/store_read.json, or what --result names.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import zarr
from blake3 import blake3
from timing import interleaved, machine, ratio

from kdpipe.models.parts import keep_memory
from kdpipe.models.preset import IMAGENET_MEAN, IMAGENET_STD, Preset
from kdpipe.store.blocks import Pool, windows
from kdpipe.store.plan import Plan, SplitPlan
from kdpipe.store.reader import LogitStore, open_store
from kdpipe.store.sections import Fingerprint, Recipe, Teacher
from kdpipe.store.verify import verify_files
from kdpipe.store.writer import build

RESULT = Path(__file__).parent / "results" / "store_read.json"
PRESET = Preset(224, 256, "bilinear", IMAGENET_MEAN, IMAGENET_STD)
"""Of the teacher that the store of random logits names."""
TARGETS = {"logits": 0.8, "gather": 0.8, "gather_and_decode": 0.8, "decode_plane": 0.6, "verify": 0.8}
"""Target speed of each, as a fraction of the plain way that its ratio names first."""


def main() -> None:
    """Make what is compared, time it, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", type=Path, help="a real store, instead of one of random logits")
    parser.add_argument("--samples", type=int, default=200_000)
    parser.add_argument("--classes", type=int, default=1_000)
    parser.add_argument("--encoding", default="fp16")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--batches", type=int, default=100, help="per round, of the ways that take microseconds")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--pt-samples", type=int, default=5_000, help="samples that get a .pt file of their own")
    parser.add_argument("--work", type=Path, default=Path("benchmarks/scratch/store_read"))
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument("--only", choices=("logits",), help="print this section alone, and write no result")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    keep_memory()
    path = options.store or synthetic(options)
    store = open_store(path)
    if options.only:
        print(json.dumps(logits(store, options), indent=2))
        return
    sections = {
        "logits": logits(store, options),
        "decode_plane": decode_plane(store, options),
        "verify": verify(path, options),
        **batches(store, options),
    }
    result = {
        "command": " ".join(["python", "benchmarks/store_read.py", *shown(sys.argv[1:])]),
        "machine": machine(),
        "samples": store.num_samples,
        "classes": store.num_classes,
        "encoding": store.encoding.name,
        "plane_bytes": store.plane_bytes,
        "stored_bytes": sum(file.size for file in store.manifest.files.values()),
        "targets": TARGETS,
        **sections,
    }
    options.result.write_text(json.dumps(result, indent=2) + "\n")
    for name, section in sections.items():
        print(name, json.dumps({key: value for key, value in section.items() if key != "seconds"}))


def shown(arguments: list[str]) -> list[str]:
    """Leave the folders of this machine out of the command."""
    return [Path(argument).name if "/" in argument else argument for argument in arguments]


def synthetic(options: argparse.Namespace) -> Path:
    """Build the store of random logits, unless it is there: normal, one class in a thousand well above the rest."""
    path: Path = options.work / f"{options.encoding}-{options.samples}x{options.classes}.zarr"
    random = np.random.default_rng(0)

    def split(samples: int) -> SplitPlan:
        ids = random.integers(0, 256, (2, samples, 16), dtype=np.uint8)
        return SplitPlan(
            sample_ids=ids[0],
            content_digests=ids[1],
            labels=random.integers(0, options.classes, samples, dtype=np.int32),
            planes=1,
            probe_rows=np.zeros(1, dtype=np.int64),
            probe_hashes=np.zeros((1, 1), dtype=np.uint64),
        )

    plan = Plan(
        fingerprint=Fingerprint(
            teacher=Teacher(name="random", digest="00" * 16, preset=PRESET.describe(), parameters=0),
            dataset={"train": "00" * 16},
            recipe=Recipe(name="none", version="none/1", seed=0),
            encoding=options.encoding,
            precision="fp32",
            batch_size=options.batch_size,
            device="cpu",
        ),
        teacher_probe=(0.0,),
        dataset="random",
        classes=tuple(map(str, range(options.classes))),
        splits={"train": split(options.samples)},
    )
    with build(path, plan) as builder:
        if not builder.sealed:
            for shard in builder.shards("train", 0):
                generator = torch.Generator().manual_seed(shard.number)
                logits = torch.randn(shard.stop - shard.start, options.classes, generator=generator).mul_(2)
                logits[torch.rand(logits.shape, generator=generator) < 0.001] += 10
                builder.submit(shard, logits)
            builder.seal({})
    return path


def timed(work: Callable[[], object]) -> float:
    """Return the seconds that ``work`` takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def compared(ways: dict[str, Callable[[], float]], *, rounds: int, against: dict[str, str]) -> dict[str, Any]:
    """Time ways in turn after a warm-up; ``against`` names, for some, the plain way that they are a share of."""
    for way in ways.values():
        way()
    seconds = interleaved(ways, rounds=rounds)
    return {
        "seconds": seconds,
        "median_seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "speed_against": {f"{plain} / {name}": ratio(seconds[plain], seconds[name]) for name, plain in against.items()},
    }


def decode_plane(store: LogitStore, options: argparse.Namespace) -> dict[str, Any]:
    """Decode a plane; against writing and reading the same bytes as .npy, and against Zarr's own decoding."""
    plane = store.codes(0)
    raw, maxima = plane.codes.numpy(), plane.row_max.numpy()
    files = options.work / "codes.npy", options.work / "row_max.npy"

    def plain() -> None:
        for file, values in zip(files, (raw, maxima), strict=True):
            np.save(file, values)
        for file in files:
            np.load(file)

    def fresh() -> float:
        opened = open_store(store.path)  # its files are not yet compared with their digests
        return timed(lambda: opened.codes(0))

    def again() -> float:
        store._planes.clear()
        return timed(lambda: store.codes(0))

    def by_zarr(pipeline: str) -> float:
        with zarr.config.set({"codec_pipeline.path": pipeline}):
            array = zarr.open_array(store.path, path="train/codes", mode="r")
            return timed(lambda: array[0])

    ways: dict[str, Callable[[], float]] = {
        "npy_written_and_read": lambda: timed(plain),
        "kdpipe_with_digests": fresh,
        "kdpipe_again": again,
        "zarr": lambda: by_zarr("zarr.core.codec_pipeline.BatchedCodecPipeline"),
    }
    if importlib.util.find_spec("zarrs"):
        ways["zarrs"] = lambda: by_zarr("zarrs.ZarrsCodecPipeline")
    against = dict.fromkeys(("kdpipe_with_digests", "kdpipe_again"), "npy_written_and_read")
    found = compared(ways, rounds=options.rounds, against=against)
    for file in files:
        file.unlink()
    return found


def verify(path: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Verify a store; against reading and digesting the same files in a plain parallel loop."""

    def digest(file: Path) -> str:
        return blake3(file.read_bytes()).hexdigest(length=16)

    def plain() -> None:
        files = [file for file in path.rglob("*") if file.is_file()]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(digest, files))

    ways = {"plain_loop": lambda: timed(plain), "kdpipe_verify": lambda: timed(lambda: verify_files(path))}
    return compared(ways, rounds=options.rounds, against={"kdpipe_verify": "plain_loop"})


def logits(store: LogitStore, options: argparse.Namespace) -> dict[str, Any]:
    """Read shuffled float32 batches of the opened store in one thread; against indexing the codes as a mapped ``.npy``.

    The mapped file gives the codes as they are, float16, and its pages are in memory. The other ways are the steps of
    the store's: rows copied, converted to twice the bytes, and shifted by their maxima, each in one call.
    """
    plane, file = store.codes(0), options.work / "codes.npy"
    np.save(file, plane.codes.numpy())
    mapped: npt.NDArray[Any] = np.load(file, mmap_mode="r")
    codes, maxima = plane.codes.numpy(), plane.row_max.numpy()
    order = np.random.default_rng(2).permutation(len(codes))
    size, count = options.batch_size, options.batches
    chosen = [order[start : start + size] for start in range(0, min(len(order), count * size), size)]

    def over(read: Callable[[npt.NDArray[np.int64]], object]) -> Callable[[], float]:
        def seconds() -> float:
            began = time.process_time()
            for rows in chosen:
                read(rows)
            return (time.process_time() - began) / len(chosen)

        return seconds

    def converted(rows: npt.NDArray[np.int64]) -> torch.Tensor:
        return torch.from_numpy(codes.take(rows, axis=0)).float()

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    ways = {
        "npy_mapped": over(lambda rows: mapped[rows]),
        "npy_mapped_to_float32": over(lambda rows: mapped[rows].astype(np.float32)),
        "step_copied": over(lambda rows: codes.take(rows, axis=0)),
        "step_converted": over(converted),
        "step_shifted": over(lambda rows: converted(rows).add_(torch.from_numpy(maxima.take(rows)[:, None]))),
        "kdpipe_logits": over(store.logits),
    }
    against = dict.fromkeys(("kdpipe_logits", "step_shifted", "step_converted", "step_copied"), "npy_mapped")
    found = compared(ways, rounds=options.rounds, against=against)
    file.unlink()
    torch.set_num_threads(threads)
    return found


def batches(store: LogitStore, options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Read shuffled batches: from a plane, from one array in memory, from windows, and as others keep them."""
    plane = store.codes(0)
    raw = plane.codes.numpy().copy()
    order = np.random.default_rng(1).permutation(len(raw))
    chosen = [order[start : start + options.batch_size] for start in range(0, len(order), options.batch_size)]
    tensors = [torch.from_numpy(rows) for rows in chosen]

    def over(read: Callable[[Any], object], these: list[Any], count: int) -> Callable[[], float]:
        """Return seconds per batch of the first ``count``."""
        return lambda: timed(lambda: [read(rows) for rows in these[:count]]) / len(these[:count])

    count = options.batches
    gather = compared(
        {
            "numpy_take": over(lambda rows: np.take(raw, rows, axis=0), chosen, count),
            "kdpipe_plane": over(plane.take, tensors, count),
        },
        rounds=options.rounds,
        against={"kdpipe_plane": "numpy_take"},
    )
    decoded = compared(
        {
            "numpy_take_to_float32": over(lambda rows: np.take(raw, rows, axis=0).astype(np.float32), chosen, count),
            "kdpipe_logits": over(plane.logits, tensors, count),
        },
        rounds=options.rounds,
        against={"kdpipe_logits": "numpy_take_to_float32"},
    )
    ways = {"kdpipe_plane": over(plane.take, tensors, count), "kdpipe_windows": lambda: in_windows(store, options)}
    zarr_codes = zarr.open_array(store.path, path="train/codes", mode="r")
    ways["zarr_oindex"] = over(lambda rows: zarr_codes.oindex[0, np.sort(rows)], chosen, 1)
    folder = options.work / "peers"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    from peers import PEERS  # they need the extra ``bench``

    for name, make in PEERS.items():
        kept = raw[: options.pt_samples] if name == "pt_files" else raw
        read = make(folder, kept)
        mine = [rows % len(kept) for rows in chosen]
        assert np.array_equal(np.asarray(read(mine[0])), kept[mine[0]]), name
        ways[name] = over(read, mine, max(1, count // 10))
    peers = compared(ways, rounds=options.rounds, against={})
    shutil.rmtree(folder)
    return {"gather": gather, "gather_and_decode": decoded, "peers_seconds_per_batch": peers}


def in_windows(store: LogitStore, options: argparse.Namespace) -> float:
    """Return seconds per batch of an epoch in windows, half of whose planes' memory is allowed."""
    tight = open_store(store.path, memory_limit=max(store.plane_bytes // 2, 2 * store.chunk_rows * store.row_bytes))
    rows: npt.NDArray[np.int64] = np.arange(store.num_samples)
    parts = windows(tight, rows, data_seed=0, epoch=0)
    order = np.concatenate(parts)
    pool = Pool(tight, rows, parts, view=0)
    starts = range(0, len(order), options.batch_size)
    return timed(lambda: [pool.logits(order[start : start + options.batch_size]) for start in starts]) / len(starts)


if __name__ == "__main__":
    main()

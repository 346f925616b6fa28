"""Times to the first batch of the same JPEG files in every form that datasets come in, and of reading them shuffled.

    python benchmarks/data_formats.py --data PATH/cifar10

Takes ``--images`` training images of a folder of classes, and writes them as a folder, tar archives of 1,000 samples
(WebDataset), Parquet files with row groups of 1,000 rows, a dataset of Hugging Face (``save_to_disk``) and arrays
(``.npz``, which hold pixels). Each time is that of a new process from the call of ``load``, with its libraries
imported except those that a form needs itself, to the first batch of 128 images: "cold" with an empty cache of
kdpipe, "warm" with what the cold one left in it. The files are in the system's page cache. "Streamed" images are
decoded when they are asked for (``loading="stream"``), after each was read, digested and tried once; those "in memory"
are all decoded before. "Shuffled" is the rate at which one process reads and decodes streamed images at random.
Writes benchmarks/results/data_formats.json.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from timing import machine

RESULT = Path(__file__).parent / "results" / "data_formats.json"
BATCH = 128
SHARD = 1000
Sample = tuple[str, str, Path]
"""Name, class and file of an image."""


def main() -> None:
    """Write the forms, and time each in turn."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with train/CLASS/*.jpg")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--time", nargs=2, metavar=("SPEC", "LOADING"), help="print the times of one form and end")
    options = parser.parse_args()
    if options.time:
        print(json.dumps(timed(*options.time)))
        return
    with tempfile.TemporaryDirectory() as place:
        forms = written(chosen(options.data, options.images), Path(place))
        time.sleep(3)  # what was written within two seconds is not remembered
        result = {
            "command": f"python benchmarks/data_formats.py --data CIFAR10 --images {options.images} "
            f"--rounds {options.rounds}",
            "machine": machine(),
            "images": options.images,
            "batch": BATCH,
            "forms": measured(forms, Path(place), rounds=options.rounds),
        }
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


def timed(spec: str, loading: str) -> dict[str, float]:
    """Return the seconds to the first batch, and images read a second in random order, in this process."""
    from kdpipe.dataset import load

    began = time.perf_counter()
    data = load(spec, "train", loading=loading)  # type: ignore[arg-type]
    order = np.random.default_rng(0).permutation(len(data))
    data.images(order[:BATCH])
    first = time.perf_counter() - began
    began = time.perf_counter()
    some = order[BATCH : BATCH + 2000]
    data.images(some)
    return {"first_batch": first, "shuffled_per_second": len(some) / (time.perf_counter() - began)}


def measured(forms: dict[str, tuple[str, int]], place: Path, *, rounds: int) -> dict[str, dict[str, float]]:
    """Return the median times of each form, in rounds over all of them."""
    found: dict[str, dict[str, list[float]]] = {name: {} for name in forms}
    for number in range(rounds):
        for name, (spec, _) in forms.items():
            for loading in ("stream", "memory"):
                cache = place / "cache"
                shutil.rmtree(cache, ignore_errors=True)
                for state in ("cold", "warm"):
                    times = in_a_process(spec, loading, cache)
                    found[name].setdefault(f"{loading}_{state}", []).append(times["first_batch"])
                    if (loading, state) == ("stream", "warm"):
                        found[name].setdefault("shuffled_per_second", []).append(times["shuffled_per_second"])
        print(f"round {number + 1}/{rounds}", flush=True)
    return {
        name: {"bytes": forms[name][1]} | {key: statistics.median(values) for key, values in times.items()}
        for name, times in found.items()
    }


def in_a_process(spec: str, loading: str, cache: Path) -> dict[str, float]:
    """Return what ``timed`` does, in a new process with this cache."""
    command = [sys.executable, __file__, "--time", spec, loading]
    environment = os.environ | {"KDPIPE_CACHE": str(cache)}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    times: dict[str, float] = json.loads(ran.stdout)
    return times


def chosen(root: Path, count: int) -> list[Sample]:
    """Return as many images of each class, in the order of their classes."""
    folders = sorted(folder for folder in (root / "train").iterdir() if folder.is_dir())
    found = [
        (f"{folder.name}/{file.stem}", folder.name, file)
        for folder in folders
        for file in sorted(folder.iterdir())[: count // len(folders)]
    ]
    if len(found) != count:
        raise SystemExit(f"{root} has {len(found)} such images, expected {count}")
    return found


def written(samples: list[Sample], place: Path) -> dict[str, tuple[str, int]]:
    """Write every form; return its spec and its bytes."""
    writers: dict[str, Callable[[list[Sample], Path], str]] = {
        "folder": as_folder,
        "webdataset": as_tars,
        "parquet": as_parquet,
        "hf": as_arrow,
        "npz": as_arrays,
    }
    found = {}
    for name, write in writers.items():
        (place / name).mkdir()
        spec = write(samples, place / name)
        found[name] = spec, sum(file.stat().st_size for file in (place / name).rglob("*") if file.is_file())
    return found


def as_folder(samples: list[Sample], out: Path) -> str:
    """Copy the files."""
    for name, _, file in samples:
        target = out / "train" / f"{name}{file.suffix}"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    return f"folder:{out}"


def as_tars(samples: list[Sample], out: Path) -> str:
    """Write archives with ``NAME.jpg`` and ``NAME.cls``."""
    for shard in range(0, len(samples), SHARD):
        with tarfile.open(out / f"train-{shard // SHARD:06}.tar", "w") as archive:
            for name, label, file in samples[shard : shard + SHARD]:
                for member, content in ((f"{name}{file.suffix}", file.read_bytes()), (f"{name}.cls", label.encode())):
                    info = tarfile.TarInfo(member)
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
    return f"webdataset:{out}/*.tar"


def as_parquet(samples: list[Sample], out: Path) -> str:
    """Write one file with the columns ``image`` and ``label``."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    images = [{"bytes": file.read_bytes(), "path": file.name} for _, _, file in samples]
    table = pa.table({"image": images, "label": [label for _, label, _ in samples]})
    pq.write_table(table, out / "train.parquet", row_group_size=SHARD)
    return f"parquet:{out}/*.parquet"


def as_arrow(samples: list[Sample], out: Path) -> str:
    """Write a folder of ``save_to_disk``."""
    import datasets

    datasets.disable_progress_bars()
    classes = sorted({label for _, label, _ in samples})
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=classes)})
    images = [{"bytes": file.read_bytes(), "path": file.name} for _, _, file in samples]
    labels = [classes.index(label) for _, label, _ in samples]
    data = datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)
    datasets.DatasetDict({"train": data}).save_to_disk(out / "images")
    return f"hf:{out / 'images'}"


def as_arrays(samples: list[Sample], out: Path) -> str:
    """Write the decoded images."""
    from PIL import Image

    classes = sorted({label for _, label, _ in samples})
    pixels = np.stack([np.asarray(Image.open(file).convert("RGB")) for _, _, file in samples])
    labels = np.array([classes.index(label) for _, label, _ in samples])
    np.savez(out / "images.npz", train_images=pixels, train_labels=labels, classes=np.array(classes))
    return f"npz:{out / 'images.npz'}"


if __name__ == "__main__":
    main()

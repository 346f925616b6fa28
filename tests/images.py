"""The images of a folder of classes, written in every other form that datasets come in."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SPLITS = ("train", "test")


def samples(root: Path, split: str) -> Iterator[tuple[str, str, Path]]:
    """Yield name, class and file of each image of a folder, in the order of ``folder:``."""
    for folder in sorted((root / split).iterdir()):
        for file in sorted(folder.iterdir()):
            yield f"{folder.name}/{file.stem}", folder.name, file


def write_tars(root: Path, out: Path, *, shards: int = 1) -> str:
    """Write ``SPLIT-000000.tar`` with ``NAME.png`` and ``NAME.cls`` (the class's name), and return the spec."""
    out.mkdir()
    for split in SPLITS:
        found = list(samples(root, split))
        for shard, rows in enumerate(np.array_split(np.arange(len(found)), shards)):
            with tarfile.open(out / f"{split}-{shard:06}.tar", "w") as archive:
                for name, label, file in (found[row] for row in rows):
                    add_member(archive, name + file.suffix, file.read_bytes())
                    add_member(archive, f"{name}.cls", label.encode())
    return f"webdataset:{out}/*.tar"


def add_member(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))


def rows(root: Path, split: str) -> Mapping[str, list[Any]]:
    """Return columns as Hugging Face ``datasets`` keeps them."""
    found = list(samples(root, split))
    names = sorted({label for _, label, _ in found})
    return {
        "image": [{"bytes": file.read_bytes(), "path": file.name} for _, _, file in found],
        "label": [names.index(label) for _, label, _ in found],
        "name": [name for name, _, _ in found],
    }


def write_parquet(root: Path, out: Path, *, group: int = 4) -> str:
    """Write ``SPLIT.parquet`` with image, label (class names as text) and name, and return the spec."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    out.mkdir()
    for split in SPLITS:
        names = [label for _, label, _ in samples(root, split)]
        pq.write_table(pa.table({**rows(root, split), "label": names}), out / f"{split}.parquet", row_group_size=group)
    return f"parquet:{out}/*.parquet,label=label"


def write_hf(root: Path, out: Path) -> str:
    """Write a folder of ``save_to_disk``, and return the spec."""
    import datasets

    names = sorted(folder.name for folder in (root / "train").iterdir())
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=names), "name": datasets.Value("string")}
    )
    datasets.disable_progress_bars()
    splits = {split: datasets.Dataset.from_dict(dict(rows(root, split)), features=features) for split in SPLITS}
    datasets.DatasetDict(splits).save_to_disk(out)
    return f"hf:{out}"


def write_arrays(root: Path, out: Path) -> str:
    """Write ``out/images.npz``, and return the spec; images must have one size."""
    out.mkdir()
    names = sorted(folder.name for folder in (root / "train").iterdir())
    arrays: dict[str, Any] = {"classes": np.array(names)}
    for split in SPLITS:
        found = list(samples(root, split))
        arrays[f"{split}_images"] = np.stack([np.asarray(Image.open(file).convert("RGB")) for _, _, file in found])
        arrays[f"{split}_labels"] = np.array([names.index(label) for _, label, _ in found])
    np.savez(out / "images.npz", **arrays)
    return f"npz:{out}/images.npz"


WRITERS: dict[str, Callable[[Path, Path], str]] = {
    "webdataset": write_tars,
    "parquet": write_parquet,
    "hf": write_hf,
    "npz": write_arrays,
}

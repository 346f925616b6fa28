"""Class names of datasets in tables, archives and arrays: that an index or a name is the same class everywhere."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kdpipe.dataset import load
from kdpipe.errors import DatasetError
from tests.images import add_member
from tests.unit.dataset.conftest import picture


def png(seed: int) -> bytes:
    out = io.BytesIO()
    picture(seed).save(out, "PNG")
    return out.getvalue()


def labeled(path: Path, names: Sequence[str] | None, labels: Sequence[int]) -> None:
    """Write a table whose labels are a ``ClassLabel`` with names, or plain numbers."""
    found = pa.table({"image": [png(len(path.name) + label) for label in labels], "label": list(labels)})
    if names is not None:
        features = {"label": {"_type": "ClassLabel", "names": list(names)}}
        found = found.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(found, path)


def archive(path: Path, labels: Sequence[str]) -> None:
    with tarfile.open(path, "w") as opened:
        for place, label in enumerate(labels):
            add_member(opened, f"{place}.png", png(place))
            add_member(opened, f"{place}.cls", label.encode())


def test_tables_whose_indices_are_of_other_names_are_refused(tmp_path: Path) -> None:
    labeled(tmp_path / "train-0.parquet", ["ant", "bee"], [0, 1])
    labeled(tmp_path / "test.parquet", ["ant", "bee"], [1])
    assert load(f"parquet:{tmp_path}/*.parquet", "test").classes == ("ant", "bee")
    labeled(tmp_path / "train-1.parquet", ["bee", "ant"], [0, 1])
    with pytest.raises(DatasetError, match=r"train-1.parquet than in .*train-0.parquet \(bee, ant against ant, bee\)"):
        load(f"parquet:{tmp_path}/*.parquet", "train")
    labeled(tmp_path / "train-1.parquet", None, [0, 1])
    with pytest.raises(DatasetError, match=r"\(no names against ant, bee\)"):
        load(f"parquet:{tmp_path}/*.parquet", "train")
    (tmp_path / "names.txt").write_text("ant\nbee\n")
    assert len(load(f"parquet:{tmp_path}/*.parquet,classes={tmp_path}/names.txt", "train")) == 4
    labeled(tmp_path / "test.parquet", ["bee", "ant"], [1])
    with pytest.raises(DatasetError, match=r"train-0.parquet than in .*test.parquet"):
        load(f"parquet:{tmp_path}/*.parquet", "test")


def test_splits_of_hugging_face_with_other_names_are_refused(tmp_path: Path) -> None:
    def split(*names: str) -> datasets.Dataset:
        features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=list(names)))
        images = [{"bytes": png(seed), "path": None} for seed in range(2)]
        return datasets.Dataset.from_dict({"image": images, "label": [0, 1]}, features=features)

    datasets.DatasetDict(train=split("ant", "bee"), test=split("bee", "ant")).save_to_disk(str(tmp_path / "h"))
    assert load(f"hf:{tmp_path}/h", "train").classes == ("ant", "bee")
    with pytest.raises(DatasetError, match=r"'label' has other classes in .*train.* than in .*test"):
        load(f"hf:{tmp_path}/h", "test")


def test_files_of_arrays_with_other_names_are_refused(tmp_path: Path) -> None:
    images, labels = np.zeros((2, 4, 4), np.uint8), np.arange(2)
    np.savez(tmp_path / "train.npz", images=images, labels=labels, classes=["ant", "bee"])
    np.savez(tmp_path / "test.npz", images=images, labels=labels)
    assert load(f"npz:{tmp_path}", "test").classes == ("ant", "bee")
    np.savez(tmp_path / "test.npz", images=images, labels=labels, classes=["bee", "ant"])
    with pytest.raises(DatasetError, match=r"test.npz and .*train.npz have other 'classes'"):
        load(f"npz:{tmp_path}", "test")


def test_numbers_are_names_where_training_has_other_names_too(tmp_path: Path) -> None:
    archive(tmp_path / "train.tar", ["1", "2", "cat"])
    archive(tmp_path / "test.tar", ["1", "2"])
    found = load(f"webdataset:{tmp_path}/*.tar", "test")
    assert [found.classes[label] for label in found.labels] == ["1", "2"]


def test_indices_are_refused_where_training_has_names(tmp_path: Path) -> None:
    for split, labels in (("train", ["ant", "bee"]), ("test", [0, 1])):
        pq.write_table(pa.table({"image": [png(0), png(1)], "label": labels}), tmp_path / f"{split}.parquet")
        np.savez(tmp_path / f"{split}.npz", images=np.zeros((2, 4, 4), np.uint8), labels=labels)
        with tarfile.open(tmp_path / f"{split}.tar", "w") as opened:
            for place, label in enumerate(labels):
                add_member(opened, f"{place}.png", png(place))
                add_member(opened, f"{place}.json", json.dumps({"label": label}).encode())
    for spec in (f"parquet:{tmp_path}/*.parquet", f"npz:{tmp_path}", f"webdataset:{tmp_path}/*.tar"):
        assert load(spec, "train").classes == ("ant", "bee")
        with pytest.raises(DatasetError, match="has class indices, the labels of training are class names"):
            load(spec, "test")


def test_a_file_of_names_may_begin_with_a_mark_of_utf8(tmp_path: Path) -> None:
    archive(tmp_path / "train.tar", ["0", "1"])
    (tmp_path / "names.txt").write_text("ant\nbee\n", encoding="utf-8-sig")
    assert load(f"webdataset:{tmp_path}/train.tar,classes={tmp_path}/names.txt", "train").classes == ("ant", "bee")

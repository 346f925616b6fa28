"""Images in tar archives and in tables: names, labels, splits, what is refused, and files of strangers."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kdpipe.dataset import Request, load
from kdpipe.dataset.arrow import PARQUET, RowGroups
from kdpipe.dataset.kinds.parquet import list_parquet
from kdpipe.errors import DatasetError, MissingSplitError
from tests.images import add_member, write_hf, write_parquet, write_tars
from tests.unit.dataset.conftest import MakeFolder, Recorder, picture


def png(seed: int = 0) -> bytes:
    out = io.BytesIO()
    picture(seed).save(out, "PNG")
    return out.getvalue()


def archive(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as opened:
        for name, content in members.items():
            add_member(opened, name, content)
    return path


def table(path: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def test_labels_of_archives_are_numbers_names_or_fields_of_json(tmp_path: Path) -> None:
    archive(
        tmp_path / "n-train.tar", {"a.png": png(1), "a.cls": b"2\n", "b.png": png(2), "b.cls": b"0", "c.png": png(3)}
    )
    found = load(f"webdataset:{tmp_path}/n-*.tar", "train")
    assert found.classes == ("0", "1", "2")
    assert found.keys == ("train/a", "train/b", "train/c")
    assert found.labels.tolist() == [2, 0, -1]
    archive(
        tmp_path / "j-train.tar",
        {
            "a.PNG": png(1),
            "a.json": b'{"label": "dog", "age": 3}',
            "b.png": png(2),
            "b.json": b'{"label": "cat", "age": 4}',
        },
    )
    assert load(f"webdataset:{tmp_path}/j-*.tar", "train").labels.tolist() == [1, 0]
    by_age = load(f"webdataset:{tmp_path}/j-*.tar,label=json.age", "train")
    assert (by_age.classes, by_age.labels.tolist()) == (("0", "1", "2", "3", "4"), [3, 4])


def test_class_names_come_from_a_file(tmp_path: Path) -> None:
    archive(tmp_path / "train.tar", {"a.png": png(1), "a.cls": b"1"})
    (tmp_path / "names.txt").write_text("ant\nbee\n")
    assert load(f"webdataset:{tmp_path}/train.tar,classes={tmp_path}/names.txt", "train").classes == ("ant", "bee")


@pytest.mark.parametrize("pattern", ["*.tar", "{split}-*.tar", "{split}-{000000..000001}.tar", "t*-00000?.tar"])
def test_numbered_files_are_assigned_to_splits_by_their_names(
    tmp_path: Path, make_folder: MakeFolder, pattern: str
) -> None:
    write_tars(make_folder(), tmp_path / "shards", shards=2)
    train, test = (load(f"webdataset:{tmp_path}/shards/{pattern}", split) for split in ("train", "test"))
    assert train.keys == tuple(f"train/{name}/{index}" for name in ("ant", "bee") for index in range(3))
    assert len(test) == 6


def test_a_folder_can_name_the_split_and_val_stands_for_test(tmp_path: Path) -> None:
    for folder in ("training", "val"):
        (tmp_path / folder).mkdir()
        archive(tmp_path / folder / "0.tar", {"a.png": png(len(folder)), "a.cls": b"0"})
    assert load(f"webdataset:{tmp_path}/*/*.tar", "test").image(0).shape == (3, 12, 10)
    (tmp_path / "0.tar").write_bytes((tmp_path / "val/0.tar").read_bytes())
    with pytest.raises(DatasetError, match=r"0\.tar' does not tell its split: expected 'train' or 'test' in its path"):
        load(f"webdataset:{tmp_path}/*.tar", "train")
    with pytest.raises(DatasetError, match="no file matches"):
        load(f"webdataset:{tmp_path}/*.tgz", "train")


def test_names_that_several_archives_use_have_the_archive_in_front(tmp_path: Path) -> None:
    for shard in (0, 1):
        archive(tmp_path / f"train-{shard}.tar", {"x.png": png(shard), "x.cls": b"0"})
    assert load(f"webdataset:{tmp_path}/*.tar", "train").keys == ("train/train-0/x", "train/train-1/x")


def test_an_index_is_made_once(tmp_path: Path, make_folder: MakeFolder, settled: None, cache: Path) -> None:
    spec = write_tars(make_folder(), tmp_path / "shards")
    first = load(spec, "train")
    assert len(list((cache / "indexes").iterdir())) == 1
    made = {path: path.stat().st_ino for path in (cache / "indexes").iterdir()}
    recorder = Recorder()
    assert load(spec, "train", progress=recorder).fingerprint == first.fingerprint
    assert {path: path.stat().st_ino for path in (cache / "indexes").iterdir()} == made
    assert recorder.done["checking train"] == 6
    for path in (cache / "indexes").iterdir():
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert load(spec, "train").fingerprint == first.fingerprint


def test_a_changed_archive_is_read_again_and_noticed_by_who_has_it_open(
    tmp_path: Path, make_folder: MakeFolder, settled: None
) -> None:
    root = make_folder()
    spec = write_tars(root, tmp_path / "shards")
    opened = load(spec, "train", loading="stream")
    opened.image(0)
    picture(77).save(root / "train/ant/0.png")
    (tmp_path / "shards/train-000000.tar").unlink()
    (tmp_path / "shards/test-000000.tar").unlink()
    (tmp_path / "shards").rmdir()
    write_tars(root, tmp_path / "shards")
    with pytest.raises(DatasetError, match="changed after the dataset was loaded"):
        opened.image(0)
    again = load(spec, "train")
    assert (again.content_digests != opened.content_digests).any(axis=1).tolist() == [True] + [False] * 5


@pytest.mark.parametrize(
    ("members", "options", "reason"),
    [
        ({"a.cls": b"0"}, "", "has the members .cls; expected one image"),
        ({"a.png": png(), "a.seg.png": png()}, "", r"\.seg\.png; choose one with ,image=EXTENSION"),
        ({"a.png": png(), "a.json": b'{"label": [1, 2]}'}, "", r"is \[1, 2\]; kdpipe trains classifiers"),
        ({"a.png": png(), "a.json": b'{"label": 0.5}'}, "", "is 0.5; kdpipe trains classifiers"),
        ({"a.png": png(), "a.json": b'{"x": 0.5}'}, ",label=json.y", "has no field 'y'"),
        ({"a.png": png(), "a.json": b"{" * 99}, "", "nested deeper"),
        ({"a.png": png(), "a.cls": b"\xff"}, "", "is not text in UTF-8"),
        ({"a.png": png(), "a.cls": b"0"}, ",label=txt", r"no member \.txt"),
        ({"a.png": png(), "a.cls": b"99999999"}, "", "expected class indices below"),
        ({"a.png": png(), "a.cls": bytes(2**20 + 1)}, "", "expected at most 1,048,576 for a label"),
        ({"a.png": png()}, "", "has no labels"),
    ],
)
def test_unfit_samples_are_refused(tmp_path: Path, members: dict[str, bytes], options: str, reason: str) -> None:
    archive(tmp_path / "train.tar", members)
    with pytest.raises(DatasetError, match=reason):
        load(f"webdataset:{tmp_path}/train.tar{options}", "train")
    chosen = {"a.png": png(1), "a.seg.png": png(2), "a.cls": b"0"}
    archive(tmp_path / "train.tar", chosen)
    both = [load(f"webdataset:{tmp_path}/train.tar,image={ending}", "train").image(0) for ending in ("png", "seg.png")]
    assert not np.array_equal(*both)


def test_names_of_members_are_only_names(tmp_path: Path) -> None:
    """Absolute names and those with .. are read where they lie, like any other."""
    archive(tmp_path / "train.tar", {"/etc/a.png": png(1), "/etc/a.cls": b"0", "../b.png": png(2), "../b.cls": b"1"})
    assert load(f"webdataset:{tmp_path}/train.tar", "train").keys == ("train/etc/a", "train/b")
    with tarfile.open(tmp_path / "test.tar", "w") as opened:
        link = tarfile.TarInfo("a.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        opened.addfile(link)
    with pytest.raises(DatasetError, match="is a link or a special file"):
        load(f"webdataset:{tmp_path}/{{split}}.tar", "test")


def test_hidden_members_of_an_archive_are_no_samples(tmp_path: Path) -> None:
    """As those that the tar of macOS adds, beside the others and at the top."""
    members = {"./._a.png": b"\0\5\x16\7", "./a.png": png(1), "./a.cls": b"0", ".DS_Store": b"x", "b/._c.png": b"x"}
    archive(tmp_path / "train.tar", members)
    assert load(f"webdataset:{tmp_path}/train.tar", "train").keys == ("train/a",)


def huge(path: Path, *, kind: bytes, size: int) -> Path:
    """Write an archive whose first member claims to have ``size`` bytes."""
    member = tarfile.TarInfo("a.png")
    member.type, member.size = kind, size
    path.write_bytes(member.tobuf(tarfile.GNU_FORMAT) + bytes(4096))
    return path


def test_archives_that_claim_too_much_or_end_early_are_refused(tmp_path: Path) -> None:
    whole = archive(
        tmp_path / "whole.tar", {"a.png": png(1), "a.cls": b"0", "b.png": png(2), "b.cls": b"0"}
    ).read_bytes()
    path = tmp_path / "train.tar"
    with path.open("wb") as sparse:
        sparse.write(huge(tmp_path / "h", kind=tarfile.XHDTYPE, size=2**31).read_bytes())
        sparse.truncate(2**31 + 8192)
    with pytest.raises(DatasetError, match="header of 2,147,483,648 bytes"):
        load(f"webdataset:{path}", "train")
    for kind, size in ((tarfile.REGTYPE, 2**40), (tarfile.REGTYPE, 2**70), (tarfile.GNUTYPE_LONGNAME, 2**40)):
        huge(path, kind=kind, size=size)
        with pytest.raises(DatasetError, match="is damaged, or no tar archive"):
            load(f"webdataset:{path}", "train")
    for length in (0, 100, 700, 512 * 5 + 3, len(whole) - 10240 + 512 * 6):
        path.write_bytes(whole[:length])
        with pytest.raises(DatasetError, match=r"is damaged, or no tar archive|ends early"):
            load(f"webdataset:{path}", "train")
    path.write_bytes(b"\x1f\x8b" + bytes(600))
    with pytest.raises(DatasetError, match=r"is compressed, .* run: gunzip"):
        load(f"webdataset:{path}", "train")
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DatasetError, match="not a regular file"):
        load(f"webdataset:{path}", "train")


def test_columns_are_found_by_type_and_by_name(tmp_path: Path) -> None:
    images = [png(1), png(2)]
    table(tmp_path / "train.parquet", picture=images, kind=["b", "a"])
    found = load(f"parquet:{tmp_path}/train.parquet", "train")
    assert (found.classes, found.labels.tolist()) == (("a", "b"), [1, 0])
    table(tmp_path / "train.parquet", picture=images, thumb=images, fine=[1, 0], coarse=[0, 0], id=[7, 8])
    with pytest.raises(
        DatasetError, match="several columns of images, 'picture', 'thumb'; choose one with ,image=NAME"
    ):
        load(f"parquet:{tmp_path}/train.parquet", "train")
    with pytest.raises(DatasetError, match="several columns of labels, 'fine', 'coarse'; choose one with ,label=NAME"):
        load(f"parquet:{tmp_path}/train.parquet,image=thumb,key=id", "train")
    with pytest.raises(DatasetError, match=r"no column 'thum', found .*; did you mean 'thumb'"):
        load(f"parquet:{tmp_path}/train.parquet,image=thum", "train")
    chosen = load(f"parquet:{tmp_path}/train.parquet,image=thumb,label=fine,key=id", "train")
    assert chosen.keys == ("train/7", "train/8")
    assert chosen.labels.tolist() == [1, 0]


def test_equal_images_are_numbered(tmp_path: Path) -> None:
    table(tmp_path / "train.parquet", image=[png(1), png(2), png(1)], label=[0, 1, None])
    found = load(f"parquet:{tmp_path}/train.parquet", "train")
    digests = [bytes(digest).hex() for digest in found.content_digests]
    assert found.keys == (f"train/{digests[0]}", f"train/{digests[1]}", f"train/{digests[0]}-2")
    assert found.labels.tolist() == [0, 1, -1]


@pytest.mark.parametrize(
    ("label", "reason"),
    [
        (pa.array([[0, 1], [1]]), r"several labels for each image\)?; kdpipe trains classifiers"),
        (pa.array([0.5, 1.5]), r"a number to be predicted\)?; kdpipe trains classifiers"),
        (pa.array([{"bbox": [1, 2], "category": 1}] * 2), r"objects in images\)?; kdpipe trains classifiers"),
        (pa.array([True, False]), r"no class\)?; kdpipe trains classifiers"),
        (pa.array([-5, 0]), "has the label -5"),
    ],
)
def test_other_tasks_are_refused_in_a_line(tmp_path: Path, label: Any, reason: str) -> None:
    for options in ("", ",label=wanted"):
        table(tmp_path / "train.parquet", image=[png(1), png(2)], wanted=label)
        with pytest.raises(DatasetError, match=reason) as refused:
            load(f"parquet:{tmp_path}/train.parquet{options}", "train")
        assert "\n" not in str(refused.value)


def test_a_test_label_that_training_lacks_is_refused(tmp_path: Path) -> None:
    table(tmp_path / "train.parquet", image=[png(1), png(2)], label=["ant", "bee"])
    table(tmp_path / "test.parquet", image=[png(3)], label=["fly"])
    with pytest.raises(DatasetError, match="the label 'fly', which is none of the 2 classes of training"):
        load(f"parquet:{tmp_path}/*.parquet", "test")


def test_damaged_tables_are_refused(tmp_path: Path, make_folder: MakeFolder) -> None:
    root = make_folder()
    write_parquet(root, tmp_path / "p")
    path = tmp_path / "p/train.parquet"
    whole = path.read_bytes()
    middle = len(whole) // 3
    for content in (b"", whole[:100], whole[:-8], whole[:middle] + bytes(200) + whole[middle + 200 :]):
        path.write_bytes(content)
        with pytest.raises(DatasetError) as refused:
            load(f"parquet:{tmp_path}/p/*.parquet", "train")
        assert "\n" not in str(refused.value)
    write_hf(root, tmp_path / "h")
    (path,) = (tmp_path / "h/train").glob("*.arrow")
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(DatasetError):
        load(f"hf:{tmp_path}/h", "train")


def test_a_few_bytes_that_stand_for_many_images_are_refused(tmp_path: Path) -> None:
    """A value that many rows repeat is stored once."""
    images = pa.array([bytes(2**16)] * 3000, pa.binary())
    path = table(tmp_path / "train.parquet", image=images, label=np.zeros(3000, np.int64))
    assert path.stat().st_size < 2**18
    with pytest.raises(DatasetError, match="its row group has more than 16,777,216 bytes"):
        RowGroups("image", path, most=2**24).content(0, 0)
    assert RowGroups("image", path).content(2999, 0) == bytes(2**16)


@pytest.mark.parametrize("dictionary", [False, True])
def test_a_few_bytes_that_stand_for_many_labels_are_refused(tmp_path: Path, dictionary: bool) -> None:
    names = pa.array(["x" * 2**16] * 3000)
    path = table(tmp_path / "train.parquet", label=names.dictionary_encode() if dictionary else names)
    assert path.stat().st_size < 2**18
    with pytest.raises(DatasetError) as refused:
        PARQUET.columns(path, ["label"], most=2**24)
    assert str(refused.value) == (
        f"'label' of {path} takes more than the 16,777,216 bytes that are left of 2,147,483,648 for a column of labels "
        "or names in all files of a split; check that it is the right column, or split the dataset"
    )


def test_columns_of_many_rows_and_groups_are_read_whole(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    numbers, texts = draw.integers(-1, 9, 200_000), [None, *(f"name {number}" for number in range(999))]
    path = tmp_path / "train.parquet"
    pq.write_table(pa.table({"number": numbers}), path, row_group_size=70_000)
    assert PARQUET.columns(path, ["number"], most=2**21).column(0).to_pylist() == numbers.tolist()
    with pytest.raises(DatasetError, match="takes more than the 1,500,000 bytes"):
        PARQUET.columns(path, ["number"], most=1_500_000)
    for column in (pa.array(texts), pa.array(texts).dictionary_encode()):
        pq.write_table(pa.table({"text": column}), path, row_group_size=300)
        assert PARQUET.columns(path, ["text"]).column(0).to_pylist() == texts
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), path)
    assert PARQUET.columns(path, ["text"]).column(0).to_pylist() == []


def test_a_file_that_lacks_a_column_of_the_others_is_refused(tmp_path: Path) -> None:
    table(tmp_path / "train-0.parquet", image=[png(1)], label=["ant"])
    table(tmp_path / "train-1.parquet", image=[png(2)], name=["bee"])
    with pytest.raises(DatasetError, match=r"train-1.parquet has no column 'label'"):
        load(f"parquet:{tmp_path}/train-*.parquet", "train")


def test_a_warning_tells_that_shuffled_reads_take_large_row_groups(tmp_path: Path) -> None:
    schema = pa.schema({"image": pa.binary(), "label": pa.int64(), "id": pa.int64()})
    for name, megabytes, count in (("large", 40, 26), ("few", 40, 2)):
        (tmp_path / name).mkdir()
        content = bytes(megabytes * 10**6)
        path, plain = tmp_path / name / "train.parquet", {"use_dictionary": False, "write_statistics": False}
        with pq.ParquetWriter(path, schema, **plain) as writer:
            for number in range(count):
                writer.write_table(pa.table({"image": [content], "label": [0], "id": [number]}, schema=schema))
    large, few = (
        list_parquet(Request("train"), f"{tmp_path}/{name}/*.parquet,label=label,key=id").notes
        for name in ("large", "few")
    )
    assert "is read with its row group, up to 40 MB" in large[0]
    assert few == ()


def test_rows_without_an_image_are_named(tmp_path: Path) -> None:
    images = pa.array([{"bytes": png(1), "path": "a"}, {"bytes": None, "path": "/etc/hostname"}, None])
    table(tmp_path / "train.parquet", image=images, label=[0, 0, 0])
    with pytest.raises(DatasetError, match="row 1 has no encoded image, or only the name of its file"):
        load(f"parquet:{tmp_path}/train.parquet", "train")
    assert len(load(f"parquet:{tmp_path}/train.parquet", "train", skip_broken=True)) == 1


class _Runs:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("it-ran"),)


def test_pickled_types_of_columns_are_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Old files can name a type whose description is a pickle."""
    monkeypatch.chdir(tmp_path)
    named = {"ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": pickle.dumps(_Runs())}
    fields = [pa.field("image", pa.binary(), metadata=named), pa.field("label", pa.int64())]
    pq.write_table(pa.table([[png(1)], [0]], schema=pa.schema(fields)), tmp_path / "train.parquet")
    with contextlib.suppress(DatasetError, RuntimeWarning):
        assert load("parquet:train.parquet", "train").image(0).shape == (3, 12, 10)
    assert not (tmp_path / "it-ran").exists()


def test_extension_types_are_refused(tmp_path: Path) -> None:
    import datasets

    kind = datasets.features.features.Array2DExtensionType((2, 2), "uint8")
    label = pa.ExtensionArray.from_storage(kind, pa.array([[[1, 2], [3, 4]]], kind.storage_type))
    table(tmp_path / "train.parquet", image=[png(1)], label=label)
    with pytest.raises(DatasetError, match="is of the extension type"):
        load(f"parquet:{tmp_path}/train.parquet,label=label", "train")


def test_splits_of_a_dataset_are_chosen_by_name(tmp_path: Path, make_folder: MakeFolder) -> None:
    spec = write_hf(make_folder(), tmp_path / "h")
    assert load(spec, "train").classes == ("ant", "bee")
    assert len(load(f"{spec},train=test,test=train,key=name", "train")) == 6
    with pytest.raises(MissingSplitError, match="no split 'tes', found train, test; did you mean 'test'"):
        load(f"{spec},test=tes", "test")
    with pytest.raises(DatasetError, match="does not stream"):
        load(f"{spec},streaming=true", "train")
    with pytest.raises(DatasetError, match="no such dataset in the cache of datasets; add --download"):
        load("hf:nobody/nothing", "train")
    with pytest.raises(DatasetError, match="there is no folder"):
        load(f"hf:{tmp_path}/none", "train")


def test_a_folder_of_images_with_metadata(
    tmp_path: Path, make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Labels are those of metadata.csv; names are those of the files, and pixels are read from these."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    root = make_folder()
    folder = load(f"folder:{root}", "train")
    for split in ("train", "test"):
        files = sorted(path.relative_to(root / split).as_posix() for path in (root / split).rglob("*.png"))
        lines = [f"{name},{'wasp' if 'ant' in name else 'bumblebee'}" for name in files]
        (root / split / "metadata.csv").write_text("\n".join(["file_name,insect", *lines]))
    found = load(f"hf:{root},label=insect", "train")
    assert found.classes == ("bumblebee", "wasp")
    assert sorted(found.keys) == sorted(folder.keys)
    for index, key in enumerate(found.keys):
        other = folder.keys.index(key)
        assert found.content_digests[index].tolist() == folder.content_digests[other].tolist()
        assert found.labels[index] == (1 if "ant" in key else 0)
    assert capfd.readouterr() == ("", "")


def test_files_that_the_library_converts(
    tmp_path: Path, make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parquet becomes Arrow files in the library's cache, with the same ids; archives have a form of their own."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    spec = write_parquet(make_folder(), tmp_path / "tables")
    direct, converted = load(spec, "train"), load(f"hf:{tmp_path}/tables,label=label", "train")
    assert converted.fingerprint == direct.fingerprint
    assert list((tmp_path / "hub/datasets").rglob("*.arrow"))
    write_tars(tmp_path / "insects", tmp_path / "shards")
    with pytest.raises(DatasetError, match=r"pass webdataset:GLOB\.tar"):
        load(f"hf:{tmp_path}/shards", "train")


def test_only_commands_that_use_it_import_the_library(tmp_path: Path) -> None:
    code = (
        "import sys, kdpipe.stages.cli; from kdpipe.dataset import load; load('digits', 'train');"
        "print([name for name in ('datasets', 'pyarrow', 'huggingface_hub') if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"

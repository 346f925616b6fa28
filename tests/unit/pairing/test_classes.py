"""Classes with other names or another order than a store's: found by names, images or a file, or refused."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdpipe.dataset import Dataset, load
from kdpipe.errors import DatasetError, StaleStoreError
from kdpipe.models import Preset
from kdpipe.pairing.classes import ClassMap, Match, find_classes, read_class_map
from kdpipe.pairing.join import covered, join_checked, relabeled, verify_data, with_store_ids
from kdpipe.store.reader import LogitStore, open_store
from kdpipe.testing.stores import dataset_plan, small_store
from tests.unit.pairing.pictures import insects

PRESET = Preset(size=12, resize=14, interpolation="bilinear", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
EACH = 10


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return insects(tmp_path / "insects", each=EACH)


@pytest.fixture
def store(folder: Path) -> LogitStore:
    path = folder.with_suffix(".zarr")
    small_store(path, dataset_plan(load(f"folder:{folder}", "train"), preset=PRESET, views=1))
    return open_store(path)


def renamed(folder: Path, **names: str) -> Path:
    """Give the class folders other names."""
    target = shutil.copytree(folder, folder.with_name("renamed"))
    for split in target.iterdir():
        for name in sorted(path.name for path in split.iterdir()):
            (split / name).rename(split / f"{names.get(name, name)}-new")
        for path in split.iterdir():
            path.rename(path.with_name(path.name.removesuffix("-new")))
    return target


def found(store: LogitStore, dataset: Dataset, **given: str) -> tuple[ClassMap | None, Dataset]:
    paired = with_store_ids(store, dataset)
    return find_classes(store, paired, given=given), paired


def names(found: ClassMap | None) -> dict[str, str | None]:
    assert found is not None
    return {match.name: match.store_class for match in found.matches}


def test_equal_classes_need_no_map(store: LogitStore, folder: Path) -> None:
    assert found(store, load(f"folder:{folder}", "train"))[0] is None


def test_other_names_and_another_order_by_the_labels_of_images(store: LogitStore, folder: Path) -> None:
    other = load(f"folder:{renamed(folder, ant='1-hymenoptera', bee='0-apis')}", "train")
    matched, paired = found(store, other)
    assert names(matched) == {"0-apis": "bee", "1-hymenoptera": "ant"}
    assert matched is not None
    assert matched.matches[0] == Match("0-apis", "bee", "labels", EACH, EACH)
    mapped = matched.of(paired)
    assert mapped.classes == store.classes
    rows = join_checked(store, mapped)
    assert not relabeled(store, mapped, rows).any()
    assert verify_data(store, mapped) == []
    assert matched.recorded == {"0-apis": "bee", "1-hymenoptera": "ant"}
    assert ClassMap.of_names(store.classes, other.classes, matched.recorded).of(paired).labels.tolist() == (
        mapped.labels.tolist()
    )
    first, *table = matched.lines(store.path, "folder:x")
    assert "2 classes of folder:x as the 2 of" in first
    assert "2 by the labels of their images" in first
    assert [line.split() for line in table] == [
        ["0-apis", "bee", f"({EACH}", "of", f"{EACH}", "images)"],
        ["1-hymenoptera", "ant", f"({EACH}", "of", f"{EACH}", "images)"],
    ]


def test_classes_that_the_store_lacks_are_counted() -> None:
    ant, lamp, sofa = Match("ant", "ant", "name"), Match("lamp", None, ""), Match("sofa", None, "")
    for matches, counted in (((ant, lamp), "1 is not in the store"), ((ant, lamp, sofa), "2 are not in the store")):
        (line,) = ClassMap(("ant", "bee"), matches).lines(Path("s.zarr"), "x")
        assert line == f"The {len(matches)} classes of x as the 2 of s.zarr: 1 by name, {counted}."


def test_another_order_and_a_part_of_the_classes_by_name(store: LogitStore, folder: Path) -> None:
    data = load(f"folder:{folder}", "train")
    turned = replace(data, classes=("bee", "ant"), labels=1 - data.labels)
    matched, paired = found(store, turned)
    assert matched is not None
    assert {match.how for match in matched.matches} == {"name"}
    assert len(matched.lines(store.path, "x")) == 1
    assert matched.of(paired).labels.tolist() == data.labels.tolist()
    bees = data.subset(np.flatnonzero(data.labels == 1))
    alone = replace(bees, classes=("bee",), labels=np.zeros(len(bees), dtype=np.int32), origin=None)
    matched, paired = found(store, alone)
    assert names(matched) == {"bee": "bee"}
    assert set(matched.of(paired).labels.tolist()) == {1}  # type: ignore[union-attr]


def test_classes_that_the_store_does_not_have_are_left_without_a_label(store: LogitStore, folder: Path) -> None:
    (folder / "train" / "wasp").mkdir()
    for index in range(3):
        levels = np.random.default_rng([index, 500]).integers(0, 256, (16, 18, 3), dtype=np.uint8)
        Image.fromarray(levels).save(folder / "train" / "wasp" / f"{index}.png")
    matched, paired = found(store, load(f"folder:{folder}", "train"))
    assert names(matched) == {"ant": "ant", "bee": "bee", "wasp": None}
    mapped = matched.of(paired)  # type: ignore[union-attr]
    assert sorted(mapped.labels.tolist()) == [-1] * 3 + [0] * EACH + [1] * EACH
    part = covered([store], mapped)
    assert len(part) == 2 * EACH
    assert (part.labels >= 0).all()
    assert len(join_checked(store, part)) == 2 * EACH
    said: list[str] = []
    assert verify_data(store, mapped, say=said.append) == []
    assert said == []


def test_images_that_do_not_agree_are_refused(store: LogitStore, folder: Path) -> None:
    other = renamed(folder, ant="first", bee="second")
    for number in range(2):
        (other / "train" / "first" / f"{number}.png").rename(other / "train" / "second" / f"moved{number}.png")
    data = load(f"folder:{other}", "train")
    with pytest.raises(StaleStoreError, match=r"10 of 12 images of 'second' were labeled 'bee'.*--class-map FILE"):
        found(store, data)
    matched, _ = found(store, data, second="bee")
    assert names(matched) == {"first": "ant", "second": "bee"}
    assert [match.how for match in matched.matches] == ["labels", "file"]  # type: ignore[union-attr]


def test_a_name_that_the_images_contradict_is_refused(store: LogitStore, folder: Path) -> None:
    data = load(f"folder:{renamed(folder, ant='bee', bee='crawler')}", "train")
    with pytest.raises(StaleStoreError, match=r"10 of 10 images of 'bee' were labeled 'ant'"):
        found(store, data)
    assert names(found(store, data, bee="ant")[0]) == {"bee": "ant", "crawler": "bee"}


def test_two_classes_that_were_one_are_refused_unless_a_file_says_so(store: LogitStore, folder: Path) -> None:
    other = renamed(folder, ant="red ant")
    (other / "train" / "black ant").mkdir()
    for path in sorted((other / "train" / "red ant").iterdir())[:5]:
        path.rename(other / "train" / "black ant" / path.name)
    data = load(f"folder:{other}", "train")
    with pytest.raises(StaleStoreError, match="'black ant' and 'red ant' would both be 'ant'"):
        found(store, data)
    both = {"black ant": "ant", "red ant": "ant"}
    assert names(found(store, data, **both)[0]) == {**both, "bee": "bee"}


def test_a_store_without_labels_needs_a_file(store: LogitStore, folder: Path) -> None:
    store.labels[:] = -1
    data = load(f"folder:{renamed(folder, bee='apis')}", "train")
    with pytest.raises(StaleStoreError, match="knows no label of the 10 images of 'apis'"):
        found(store, data)
    assert names(found(store, data, apis="bee")[0]) == {"ant": "ant", "apis": "bee"}


def test_files_of_classes(tmp_path: Path, store: LogitStore, folder: Path) -> None:
    path = tmp_path / "classes.csv"
    path.write_text('class,store_class\n"0, the first",ant\n\n 1 , bee \n', encoding="utf-8")
    assert read_class_map(path) == {"0, the first": "ant", "1": "bee"}
    data = load(f"folder:{folder}", "train")
    for text, message in {
        "a,b,c\n": "line 1: expected a class and the store's class",
        "a\n": "line 1: expected",
        "a,b\na,c\n": "line 2: the class a occurs twice",
    }.items():
        path.write_text(text)
        with pytest.raises(DatasetError, match=message):
            read_class_map(path)
    path.write_bytes(b"\xff\xfe,x")
    with pytest.raises(DatasetError, match="not in UTF-8"):
        read_class_map(path)
    with pytest.raises(DatasetError, match=r"names the class 'bea'.*did you mean 'bee'"):
        found(store, data, bea="bee")
    with pytest.raises(DatasetError, match="names the class 'beetle'"):
        found(store, data, bee="beetle")

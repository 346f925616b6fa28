"""Datasets that a user's own function returns."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from kdpipe.dataset import Dataset, load
from kdpipe.errors import DatasetError

HEAD = """
import numpy as np
import torch
from PIL import Image

class Data(list):
    classes = ["no", "yes"]

def tensor(level, shape=(3, 4, 5)):
    return torch.full(shape, level, dtype=torch.uint8)
"""

Run = Callable[..., Dataset]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Write ``mine/data.py`` with a function ``build``, and load it from its directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def write_and_load(body: str, spec: str = "mine.data:build", **options: object) -> Dataset:
        (tmp_path / "mine").mkdir(exist_ok=True)
        (tmp_path / "mine/__init__.py").touch()
        (tmp_path / "mine/data.py").write_text(HEAD + body)
        return load(spec, "train", **options)  # type: ignore[arg-type]

    yield write_and_load
    for name in ("mine", "mine.data"):
        sys.modules.pop(name, None)


def test_pictures_of_all_kinds(run: Run) -> None:
    found = run("""
def build(split):
    assert split == "train"
    return Data([
        (tensor(1), 0), (tensor(2, (4, 5, 3)), 1), (tensor(3, (4, 5)), -1),
        (tensor(4, (1, 4, 5)), torch.tensor(1)),
        (Image.new("L", (5, 4), 5), np.int64(0)), (np.full((4, 5, 3), 6, dtype=np.uint8), 1),
    ])
""")
    assert found.image_size == (4, 5)
    assert [image.unique().tolist() for image in found.images(range(6))] == [[1], [2], [3], [4], [5], [6]]
    assert found.labels.tolist() == [0, 1, -1, 1, 0, 1]
    assert found.classes == ("no", "yes")
    assert found.keys[2] == "mine.data:build/train/2"


@pytest.mark.parametrize(
    ("train", "test", "reason"),
    [
        (["no", "yes"], ["yes", "no"], "class 0 is 'yes' against 'no'"),
        (["a", "b", "c"], ["a", "c", "b"], "class 1 is 'c' against 'b'"),
        (["a", "b", "c"], ["a", "b"], "2 against 3 names"),
    ],
)
def test_splits_with_other_classes_are_refused(run: Run, train: list[str], test: list[str], reason: str) -> None:
    run(f"""
def build(split):
    found = Data([(tensor(1), 0), (tensor(2), 1)])
    found.classes = {train!r} if split == "train" else {test!r}
    return found
""")
    with pytest.raises(DatasetError) as caught:
        load("mine.data:build", "test")
    line = str(caught.value)
    assert line == (
        f"mine.data:build('test').classes differ from those of mine.data:build('train') ({reason}): the same index "
        "would be another class; return both splits with the same names in the same order"
    )


@pytest.mark.parametrize("train", ["raise FileNotFoundError(split)", "return Data()", "return None"])
def test_a_split_for_testing_needs_no_train_split(run: Run, train: str) -> None:
    body = f"""
def build(split):
    if split == "train":
        {train}
    return Data([(tensor(1), 0), (tensor(2), 1)])
"""
    with pytest.raises(DatasetError):
        run(body)
    assert len(load("mine.data:build", "test")) == 2


def test_keys_and_targets_are_used(run: Run) -> None:
    found = run(
        """
class Lazy:
    classes = ("no", "yes")
    keys = [f"patient-{index}" for index in range(50)]
    targets = [index % 2 for index in range(50)]
    read = []
    def __len__(self): return 50
    def __getitem__(self, index):
        self.read.append(index)
        return tensor(index), index % 2
def build(split): return Lazy()
""",
        limit=4,
    )
    assert all(key.startswith("patient-") for key in found.keys)
    assert sorted(found.labels.tolist()) == [0, 0, 1, 1]
    assert len(set(sys.modules["mine.data"].Lazy.read)) == 4


def test_workers_call_the_function_again(run: Run) -> None:
    found = run("def build(split): return Data((tensor(i), i % 2) for i in range(9))", loading="stream")
    packed = pickle.dumps(found)
    assert len(packed) < 5_000
    assert torch.equal(pickle.loads(packed).image(7), found.image(7))


COUNTED = """
class Counted:
    classes = ("no", "yes")
    read = []
    levels = [10, 20, 30, 40]
    def __len__(self): return len(self.levels)
    def __getitem__(self, index):
        self.read.append(index)
        return tensor(self.levels[index]), index % 2
def build(split): return Counted()
"""


def counted(run: Run, told: str = "", **options: object) -> tuple[list[int], Dataset]:
    """Return the items that are read, and the dataset."""
    found = run(COUNTED + told, **options)
    return sys.modules.pop("mine.data").Counted.read, found


@pytest.mark.parametrize("labels", ["", "Counted.targets = [0, 1] * 2\n"])
@pytest.mark.parametrize(
    "told",
    [
        "Counted.fingerprint = 'first'",
        "Counted.fingerprint = lambda self: 'first'",
        "Counted.digests = ['a', 'b', 'c', 'd']",
        "Counted.digests = lambda self: [b'a', b'b', b'c', b'd']",
    ],
)
def test_items_whose_content_is_told_are_read_once(run: Run, told: str, labels: str) -> None:
    first, before = counted(run, labels + told, loading="stream")
    again, after = counted(run, labels + told, loading="stream")
    assert (first, again) == ([0, 1, 2, 3], [])
    assert after.fingerprint == before.fingerprint == counted(run, labels)[1].fingerprint
    assert after.labels.tolist() == [0, 1, 0, 1]
    assert after.sizes.tolist() == [[4, 5]] * 4
    assert after.image(2).unique().tolist() == [30]


def test_items_are_read_again_where_what_is_told_of_them_changes(run: Run) -> None:
    counted(run, "Counted.digests = ['a', 'b', 'c', 'd']", loading="stream")
    changed = "Counted.levels = [10, 99, 30, 40, 50]\nCounted.digests = ['a', 'B', 'c', 'd', 'e']"
    read, found = counted(run, changed, loading="stream")
    assert read == [1, 4]
    assert found.image(1).unique().tolist() == [99]
    counted(run, "Counted.fingerprint = 'first'", loading="stream")
    assert counted(run, "Counted.fingerprint = 'second'", loading="stream")[0] == [0, 1, 2, 3]
    assert counted(run, loading="stream")[0] == [0, 1, 2, 3]
    assert counted(run, loading="stream")[0] == [0, 1, 2, 3]


def test_an_item_that_is_not_what_it_was_told_to_be_is_noticed(run: Run) -> None:
    counted(run, "Counted.fingerprint = 'first'", loading="stream")
    _, found = counted(run, "Counted.levels = [1, 20, 30, 40]\nCounted.fingerprint = 'first'", loading="stream")
    with pytest.raises(DatasetError, match=r"\[0\] gave other pixels than before; .* with the same fingerprint"):
        found.image(0)


def test_items_that_change_are_noticed(run: Run) -> None:
    body = """
class Random(Data):
    count = 0
    def __getitem__(self, index):
        Random.count += 1
        return tensor(Random.count), 0
def build(split): return Random([1, 2])
"""
    with pytest.raises(DatasetError, match="gave other pixels than before"):
        run(body)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("def build(split): return 3", "returned a int, expected a sequence"),
        ("def build(split): return [(tensor(1), 0)]", "has no 'classes'"),
        ("def build(split): return Data()", "returned no samples"),
        ("def build(split): return Data([tensor(1)])", r"\[0\] is a Tensor, expected a pair"),
        ("def build(split): return Data([(tensor(1), 0, 0)])", r"\[0\] is 3 values, expected a pair"),
        (
            "def build(split): return Data([('a.png', 0)])",
            r"\[0\] cannot be used: it is a str, expected a PIL",
        ),
        (
            "def build(split): return Data([(tensor(1), 0), (tensor(1).float(), 0)])",
            "pixels are float32, expected uint8",
        ),
        ("def build(split): return Data([(tensor(1, (2, 4, 5)), 0)])", r"shape \(2, 4, 5\), expected"),
        ("def build(split): return Data([(tensor(1, (3, 0, 5)), 0)])", "at least one pixel"),
        ("def build(split): return Data([(tensor(1), 'yes')])", "label is 'yes', expected an integer"),
        ("def build(split): return Data([(tensor(1), 0.5)])", "label is 0.5, expected an integer"),
        (
            "def build(split): return Data([(tensor(1), 0), (tensor(1), 2)])",
            r"\[1\] has the label 2, expected 0..1",
        ),
        ("def build(split): return Data([(tensor(1), -2)])", r"\[0\] has the label -2"),
        ("def build(split): raise KeyError('lost')", "raised KeyError: 'lost'"),
        ("def built(split): return 3", "has no function 'build'; did you mean 'built'"),
        ("import notthere_at_all", "importing mine.data failed: No module named 'notthere_at_all'"),
        ("1 / 0", "importing mine.data raised ZeroDivisionError"),
        (
            "Data.classes = ['a', 'a']\ndef build(split): return Data([(tensor(1), 0)])",
            "must be different names",
        ),
        (
            "Data.classes = 'ab'\ndef build(split): return Data([(tensor(1), 0)])",
            "expected a sequence of strings",
        ),
        (
            "Data.keys = ['k']\ndef build(split): return Data([(tensor(1), 0)] * 2)",
            "has 1 keys for 2 samples",
        ),
        (
            "Data.keys = ['k', 'k']\ndef build(split): return Data([(tensor(1), 0)] * 2)",
            "two samples have the key",
        ),
        ("Data.digests = ['a']\ndef build(split): return Data([(tensor(1), 0)] * 2)", "digests must be a string or"),
        ("Data.digests = 'ab'\ndef build(split): return Data([(tensor(1), 0)] * 2)", "digests must be a string or"),
        ("Data.digests = ['a', 7]\ndef build(split): return Data([(tensor(1), 0)] * 2)", "digests must be a string or"),
        (
            "Data.fingerprint = 7\ndef build(split): return Data([(tensor(1), 0)])",
            "fingerprint is 7, expected a string",
        ),
        (
            "Data.digests = lambda self: 1 / 0\ndef build(split): return Data([(tensor(1), 0)])",
            r"digests\(\) raised ZeroDivisionError",
        ),
        ("Data.targets = [0]\ndef build(split): return Data([(tensor(1), 0)] * 2)", "expected 2 integers"),
    ],
)
def test_what_a_function_may_not_return(run: Run, body: str, expected: str) -> None:
    with pytest.raises(DatasetError, match=expected) as caught:
        run(body)
    assert "\n" not in str(caught.value)
    assert "mine.data" in str(caught.value) or "key" in str(caught.value)


def test_a_module_that_is_not_there(run: Run) -> None:
    with pytest.raises(DatasetError, match=r"there is no module 'mine\.dat'"):
        run("", spec="mine.dat:build")

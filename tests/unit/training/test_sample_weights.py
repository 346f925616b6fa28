"""The file of sample weights: what is read from it, and what is refused in one line."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path

import pytest

from kdpipe import dataset
from kdpipe.dataset import Dataset
from kdpipe.errors import DatasetError
from kdpipe.training.schedule import read_sample_weights


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return dataset.load("digits", "train", 4)


def _rows(dataset: Dataset, weights: Sequence[object]) -> str:
    return "".join(f"{key},{weight}\n" for key, weight in zip(dataset.keys, weights, strict=True))


def _write(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    path = folder / "weights.csv"
    path.write_bytes(text.encode(encoding))
    return path


def test_each_sample_gets_its_weight(digits: Dataset, tmp_path: Path) -> None:
    path = _write(tmp_path, "key,weight\n" + _rows(digits, [0, 2.5, "1e-3", " 7 "]))
    assert read_sample_weights(path, digits).tolist() == [0, 2.5, 1e-3, 7]
    part = digits.subset([3, 1])
    assert read_sample_weights(path, part).tolist() == [7, 2.5]


def test_what_spreadsheets_and_data_frames_write_is_read(digits: Dataset, tmp_path: Path) -> None:
    rows = "".join(f'"{key}",{index},"{index}"\r\n' for index, key in enumerate(digits.keys))
    path = _write(tmp_path, "key,,weight\r\n" + rows + "\r\n", "utf-8-sig")
    assert read_sample_weights(path, digits).tolist() == [0, 1, 2, 3]


def test_keys_are_compared_in_one_unicode_form(tmp_path: Path) -> None:
    from PIL import Image

    for name in ("caf\u00e9", "tea"):
        folder = tmp_path / "images" / "train" / name
        folder.mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(folder / "a, b.png")
    images = dataset.load(f"folder:{tmp_path / 'images'}", "train")
    text = "key,weight\n" + "".join(f'"{key}",{weight}\n' for key, weight in zip(images.keys, (1, 3), strict=True))
    for form in ("NFC", "NFD"):
        path = _write(tmp_path, unicodedata.normalize(form, text))
        assert read_sample_weights(path, images).tolist() == [1, 3]


@pytest.mark.parametrize(
    ("header", "weights", "message"),
    [
        (
            "key,weight",
            [1, "nan", 1, 1],
            r"weights\.csv, line 3: the weight of '{1}' is 'nan', expected a finite number",
        ),
        ("key,weight", [1, 1, "-inf", 1], r"line 4: the weight of '{2}' is '-inf'"),
        ("key,weight", [-0.5, 1, 1, 1], r"line 2: the weight of '{0}' is '-0\.5', expected .* 0 or more"),
        ("key,weight", [1, 1, 1, "much"], r"line 5: the weight of '{3}' is 'much'"),
        ("key,weight", [1, 1, 1, ""], r"line 5: the weight of '{3}' is ''"),
        ("key,weight", [0, 0, 0, 0], r"every sample to train on the weight 0"),
        ("key;weight", [1, 1, 1, 1], r"line 1: expected the columns key,weight; found 'key;weight'"),
        ("key,wieght", [1, 1, 1, 1], r"line 1: expected the columns key,weight; found 'key,wieght'"),
        ("key,weight,weight", [1, 1, 1, 1], r"line 1: expected the columns key,weight"),
    ],
)
def test_a_malformed_file_is_refused(
    header: str, weights: list[object], message: str, digits: Dataset, tmp_path: Path
) -> None:
    path = _write(tmp_path, f"{header}\n" + _rows(digits, weights))
    with pytest.raises(DatasetError, match=message.format(*digits.keys)):
        read_sample_weights(path, digits)


def test_lines_that_are_short_or_twice_there_are_refused(digits: Dataset, tmp_path: Path) -> None:
    rows = _rows(digits, [1, 1, 1, 1])
    first = digits.keys[0]
    for text, message in (
        (f"key,weight\n{first}\n", r"line 2: it lacks a value"),
        (f"key,weight\n{rows}{first},2\n", rf"line 6: '{first}' was on line 2 already"),
        ("", r"line 1: expected the columns key,weight; the file is empty"),
        ('key,weight\n"a,1\n', r"cannot be read as a CSV file in UTF-8: unexpected end of data"),
    ):
        with pytest.raises(DatasetError, match=message):
            read_sample_weights(_write(tmp_path, text), digits)


def test_samples_that_are_not_listed_are_counted_and_named(digits: Dataset, tmp_path: Path) -> None:
    path = _write(tmp_path, "key,weight\n" + _rows(digits.subset([0, 2]), [1, 1]))
    with pytest.raises(
        DatasetError,
        match=rf"no weight for 2 of the 4 .* such as '{digits.keys[1]}'; its first key is '{digits.keys[0]}'",
    ):
        read_sample_weights(path, digits)
    with pytest.raises(DatasetError, match=r"no weight for 4 of the 4 .* it has no rows"):
        read_sample_weights(_write(tmp_path, "key,weight\n"), digits)


def test_a_file_that_cannot_be_read_is_refused(digits: Dataset, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"there is no file .*nowhere\.csv"):
        read_sample_weights(tmp_path / "nowhere.csv", digits)
    with pytest.raises(DatasetError, match="cannot be read"):
        read_sample_weights(tmp_path, digits)
    with pytest.raises(DatasetError, match=r"cannot be read as a CSV file in UTF-8: .*utf-8"):
        read_sample_weights(_write(tmp_path, "key,weight\ncaf\u00e9,1\n", "latin-1"), digits)

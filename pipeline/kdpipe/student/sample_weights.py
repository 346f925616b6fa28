"""The file that says how often each sample is drawn, relative to the others."""

from __future__ import annotations

import csv
import math
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kdpipe.dataset import Dataset
from kdpipe.errors import DatasetError

_COLUMNS = ("key", "weight")


def read_sample_weights(path: Path, dataset: Dataset) -> npt.NDArray[np.float64]:
    """Read a weight for each sample of a dataset, float64 ``(n,)``, from a CSV file with the columns key and weight.

    Other columns, and keys of other samples, are passed over: one file serves whatever part is trained on.

    Raises:
        DatasetError: the file is not there or malformed, a weight is not a finite number of 0 or more, a key is there
            twice, a sample is missing, or all of them weigh 0.
    """
    listed: dict[str, tuple[float, int]] = {}
    for line, key, text in _rows(path):
        if key in listed:
            raise DatasetError(f"{path}, line {line}: '{key}' was on line {listed[key][1]} already; keep one of them.")
        listed[key] = _weight(text, f"{path}, line {line}: the weight of '{key}'"), line
    missing = [key for key in dataset.keys if key not in listed]
    if missing:
        found = f"its first key is '{next(iter(listed))}'" if listed else "it has no rows"
        raise DatasetError(
            f"{path} has no weight for {len(missing):,} of the {len(dataset):,} samples to train on, such as "
            f"'{missing[0]}'; {found}. Give each a row; a weight of 0 leaves a sample out."
        )
    weights = np.array([listed[key][0] for key in dataset.keys])
    if not weights.any():
        raise DatasetError(f"{path} gives every sample to train on the weight 0; give one at least more than that.")
    return weights


def _rows(path: Path) -> Iterator[tuple[int, str, str]]:
    """Yield line number, key and weight of each row; keys are compared in Unicode form NFC, like a dataset's."""
    try:
        # Spreadsheets begin UTF-8 with a byte order mark.
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, strict=True)
            _check_columns(path, reader.fieldnames or ())
            for row in reader:
                key, text = (row[name] for name in _COLUMNS)
                if key is None or text is None:
                    raise DatasetError(
                        f"{path}, line {reader.line_num}: it lacks a value, expected a key and a weight."
                    )
                yield reader.line_num, unicodedata.normalize("NFC", key), text
    except FileNotFoundError:
        raise DatasetError(f"there is no file {path}; --sample-weights wants a CSV file of key,weight.") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{path} cannot be read as a CSV file in UTF-8: {error}") from None


def _check_columns(path: Path, found: Sequence[str]) -> None:
    if any(found.count(name) != 1 for name in _COLUMNS):
        header = f"found '{','.join(found)}'" if found else "the file is empty"
        raise DatasetError(f"{path}, line 1: expected the columns {','.join(_COLUMNS)}; {header}.")


def _weight(text: str, what: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not (math.isfinite(weight) and weight >= 0):
        raise DatasetError(f"{what} is '{text}', expected a finite number of 0 or more.")
    return weight

"""Encodings by name and from descriptions, and decoding from a description alone."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from kdpipe import encoding
from kdpipe.errors import CorruptStoreError, ParamsError

NAMES = [
    *("fp32", "fp16", *(f"fp16r{bits}" for bits in range(1, 10))),
    *(f"sqrtp{bits}@{temperature}" for bits in range(2, 9) for temperature in ("0.5", "4", "1000")),
    *(f"tailp{bits}@{temperature}" for bits in range(2, 9) for temperature in ("0.5", "4", "1000")),
    *("topk1", "topk5", "topk65535"),
]


@pytest.mark.parametrize("name", NAMES)
def test_canonical_names(name: str) -> None:
    found = encoding.get(name)
    assert found.name == name
    assert encoding.get(name) == found
    assert hash(encoding.get(name)) == hash(found)
    described = found.describe()
    assert described["name"] == name
    assert described["dtype"] == found.dtype == np.dtype(found.dtype).name
    again = json.loads(json.dumps(described))
    assert again == described
    assert encoding.from_description(again) == found


@pytest.mark.parametrize(
    ("given", "canonical"), [("sqrtp8@4.0", "sqrtp8@4"), ("sqrtp6@04", "sqrtp6@4"), ("sqrtp6@0.50", "sqrtp6@0.5")]
)
def test_other_spellings(given: str, canonical: str) -> None:
    assert encoding.get(given).name == canonical
    assert encoding.get(given) == encoding.get(canonical)


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("fp61", "fp16"),
        ("f16", "fp16"),
        ("fp16r", "fp16r"),
        ("fp16r10", "fp16r"),
        ("sqrtp9@4", "sqrtp"),
        ("sqrtp1@4", "sqrtp"),
        ("sqrt8@4", "sqrtp8@4"),
        ("sqrtp8", "sqrtp8@"),
        ("topk0", "topk"),
        ("topk", "topk"),
        ("topk05", "topk"),
        ("sqrtp8@-4", "sqrtp8@4"),
        ("FP16", None),
        ("", None),
        *((f"sqrtp8@{bad}", "sqrtp8@") for bad in ("0", "1001", "0.001", "1.234567", "nan", "1e2", "٤")),
        ("topk65536", "topk"),
        ("fp16\n", "fp16"),
    ],
)
def test_an_unknown_name_suggests_the_nearest_and_lists_the_forms(name: str, suggestion: str | None) -> None:
    with pytest.raises(ParamsError, match="unknown encoding") as caught:
        encoding.get(name)
    assert all(form in str(caught.value) for form in encoding.FORMS)
    if suggestion is not None:
        assert f"did you mean '{suggestion}" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "temperature", "full", "widths"),
    [
        ("fp32", None, True, {10: 10, 1000: 1000}),
        ("fp16r3", None, True, {10: 10}),
        ("sqrtp6@2.5", 2.5, True, {10: 10}),
        ("tailp6@2.5", 5.0, True, {10: 11}),
        ("topk5", 1.0, False, {6: 11, 65_536: 11, 65_537: 16}),
    ],
)
def test_properties(name: str, temperature: float | None, full: bool, widths: dict[int, int]) -> None:
    found = encoding.get(name)
    assert found.max_temperature == temperature
    assert found.full is full
    assert {classes: found.width(classes) for classes in widths} == widths


def decode_alone(described: dict[str, Any], codes: np.ndarray, row_max: np.ndarray, classes: int) -> np.ndarray:
    """Decode as a reader of the description would, with NumPy and nothing of kdpipe."""
    assert codes.dtype == described["dtype"]
    if described["decode"] == "float32(codes) + row_max":
        return codes.astype(np.float32) + row_max[:, None]
    if described["decode"] == "float32(table)[codes] + row_max":
        return np.array(described["table"], np.float32)[codes] + row_max[:, None]
    if described["decode"].startswith("levels = codes[:, :-1]; tail = float32(-tail_step) * float32(codes[:, -1:]);"):
        levels = codes[:, :-1]
        tail = np.float32(-described["tail_step"]) * np.float32(codes[:, -1:])
        return np.where(levels == 0, tail, np.float32(described["table"])[levels]) + row_max[:, None]
    k, (rows, width) = described["k"], codes.shape
    assert described["decode"].startswith("k = number of values kept; words = codes as uint16 (n, width)")
    index = codes[:, :k].astype(np.int64)
    if width == 3 * k + 1:
        index += 65536 * codes[:, k : 2 * k].astype(np.int64)
    value = np.ascontiguousarray(codes[:, -k - 1 :]).view("<f2").astype(np.float32)
    logits = np.repeat(value[:, k:], classes, axis=1)
    logits[np.arange(rows)[:, None], index] = value[:, :k]
    return logits + row_max[:, None]


@pytest.mark.parametrize("classes", [10, 70_000])
@pytest.mark.parametrize(
    "name", ["fp32", "fp16", "fp16r4", "sqrtp8@4", "sqrtp3@1", "tailp4@2", "tailp2@0.3", "topk1", "topk7"]
)
def test_the_description_suffices_to_decode(name: str, classes: int) -> None:
    logits = 4 * torch.randn(6, classes, generator=torch.Generator().manual_seed(1))
    chosen = encoding.get(name).calibrate(logits)
    described = json.loads(json.dumps(chosen.describe()))
    encoded = chosen.encode(logits)
    alone = decode_alone(described, encoded.codes, encoded.row_max, classes)
    decoded = chosen.decode(torch.from_numpy(encoded.codes), torch.from_numpy(encoded.row_max), classes)
    assert np.array_equal(alone, decoded.numpy())
    assert (alone.argmax(axis=1) == logits.argmax(dim=1).numpy()).any()


TABLE = list(encoding.get("sqrtp2@4").describe()["table"])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change",
    [
        {"name": "sqrtp2@8"},
        {"name": "sqrtp3@4"},
        {"name": "sqrtp2@4.0"},
        {"name": "magic"},
        {"name": None},
        {"name": "topk" * 100},
        {"dtype": "float16"},
        {"bits": 2.0},
        {"bits": True},
        {"temperature": 4},
        {"temperature": 8.0},
        {"decode": "eval(codes)"},
        {"extra": 1},
        {"table": None},
        {"table": {}},
        {"table": TABLE[1:]},
        {"table": TABLE * 1000},
        {"table": [TABLE[1], TABLE[0], *TABLE[2:]]},
        {"table": [*TABLE[:-1], 1.0]},
        {"table": [*TABLE[:-1], -1e-3]},
        {"table": [float("nan"), *TABLE[1:]]},
        {"table": [float("-inf"), *TABLE[1:]]},
        {"table": [-1e39, *TABLE[1:]]},
        {"table": [-100.1, *TABLE[1:]]},
        {"table": [-100, *TABLE[1:]]},
        {"table": ["-100", *TABLE[1:]]},
        {"table": [*TABLE[:-1], False]},
    ],
)
def test_a_wrong_description_is_refused(change: dict[str, Any]) -> None:
    described = encoding.get("sqrtp2@4").describe()
    assert encoding.from_description({**described, "table": [-100.0, *TABLE[1:]]}).encode(torch.zeros(1, 2))
    with pytest.raises(CorruptStoreError, match="encoding"):
        encoding.from_description({**described, **change})


@pytest.mark.parametrize(
    "change",
    [
        {"name": "sqrtp2@4"},
        {"name": "tailp2@8"},
        {"tail_step": 0.25},
        {"tail_step": float("nan")},
        {"tail_step": 1},
        {"table": TABLE[1:]},
        {"table": [*TABLE[:-1], 1.0]},
        {"decode": "float32(table)[codes] + row_max"},
    ],
)
def test_a_wrong_description_of_tails_is_refused(change: dict[str, Any]) -> None:
    described = encoding.get("tailp2@4").describe()
    assert encoding.from_description({**described, "table": [-100.0, *TABLE[1:]]}).encode(torch.zeros(1, 2))
    with pytest.raises(CorruptStoreError, match="encoding"):
        encoding.from_description({**described, **change})


@pytest.mark.parametrize("name", ["fp16", "sqrtp8@4", "tailp8@4", "topk5"])
def test_a_description_lacks_nothing(name: str) -> None:
    described = encoding.get(name).describe()
    for key in described:
        with pytest.raises(CorruptStoreError):
            encoding.from_description({other: value for other, value in described.items() if other != key})


def test_the_description_of_half_precision_is_that_of_format_1() -> None:
    assert encoding.get("fp16").describe() == {
        "name": "fp16",
        "dtype": "float16",
        "decode": "float32(codes) + row_max",
    }

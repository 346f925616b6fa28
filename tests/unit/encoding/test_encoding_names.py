"""Encodings by name and from descriptions, and decoding from a description alone."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest
import torch

from kdpipe.encoding.base import ENCODINGS
from kdpipe.encoding.registry import get_encoding, restore_encoding
from kdpipe.errors import CorruptStoreError, ParamsError

NAMES = [
    *("fp32", "fp16", *(f"fp16r{bits}" for bits in range(1, 10))),
    *(f"sqrtp{bits}@{temperature}" for bits in range(2, 9) for temperature in ("0.5", "4", "1000")),
    *(f"tailp{bits}@{temperature}" for bits in range(2, 9) for temperature in ("0.5", "4", "1000")),
    *("topk1", "topk5", "topk65535", "klt0.01", "klt0.4", "klt4", "peaks1@4", "peaks0.1@0", "peaks2.5@4.25"),
]


@pytest.mark.parametrize("name", NAMES)
def test_canonical_names(name: str) -> None:
    found = get_encoding(name)
    assert found.name == name
    assert get_encoding(name) == found
    assert hash(get_encoding(name)) == hash(found)
    described = found.describe()
    assert described["name"] == name
    assert described["dtype"] == found.dtype == np.dtype(found.dtype).name
    again = json.loads(json.dumps(described))
    assert again == described
    assert restore_encoding(again) == found


@pytest.mark.parametrize(
    ("written", "canonical"),
    [
        ("fp16r:7", "fp16r7"),
        ("fp16r:bits=7", "fp16r7"),
        ("sqrtp:8,4", "sqrtp8@4"),
        ("sqrtp:bits=8,temperature=4", "sqrtp8@4"),
        ("sqrtp:8,temperature=4.0", "sqrtp8@4"),
        ("sqrtp:6,1/2", "sqrtp6@0.5"),
        ("sqrtp: 6, 0.50", "sqrtp6@0.5"),
        ("tailp:6,8", "tailp6@8"),
        ("topk:50", "topk50"),
        ("klt:0.40", "klt0.4"),
        ("klt:step=2/5", "klt0.4"),
        ("topk:k=50", "topk50"),
        ("peaks:1,4", "peaks1@4"),
        ("peaks:step=1/2,floor=3.50", "peaks0.5@3.5"),
    ],
)
def test_names_in_the_grammar(written: str, canonical: str) -> None:
    assert get_encoding(written).name == canonical
    assert get_encoding(written) == get_encoding(canonical)
    assert get_encoding(written).describe() == get_encoding(canonical).describe()


def test_values_from_python_are_described_like_those_from_text() -> None:
    made = ENCODINGS.make("sqrtp", bits=8, temperature=4)
    assert json.dumps(made.describe()) == json.dumps(get_encoding("sqrtp8@4").describe())
    made = ENCODINGS.make("tailp", bits=8, temperature=4)
    assert json.dumps(made.describe()) == json.dumps(get_encoding("tailp8@4").describe())


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("fp61", "fp16"),
        ("f16", "fp16"),
        ("sqrt8@4", "sqrtp"),
        ("sqrtt:8,4", "sqrtp"),
        ("sqrtp8@-4", "sqrtp"),
        ("sqrtp8@nan", None),
        ("sqrtp8@1e2", None),
        ("sqrtp8@٤", "sqrtp"),
        ("sqrtp8@4.0", "sqrtp8@4"),
        ("sqrtp6@04", "sqrtp6@4"),
        ("topk05", "topk5"),
        ("fp16x", "fp16"),
        ("fp161", "fp16"),
        ("FP16", None),
    ],
)
def test_an_unknown_name_suggests_the_nearest_and_lists_the_forms(name: str, suggestion: str | None) -> None:
    with pytest.raises(ParamsError, match=f"unknown encoding '{name}'") as caught:
        get_encoding(name)
    assert all(entry.usage in str(caught.value) for entry in ENCODINGS)
    if suggestion is not None:
        assert f"did you mean '{suggestion}'" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("", "name missing"),
        ("fp16r", "fp16r lacks bits: write fp16r:BITS"),
        ("fp16r10", "bits=10, expected a whole number, 1 to 9"),
        ("fp16:7", "fp16 takes"),
        ("sqrtp9@4", "bits=9, expected a whole number, 2 to 8"),
        ("sqrtp:1,4", "bits=1, expected a whole number, 2 to 8"),
        ("sqrtp8", "sqrtp lacks temperature: write sqrtp:BITS,TEMPERATURE"),
        ("sqrtp:8,4,4", "takes 2 values"),
        ("tailp:8,level=4", "no parameter 'level'"),
        ("topk", "topk lacks k: write topk:K"),
        ("topk0", "k=0, expected a whole number, 1 to 65535"),
        ("topk65536", "k=65536, expected a whole number, 1 to 65535"),
        ("fp16+fp32", "expected one"),
        *((f"sqrtp8@{bad}", f"temperature={bad}, expected") for bad in ("0", "1001", "0.001", "1.234567")),
        *((f"sqrtp:8,{bad}", f"temperature={bad}, expected") for bad in ("-4", "nan", "1e4", "0.001", "1.234567")),
    ],
)
def test_wrong_values_are_refused(name: str, fault: str) -> None:
    with pytest.raises(ParamsError, match=re.escape(fault)):
        get_encoding(name)


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
    found = get_encoding(name)
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
    chosen = get_encoding(name).calibrate(logits)
    described = json.loads(json.dumps(chosen.describe()))
    encoded = chosen.encode(logits)
    alone = decode_alone(described, encoded.codes, encoded.row_max, classes)
    decoded = chosen.decode(torch.from_numpy(encoded.codes), torch.from_numpy(encoded.row_max), classes)
    assert np.array_equal(alone, decoded.numpy())
    assert (alone.argmax(axis=1) == logits.argmax(dim=1).numpy()).any()


TABLE = list(get_encoding("sqrtp2@4").describe()["table"])  # type: ignore[arg-type]


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
    described = get_encoding("sqrtp2@4").describe()
    assert restore_encoding({**described, "table": [-100.0, *TABLE[1:]]}).encode(torch.zeros(1, 2))
    with pytest.raises(CorruptStoreError, match="encoding"):
        restore_encoding({**described, **change})


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
    described = get_encoding("tailp2@4").describe()
    assert restore_encoding({**described, "table": [-100.0, *TABLE[1:]]}).encode(torch.zeros(1, 2))
    with pytest.raises(CorruptStoreError, match="encoding"):
        restore_encoding({**described, **change})


def test_the_description_of_half_precision_is_that_of_format_1() -> None:
    assert get_encoding("fp16").describe() == {
        "name": "fp16",
        "dtype": "float16",
        "decode": "float32(codes) + row_max",
    }

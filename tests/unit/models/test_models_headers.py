"""Headers of weights that nobody of sound mind wrote: one line each, before anything is computed."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from kdpipe import models
from kdpipe.errors import KdpipeError, ModelError
from kdpipe.models.weights import read_header

HALF = (0.5, 0.5, 0.5)
DEEP = "[" * 100_000


def load(path: Path) -> models.Model:
    return models.load("resnet8", num_classes=3, weights=path, fallback_statistics=lambda: (HALF, HALF))


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return dict(models.create("resnet8", 3).state_dict())


@pytest.mark.parametrize(
    "header",
    [
        {"input_size": "30000"},
        {"input_size": "-5"},
        {"input_size": "abc"},
        {"input_size": "9" * 5000},
        {"resize": "200000"},
        {"interpolation": "lanczos"},
        {"mean": "0.5,0.5,0.5", "std": "0,0,0"},
        {"mean": "0.5,0.5,0.5", "std": "1e-30,1,1"},
        {"mean": "1e300,0,0", "std": "1,1,1"},
        {"mean": "nan,0,0", "std": "1,1,1"},
        {"mean": DEEP, "std": "1,1,1"},
        {"mean": "[[1],[2],[3]]", "std": "1,1,1"},
        {"mean": "0.5", "std": "1,1,1"},
        {"classes": DEEP},
        {"classes": '[{"a": 1}, 2, 3]'},
        {"classes": '["a", "a", "b"]'},
        {"classes": '["a", "b"]'},
        {"classes": f'["a", "b", "{"c" * 100_000}"]'},
    ],
    ids=lambda header: "-".join(f"{key}-{value[:12]}" for key, value in header.items()),
)
def test_a_header_out_of_bounds_is_one_line(
    header: dict[str, str], state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "w.safetensors"
    save_file(state, path, header)
    with pytest.raises(ModelError) as caught:
        load(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    assert len(message) < 500


def test_a_header_longer_than_any_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 10**9))
        file.truncate(2 * 10**9)
    for read in (load, read_header):
        with pytest.raises(ModelError, match="its header is longer than"):
            read(path)


def test_a_pipe_is_no_file_of_weights(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match="not a regular file"):
        load(tmp_path / "w.safetensors")


KEYS = ("architecture", "classes", "input_size", "interpolation", "mean", "resize", "std", "format")
TEXTS = st.one_of(
    st.text(max_size=40),
    st.sampled_from(["224", "[1,2,3]", "0.5,0.5,0.5", "bicubic", "1e400", "[[", "[null]", "-1", "٣", '["\\ud800"]']),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(header=st.dictionaries(st.sampled_from(KEYS), TEXTS, max_size=6))
def test_any_header_is_read_or_refused(header: dict[str, str], state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    try:
        save_file(state, path, header)
    except UnicodeEncodeError:
        return
    try:
        model = load(path)
    except KdpipeError:
        return
    assert 1 <= model.preset.size <= 4096


PRESET = models.Preset(32, 32, "bilinear", HALF, HALF).describe()


@pytest.mark.parametrize(
    "change",
    [
        {"size": "abc"},
        {"size": -5},
        {"size": 200_000},
        {"size": None},
        {"resize": 10**9},
        {"mean": "abc"},
        {"mean": [1e300, 0, 0]},
        {"std": [0, 0, 0]},
        {"interpolation": []},
    ],
    ids=str,
)
def test_a_recorded_preset_out_of_bounds_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ModelError, match="the recorded preset of a model is unusable"):
        models.Preset.parse({**PRESET, **change})


@pytest.mark.parametrize("described", [{}, {"size": 32}])
def test_a_recorded_preset_that_lacks_something_is_refused(described: dict[str, object]) -> None:
    with pytest.raises(ModelError, match="it lacks"):
        models.Preset.parse(described)

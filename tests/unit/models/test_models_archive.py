"""A ``.pt2`` from a stranger runs no code: what would is refused in one line, and sample inputs are never unpickled."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from kdpipe import models
from kdpipe.errors import ModelError, UntrustedCodeError

Entries = dict[str, bytes]

GRAPH, SAMPLES = "models/model.json", "data/sample_inputs/model.pt"
WEIGHTS = "data/weights/model_weights_config.json"


class Marking:
    """Creates a directory when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()


@pytest.fixture(scope="module")
def entries(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Entries:
    path = tmp_path_factory.mktemp("program") / "m.pt2"
    free = ({0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC},)
    torch.export.save(torch.export.export(network, (torch.zeros(2, 3, 8, 9),), dynamic_shapes=free), path)
    with zipfile.ZipFile(path) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


def load(path: Path, *, trust_code: bool = False) -> models.Model:
    half = (0.5, 0.5, 0.5)
    return models.load(f"file:{path}", num_classes=3, fallback_statistics=lambda: (half, half), trust_code=trust_code)


def write(path: Path, entries: Entries, *, compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(f"m/{name}", content)
    return path


def edited(entries: Entries, change: Callable[[dict[str, Any]], None], *, of: str = GRAPH) -> Entries:
    described = json.loads(entries[of])
    change(described)
    return {**entries, of: json.dumps(described).encode()}


def saved(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("form", [pickle.dumps, saved])
def test_sample_inputs_are_not_unpickled(
    form: Callable[[object], bytes], entries: Entries, network: nn.Module, tmp_path: Path
) -> None:
    marker = tmp_path / "ran"
    model = load(write(tmp_path / "m.pt2", {**entries, SAMPLES: form(Marking(marker))}))
    images = torch.randn(5, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(model.module(images), network(images))
    assert not marker.exists()


def _evaluated(marker: Path) -> str:
    return f"__import__('os').mkdir('{marker}')"


def _guard(program: dict[str, Any], code: str) -> None:
    program["guards_code"] = [code]


def _expression(program: dict[str, Any], code: str) -> None:
    sizes = program["graph_module"]["graph"]["tensor_values"]["input"]["sizes"]
    sizes[0]["as_expr"]["expr_str"] = code


def _spec(program: dict[str, Any], code: str) -> None:
    del code
    call = program["graph_module"]["module_call_graph"][0]["signature"]
    call["out_spec"] = '[1, {"type": "x", "context": "{\\"__enum__\\": true, \\"fqn\\": \\"this:s\\"}"}]'


def _target(program: dict[str, Any], code: str) -> None:
    node = program["graph_module"]["graph"]["nodes"][0]
    node["target"] = "torch.os.mkdir"
    node["inputs"] = [{"name": "path", "arg": {"as_string": code}, "kind": 1}]


def _name(program: dict[str, Any], code: str) -> None:
    node = program["graph_module"]["graph"]["nodes"][0]
    node["name"] = f"x = {code}; y"


def _file_argument(program: dict[str, Any], code: str) -> None:
    node = program["graph_module"]["graph"]["nodes"][0]
    node["target"] = "torch.ops.aten.from_file.default"
    node["inputs"] = [{"name": "filename", "arg": {"as_string": code}, "kind": 1}]


@pytest.mark.parametrize("place", [_expression, _spec, _target, _name, _file_argument])
def test_a_graph_that_would_run_code_is_refused(
    place: Callable[[dict[str, Any], str], None], entries: Entries, tmp_path: Path
) -> None:
    marker = tmp_path / "ran"
    path = write(tmp_path / "m.pt2", edited(entries, lambda program: place(program, _evaluated(marker))))
    with pytest.raises(UntrustedCodeError, match="pass --trust-code") as caught:
        load(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    assert not marker.exists()


def test_guards_are_left_out(entries: Entries, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    load(write(tmp_path / "m.pt2", edited(entries, lambda program: _guard(program, _evaluated(marker)))))
    assert not marker.exists()


def _pickled(entries: Entries, marker: Path) -> Entries:
    def change(config: dict[str, Any]) -> None:
        next(iter(config["config"].values()))["use_pickle"] = True

    return {**edited(entries, change, of=WEIGHTS), "data/weights/weight_0": pickle.dumps(Marking(marker))}


@pytest.mark.parametrize(
    "make",
    [
        _pickled,
        lambda entries, marker: {**entries, "data/weights/model.pt": pickle.dumps(Marking(marker))},
        lambda entries, marker: {**entries, "data/constants/custom_obj_0": pickle.dumps(Marking(marker))},
        lambda entries, marker: {**entries, "data/constants/opaque_obj_0": pickle.dumps(Marking(marker))},
        lambda entries, marker: {**entries, "data/aotinductor/model/model.so": str(marker).encode()},
    ],
)
def test_what_needs_a_pickle_or_a_library_is_refused(
    make: Callable[[Entries, Path], Entries], entries: Entries, tmp_path: Path
) -> None:
    marker = tmp_path / "ran"
    with pytest.raises(UntrustedCodeError, match="pass --trust-code"):
        load(write(tmp_path / "m.pt2", make(entries, marker)))
    assert not marker.exists()


def test_trusted_code_is_run(entries: Entries, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    with suppress(ModelError):  # the marking object is no tuple of inputs
        load(write(tmp_path / "m.pt2", {**entries, SAMPLES: saved(Marking(marker))}), trust_code=True)
    assert marker.exists()


@pytest.mark.parametrize("name", ["../escaped", "../../models/model.json"])
def test_an_odd_name_is_refused(name: str, entries: Entries, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="odd name"):
        load(write(tmp_path / "m.pt2", {**entries, name: b""}))


def test_a_bomb_is_refused_before_it_is_unpacked(entries: Entries, tmp_path: Path) -> None:
    entries = {**entries, "data/weights/weight_9": bytes(10_000_000)}
    with pytest.raises(ModelError, match="compressed"):
        load(write(tmp_path / "m.pt2", entries, compression=zipfile.ZIP_DEFLATED))


def test_a_tensor_larger_than_the_file_is_refused(entries: Entries, tmp_path: Path) -> None:
    def grow(config: dict[str, Any]) -> None:
        next(iter(config["config"].values()))["tensor_meta"]["sizes"] = [{"as_int": 10**12}]

    with pytest.raises(ModelError, match="larger than the file holds"):
        load(write(tmp_path / "m.pt2", edited(entries, grow, of=WEIGHTS)))


@pytest.mark.parametrize("content", [b"[]", b"{}", b"[" * 100_000, b'{"graph_module": 3}', b"\xff"])
@pytest.mark.parametrize("entry", [GRAPH, WEIGHTS])
def test_a_damaged_description_is_one_line(
    entry: str, content: bytes, entries: Entries, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ModelError) as caught:
        load(write(tmp_path / "m.pt2", {**entries, entry: content}))
    assert "\n" not in str(caught.value)
    assert not caplog.records


def test_constants_and_extra_files(tmp_path: Path) -> None:
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("order", torch.tensor([2, 0, 1]), persistent=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert isinstance(self.order, torch.Tensor)
            return x.mean((2, 3))[:, self.order] + torch.tensor([1.0, 2.0, 3.0])

    path, images = tmp_path / "m.pt2", torch.rand(2, 3, 8, 8)
    exported = torch.export.export(Shifted(), (images,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    torch.export.save(exported, path, extra_files={"notes.txt": "trained in May"})
    assert torch.equal(load(path).module(images), Shifted()(images))


def test_a_program_in_half_precision_takes_float32_images(tmp_path: Path) -> None:
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3)).half().eval()
    images = torch.zeros(2, 3, 8, 8, dtype=torch.float16)
    path = tmp_path / "m.pt2"
    exported = torch.export.export(network, (images,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    torch.export.save(exported, path)
    model = load(path)
    assert "float16" in model.remarks[0]
    images = torch.rand(4, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(model.module(images), network(images.half()))

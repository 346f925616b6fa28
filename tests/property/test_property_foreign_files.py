"""Files of strangers, generated: whatever is in them, only a ``KdpipeError`` comes of it, or a result."""

from __future__ import annotations

import copy
import json
import math
import shutil
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kdpipe import models
from kdpipe.errors import KdpipeError, ParamsError
from kdpipe.stages.flags import resolve
from kdpipe.stages.fleet import students_of
from kdpipe.stages.settings.benchmark import Benchmark
from kdpipe.stages.settings.training import TrainStudent, TrainTeacher
from kdpipe.store.inspect import fidelity_lines, summary
from kdpipe.store.reader import open_store
from kdpipe.store.verify import verify_files
from kdpipe.store.writer import build
from kdpipe.testing.stores import small_plan, small_store
from tests.conftest import ROOT, run_command
from tests.unit.store.test_store_damage import signed

BOUNDED = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)

_LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, -1, 1, 2, 2**31, 2**63, -(2**70), 10**400, 0.5, -0.0, 1e-300, 1e308, math.nan, math.inf]),
    st.sampled_from(["", "abc", "\x1b[2J\u202e", "../../x", "/dev/zero", "x.y:make", "a" * 5000, "kd:", "1e9", "-5"]),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
)
_KEYS = st.text(max_size=8) | st.sampled_from(["kdpipe", "model", "classes", "lineage", "train", "seed"])
VALUES: st.SearchStrategy[Any] = st.recursive(
    _LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=3), max_leaves=8
) | st.sampled_from(["[[[[[]]]]]", "[" * 200 + "]" * 200, '{"a": {"b": {"c": {}}}}']).map(json.loads)
_DEEPEST = 8
"""Levels of a document whose values are changed."""


@st.composite
def places(draw: st.DrawFn, document: Any) -> tuple[Any, ...]:
    """Draw the path to a value of a document, ``()`` for the document's own; each step down is drawn evenly."""
    path: list[Any] = []
    while isinstance(document, dict | list) and document and len(path) < _DEEPEST and draw(st.integers(0, 4)):
        keys = list(document) if isinstance(document, dict) else list(range(len(document)))
        path.append(draw(st.sampled_from(keys)))
        document = document[path[-1]]
    return tuple(path)


@st.composite
def changed(draw: st.DrawFn, document: Any) -> Any:
    """Draw a copy of a document with one to three values replaced, removed or added."""
    result = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(places(result))
        if not path:
            if draw(st.integers(0, 9)) == 0:
                return draw(VALUES)
            continue
        parent = result
        for key in path[:-1]:
            parent = parent[key]
        what = draw(st.sampled_from(["replace", "replace", "replace", "remove", "add"]))
        if what == "remove":
            del parent[path[-1]]
        elif what == "add" and isinstance(parent, dict):
            parent[draw(_KEYS)] = draw(VALUES)
        else:
            parent[path[-1]] = draw(VALUES)
    return result


def one_line(error: KdpipeError) -> None:
    assert len(str(error)) < 4000
    assert str(error).strip()


def write_yaml(path: Path, content: Any) -> bool:
    """Write a document as YAML; return whether YAML can hold it."""
    try:
        path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    except (UnicodeEncodeError, ValueError, RecursionError):
        return False
    return True


PARAMS = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))


@BOUNDED
@given(changed(PARAMS))
def test_params(tmp_path_factory: pytest.TempPathFactory, content: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "params.yaml"
    if not write_yaml(path, content):
        return
    kinds = {"train_teacher": TrainTeacher, "train_student": TrainStudent, "benchmark": Benchmark}
    for section, kind in kinds.items():
        try:
            resolve(kind, section=section, file=path, flags={"data": "digits", "out": "x"})
        except ParamsError as error:
            one_line(error)


FLEET = [{"student": "resnet8", "loss": "dkd:beta=8", "learning_rate": 0.1}, {"student": "vgg8", "name": "b"}]


@BOUNDED
@given(changed(FLEET))
def test_fleet(tmp_path_factory: pytest.TempPathFactory, content: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "fleet.yaml"
    if not write_yaml(path, content):
        return
    params = TrainStudent.of({"data": "digits", "out": Path("x"), "fleet": path, "distill": "none"})
    try:
        students_of(params)
    except ParamsError as error:
        one_line(error)


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sealed") / "a.zarr"
    small_store(path)
    return path


def manifest_of(store: Path) -> Any:
    return json.loads((store / "zarr.json").read_bytes())["attributes"]["kdpipe"]


@BOUNDED
@given(data=st.data())
def test_manifest(sealed: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """With digests and checksum that fit."""
    store = tmp_path_factory.mktemp("forged") / "a.zarr"
    shutil.copytree(sealed, store)
    forged = data.draw(changed(manifest_of(sealed)))

    def replace(manifest: dict[str, Any]) -> None:
        if isinstance(forged, dict):
            manifest.clear()
            manifest.update(forged)

    try:
        signed(store, replace)
    except (TypeError, ValueError, KeyError, AttributeError):  # no manifest that anyone could sign
        return
    uses: list[Callable[[], object]] = [
        lambda: [str(line) for line in fidelity_lines(summary(store))],
        lambda: open_store(store).plane(0),
        lambda: open_store(store, split="test").labels,
        lambda: verify_files(store),
        lambda: _built(store),
    ]
    for use in uses:
        try:
            use()
        except KdpipeError as error:
            one_line(error)


def _built(store: Path) -> None:
    with build(store, small_plan(views=2)):
        pass


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "plain"
    small = ("--limit-train", 64, "--limit-test", 32, "--epochs", 1, "--batch-size", 32, "--no-dvclive")
    outcome = run_command(
        None, "train-student", "--distill", "none", "--student", "resnet8", "--data", "digits", *small, "--out", out
    )
    assert outcome.code == 0
    return out


@contextmanager
def copied(folder: Path, parent: Path) -> Iterator[Path]:
    copy_of = parent / "copy"
    shutil.rmtree(copy_of, ignore_errors=True)
    shutil.copytree(folder, copy_of)
    yield copy_of


@settings(BOUNDED, max_examples=40)
@given(data=st.data())
def test_run_directory(
    run: Path, tmp_path_factory: pytest.TempPathFactory, capfd: pytest.CaptureFixture[str], data: st.DataObject
) -> None:
    """Its records are changed; ``benchmark``, ``--resume`` and ``run:DIR`` read them."""
    name = data.draw(st.sampled_from(["run.json", "metrics.json", "history.csv"]))
    with copied(run, tmp_path_factory.getbasetemp()) as folder:
        path = folder / name
        if name == "history.csv":
            text = path.read_text(encoding="utf-8")
            at = data.draw(st.integers(0, len(text)))
            path.write_text(text[:at] + data.draw(st.text(st.characters(codec="utf-8"))) + text[at:], encoding="utf-8")
        else:
            path.write_text(json.dumps(data.draw(changed(json.loads(path.read_text(encoding="utf-8"))))))
        with suppress(KdpipeError):
            models.load(
                f"run:{folder}", num_classes=10, fallback_statistics=lambda: ((0.5,) * 3, (0.5,) * 3), fallback_size=32
            )
        shared = ("--data", "digits", "--limit-test", 32)
        report = tmp_path_factory.getbasetemp() / "report"
        small = ("--batch-size", 32, "--no-dvclive", "--limit-train", 64, "--epochs", 1)
        measure = ("benchmark", *shared, "--run", folder, "--rounds", 5, "--no-cold-starts", "--out", report)
        resume = ("train-student", *shared, *small, "--distill", "none", "--student", "resnet8", "--out", folder)
        for arguments in (measure, (*resume, "--resume")):
            outcome = run_command(None, *arguments)
            errors = capfd.readouterr().err
            assert outcome.code in (0, 1)
            assert "Traceback" not in errors
            assert outcome.code == 0 or len([each for each in errors.splitlines() if each.startswith("kdpipe:")]) == 1


@BOUNDED
@given(data=st.data())
def test_weights_header(run: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    content = (run / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    described = header["__metadata__"] | {
        key: json.loads(value) for key, value in header["__metadata__"].items() if value[:1] in "[{"
    }
    forged = data.draw(changed(described))
    metadata = forged
    if isinstance(forged, dict):
        metadata = {key: each if isinstance(each, str) else json.dumps(each) for key, each in forged.items()}
    text = json.dumps({**header, "__metadata__": metadata}).encode()
    weights = tmp_path_factory.getbasetemp() / "forged.safetensors"
    weights.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])
    try:
        model = models.load(
            "resnet8",
            num_classes=10,
            weights=weights,
            fallback_statistics=lambda: ((0.5,) * 3, (0.5,) * 3),
            fallback_size=32,
        )
        assert 0 < model.preset.size <= 4096
    except KdpipeError as error:
        one_line(error)


@BOUNDED
@given(data=st.data())
def test_weights_bytes(run: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    content = (run / "model.safetensors").read_bytes()
    at = data.draw(st.integers(0, 400))
    weights = tmp_path_factory.getbasetemp() / "broken.safetensors"
    weights.write_bytes(
        content[:at] + data.draw(st.binary(max_size=16)) + content[at + data.draw(st.integers(0, 16)) :]
    )
    with suppress(KdpipeError):
        models.load(
            "resnet8",
            num_classes=10,
            weights=weights,
            fallback_statistics=lambda: ((0.5,) * 3, (0.5,) * 3),
            fallback_size=32,
        )

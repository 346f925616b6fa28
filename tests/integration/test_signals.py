"""What a teacher's layers show beside its logits: cached, killed and resumed, inspected, verified."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr

from kdpipe import dataset, models, open_store
from kdpipe.pairing.join import join
from kdpipe.views import Geometry, Renderer
from tests.conftest import LIMITS, ROOT, Built, Outcome, refused, run_command
from tests.processes import Server

Kdpipe = Callable[..., Outcome]

SIGNALS = "features:layer2,layer3+attention:layer2"


def _cache(built: Built, out: Path, *extra: object) -> tuple[object, ...]:
    return (
        *("cache-teacher", *LIMITS, "--teacher", "resnet8", "--weights", built.weights, "--device", "cpu"),
        *("--batch-size", 64, "--out", out, *extra),
    )


@pytest.fixture(scope="module")
def store(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("signals") / "s.zarr"
    assert run_command(None, *_cache(built, out, "--signals", SIGNALS, "--views", 1)).code == 0
    return out


def test_every_view_is_what_the_layers_say_of_its_pixels(built: Built, store: Path) -> None:
    for split, limit, views in (("train", 200, 2), ("test", 60, 1)):
        data = dataset.load("digits", split, limit)
        teacher = models.load("resnet8", num_classes=10, weights=built.weights, fallback_statistics=data.statistics)
        net = teacher.module
        renderer = Renderer(data, "crop-flip", seed=0, geometry=Geometry.of(teacher.preset))
        opened = open_store(store, split)
        for view in range(views):
            with torch.no_grad():
                images = teacher.preset.normalize(renderer(range(limit), view))
                second = net.layer2(net.layer1(torch.relu(net.bn1(net.conv1(images)))))
                third = net.layer3(second)
            squares = second.square().mean(1)
            expected = {
                "features:layer2": second.mean((2, 3)),
                "features:layer3": third.mean((2, 3)),
                "attention:layer2": squares / squares.amax((1, 2), keepdim=True),
            }
            assert set(opened.signals) == set(expected)
            for name, signals in expected.items():
                found = opened.signal(name, join(opened, data), view)
                assert found.shape == tuple(signals.shape)
                assert np.abs(found - signals.numpy()).max() <= 1e-3 * (1 + float(signals.abs().max()))


def test_a_stranger_reads_them_with_zarr_alone(store: Path) -> None:
    root = zarr.open_group(store, mode="r")
    said = root.attrs["kdpipe"]["signals"]
    assert said == {"attention:layer2": [16, 16], "features:layer2": [32], "features:layer3": [64]}
    for name, shape in said.items():
        array = root["train/" + name.replace(":", "-").replace(".", "-")][...]
        assert array.dtype == np.float16
        assert array.shape == (2, 200, int(np.prod(shape)))


def test_logits_may_stand_among_them(built: Built, kdpipe: Kdpipe, tmp_path: Path) -> None:
    """Two ways of writing the same signals make the same store, to the digest."""
    store = tmp_path / "store.zarr"
    assert kdpipe(*_cache(built, store, "--signals", "features:penultimate,layer3", "--views", 0)).code == 0
    again = kdpipe(*_cache(built, store, "--signals", "logits+features:layer3+features:penultimate", "--views", 0))
    assert "nothing to do" in again.err
    opened, rows = open_store(store), range(200)
    pooled = opened.signal("features:layer3", rows)
    assert np.abs(pooled - opened.features(rows)).max() < 1e-3  # a resnet pools the output of layer3


def test_views_are_added(built: Built, kdpipe: Kdpipe, store: Path, tmp_path: Path) -> None:
    grown = tmp_path / "grown.zarr"
    assert kdpipe(*_cache(built, grown, "--signals", SIGNALS, "--views", 0)).code == 0
    assert kdpipe(*_cache(built, grown, "--signals", SIGNALS, "--views", 1)).code == 0
    assert open_store(grown).digest == open_store(store).digest
    other = kdpipe(*_cache(built, grown, "--signals", "features:layer3", "--views", 1))
    refused(other, "features:layer2: the store has 32, asked for none", "--overwrite")


def test_killed_at_any_moment_it_ends_with_the_same_digest(
    built: Built, store: Path, tmp_path: Path, commands: Server, kdpipe: Kdpipe
) -> None:
    out = tmp_path / "killed.zarr"
    arguments = _cache(built, out, "--signals", SIGNALS, "--views", 1)
    ledger = out.with_name(out.name + ".ledger")
    killed = 0
    for lines in (0, 5, 10):  # a shard is five files
        process = commands.start(*arguments)
        deadline = time.monotonic() + 60
        while process.poll() is None and (not ledger.exists() or ledger.read_bytes().count(b"\n") < lines):
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.kill()
        killed += process.wait() == -signal.SIGKILL
    assert killed >= 2
    assert kdpipe(*arguments).code == 0
    assert open_store(out).digest == open_store(store).digest
    for file in store.rglob("*"):
        if file.is_file() and file.name != "zarr.json":
            assert (out / file.relative_to(store)).read_bytes() == file.read_bytes()


def test_inspect_and_verify(store: Path, kdpipe: Kdpipe) -> None:
    found = json.loads(kdpipe("inspect", store, "--json").out)["signals"]
    assert {name: signal["shape"] for name, signal in found.items()} == {
        "attention:layer2": [16, 16],
        "features:layer2": [32],
        "features:layer3": [64],
    }
    for signals in found.values():
        stored = sum(file.stat().st_size for file in store.glob(f"*/{signals['array']}/c/**/*") if file.is_file())
        assert signals["bytes"] == stored > 0
    assert "signals.attention:layer2.bytes" in kdpipe("inspect", store).out
    assert kdpipe("verify", store, "--deep").code == 0


def test_verify_notices_a_changed_bit(store: Path, kdpipe: Kdpipe) -> None:
    path = store / "train/attention-layer2/c/1/0/0"
    content = path.read_bytes()
    try:
        path.write_bytes(content[:100] + bytes([content[100] ^ 4]) + content[101:])
        verified = kdpipe("verify", store)
        assert verified.code == 1
        assert "train/attention-layer2/c/1/0/0 does not match its digest" in verified.err
    finally:
        path.write_bytes(content)


@pytest.mark.parametrize(
    ("signals", "parts"),
    [
        ("features:layr3", ("no layer 'layr3'", "did you mean 'layer3'?", "kdpipe models resnet8 --layers")),
        ("attention:fc", ("attention:fc of resnet8", "(10,)", "(channels, H, W)")),
        ("layer3", ("--signals", "'layer3' is no signal", "features:LAYER")),
        ("attention:penultimate", ("--signals", "penultimate")),
    ],
)
def test_what_cannot_be_kept_is_one_line(
    signals: str, parts: tuple[str, ...], built: Built, kdpipe: Kdpipe, tmp_path: Path
) -> None:
    out = tmp_path / "l.zarr"
    refused(kdpipe(*_cache(built, out, "--signals", signals)), *parts)
    assert not out.exists()


def test_several_teachers_have_no_mean_of_them(built: Built, kdpipe: Kdpipe, tmp_path: Path) -> None:
    second = ("--teacher", "resnet8", "--weights", built.weights, "--average")
    both = kdpipe(*_cache(built, tmp_path / "l.zarr", *second, "--signals", SIGNALS))
    refused(both, "signals of several teachers have no mean", "--signals")


def test_models_lists_layers_at_the_model_s_own_size(kdpipe: Kdpipe) -> None:
    heading, *rows = kdpipe("models", "resnet8", "--layers").out.splitlines()
    assert "32 x 32" in heading
    listed = {row.split("  ", 1)[0]: row.split("  ", 1)[1].strip() for row in rows}
    assert listed["layer2"] == "32 x 16 x 16"
    assert listed["fc"] == "10"
    assert listed["penultimate"] == "64, the input of fc"
    large = kdpipe("models", "torchvision:resnet18", "--layers").out
    assert "224 x 224" in large.splitlines()[0]
    assert any(row.split() == ["layer4", "512", "x", "7", "x", "7"] for row in large.splitlines())
    small = kdpipe("models", "resnet8", "--layers", "--size", 16).out
    assert any(row.split() == ["layer2", "32", "x", "8", "x", "8"] for row in small.splitlines())
    refused(kdpipe("models", "--layers"), "models --layers needs the name of one model")


def test_the_documented_script_reads_them(store: Path, tmp_path: Path) -> None:
    blocks = (ROOT / "docs" / "reference" / "format.md").read_text().split("```python\n")[1:]
    (script,) = [block.split("```")[0] for block in blocks if '"signals"' in block.split("```")[0]]
    (tmp_path / "read.py").write_text("import sys\nsys.modules['kdpipe'] = None\n" + script)
    ran = subprocess.run([sys.executable, tmp_path / "read.py", store], check=True, capture_output=True, text=True)
    lines = [line.rsplit(" ", 1) for line in ran.stdout.splitlines()]
    shown = {place: float(mean) for place, mean in lines}
    assert shown.keys() == {
        "attention:layer2 (2, 200, 16, 16)",
        "features:layer2 (2, 200, 32)",
        "features:layer3 (2, 200, 64)",
    }
    ours = np.stack([open_store(store).signal("features:layer3", range(200), view) for view in range(2)])
    assert shown["features:layer3 (2, 200, 64)"] == pytest.approx(float(ours.mean()), rel=1e-5)


def test_the_documented_python_reads_them(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = [
        block.split("```")[0]
        for block in (ROOT / "docs" / "guides" / "signals.md").read_text().split("```python\n")[1:]
    ]
    (tmp_path / "logits.zarr").symlink_to(store)
    monkeypatch.chdir(tmp_path)
    scope: dict[str, torch.Tensor] = {}
    exec(code, scope)
    assert scope["features"].shape == (128, 64)
    assert scope["features"].dtype == torch.float32

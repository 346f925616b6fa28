"""Engines: the same logits from the same images, what each can, and what is left out with a reason."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from kdpipe import models
from kdpipe.benchmark.engines import ENGINES, Origin, Subject
from kdpipe.benchmark.measuring import Grid, Measured, time_networks
from kdpipe.benchmark.starts import measure_start
from kdpipe.benchmark.timing import Network
from kdpipe.errors import ModelError, ParamsError
from kdpipe.models import Preset
from tests.conftest import Outcome

PRESET = Preset(8, 8, "bilinear", (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
IMAGES = np.random.default_rng(0).integers(0, 256, (12, 3, 8, 8), dtype=np.uint8)


class Tiny(nn.Module):
    """A convolution, ReLU, the mean over all pixels, and a linear layer."""

    def __init__(self, *, noise: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.linear, self.noise = nn.Conv2d(3, 4, 3), nn.Linear(4, 5), noise

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.linear(torch.relu(self.conv(images)).mean(dim=(2, 3)))
        return logits + self.noise * torch.rand_like(logits) if self.noise else logits


def _in_float64(tiny: Tiny, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """Return the logits in plain numpy, normalization included."""
    state = {name: each.double().numpy() for name, each in tiny.state_dict().items()}
    mean, std = (np.array(each).reshape(1, 3, 1, 1) for each in (PRESET.mean, PRESET.std))
    windows = np.lib.stride_tricks.sliding_window_view((images / 255 - mean) / std, (3, 3), axis=(2, 3))
    convolved = np.einsum("nchwij,ocij->nohw", windows, state["conv.weight"]) + state["conv.bias"][:, None, None]
    pooled: npt.NDArray[np.float64] = np.maximum(convolved, 0).mean(axis=(2, 3))
    logits: npt.NDArray[np.float64] = pooled @ state["linear.weight"].T + state["linear.bias"]
    return logits


def _subject(module: nn.Module | None = None, *, calibrated: bool = True, architecture: str = "tiny") -> Subject:
    module = (Tiny() if module is None else module).eval()
    network = Network.of(module, architecture=architecture, size=8)
    return Subject(network, module, PRESET, IMAGES, calibration=(lambda: IMAGES) if calibrated else None)


@pytest.fixture(scope="module")
def shared() -> Subject:
    """A subject whose forms are made once."""
    return _subject()


def _timed(subject: Subject, **grid: Any) -> Measured:
    return time_networks([subject], Grid(**{"batch_sizes": (1, 8)} | grid), rounds=5)


@pytest.mark.parametrize("engine", ["eager", "onnx", "openvino"])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_the_logits_are_those_of_plain_numpy(engine: str, batch_size: int, shared: Subject) -> None:
    made = ENGINES.make(engine)
    run = made.load(shared.source(made.form), threads=1, batch_size=batch_size, device="cpu")
    logits = np.concatenate([run(IMAGES[start : start + batch_size]) for start in range(0, 12, batch_size)])
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, _in_float64(Tiny(), IMAGES), atol=1e-5)


@pytest.mark.slow
def test_compiled_networks_are_compiled_however_many_there_are(shared: Subject) -> None:
    """Torch silently runs eagerly after ``recompile_limit`` compilations of the same code."""
    made, graphs = ENGINES.make("compile"), torch._dynamo.utils.counters["stats"]
    with torch._dynamo.config.patch(recompile_limit=1):
        for batch_size in (1, 4):
            before = graphs["unique_graphs"]
            run = made.load(shared.source("module"), threads=1, batch_size=batch_size, device="cpu")
            assert graphs["unique_graphs"] == before + 1
            np.testing.assert_allclose(run(IMAGES[:batch_size]), _in_float64(Tiny(), IMAGES[:batch_size]), atol=1e-5)


def test_every_workload_of_the_grid_is_timed_once_and_checked(shared: Subject) -> None:
    grid: dict[str, Any] = {"engines": ("eager", "onnx", "openvino"), "precisions": ("fp32", "int8"), "threads": (1, 2)}
    measured = _timed(shared, **grid)
    found = [(each.engine, each.precision, each.threads, each.batch_size) for each in measured.timings]
    made = [("eager", "fp32"), *((name, precision) for name in ("onnx", "openvino") for precision in ("fp32", "int8"))]
    assert found == [(*each, threads, batch) for each in made for threads in (1, 2) for batch in (1, 8)]
    assert measured.notes == ("eager has no int8, and is timed without it.",)
    for workload, timing in measured.timings.items():
        assert (timing.rounds, timing.device, timing.batch_size) == (5, "cpu", workload.batch_size)
        assert timing.difference is not None
        assert timing.agreement is not None
        assert timing.difference <= (1e-5 if workload.precision == "fp32" else 0.1)
        assert timing.agreement == 1 if workload.precision == "fp32" else timing.agreement >= 0.5
    (cost,) = measured.costs.values()
    assert (cost.parameters, cost.macs) == (3 * 4 * 9 + 4 + 4 * 5 + 5, 36 * 4 * 27 + 4 * 5)
    assert set(cost.format_bytes) == {"onnx", "onnx int8"}


def test_the_agreement_of_int8_is_counted(shared: Subject) -> None:
    """The figures are those of the logits that the engine returns, compared with eager by hand."""
    measured = _timed(shared, engines=("onnx",), precisions=("int8",), batch_sizes=(4,))
    run = ENGINES.make("onnx").load(shared.source("onnx", "int8"), threads=1, batch_size=4, device="cpu")
    logits, expected = run(IMAGES), _in_float64(Tiny(), IMAGES)
    (timing,) = measured.timings.values()
    assert timing.agreement == np.mean(logits.argmax(axis=1) == expected.argmax(axis=1))
    assert timing.difference == pytest.approx(np.abs(logits - expected).max(), abs=1e-5)
    assert timing.difference > 1e-4


def test_other_logits_than_those_of_eager_are_left_out() -> None:
    measured = _timed(_subject(Tiny(noise=1.0)), batch_sizes=(1,))
    assert measured.timings == {}
    (note,) = measured.notes
    assert note.startswith("tiny with eager fp32 is not timed: its logits differ from those of eager by ")


def test_int8_without_training_images_is_left_out(shared: Subject) -> None:
    subject = _subject(calibrated=False)
    subject.forms["onnx", "fp32"] = shared.source("onnx")
    measured = _timed(subject, engines=("onnx",), precisions=("fp32", "int8"), batch_sizes=(1,))
    assert [each.precision for each in measured.timings] == ["fp32"]
    assert measured.notes == (
        "tiny with onnx int8 is not timed: int8 is calibrated with training images, and there are none.",
    )


CALLS: list[tuple[torch.Size, torch.dtype, bool, bool]] = []


class Recording(nn.Module):
    """Records what it is called with."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        CALLS.append(
            (images.shape, images.dtype, self.training or self.norm.training, torch.is_inference_mode_enabled())
        )
        return self.norm(images).mean(dim=(2, 3))


@pytest.mark.parametrize(("whole", "norm"), [(True, True), (True, False), (False, False)])
def test_eager_passes_are_in_evaluation_and_inference_mode_and_the_module_keeps_its_own(
    whole: bool, norm: bool
) -> None:
    module = Recording().train(whole)
    module.norm.train(norm)
    network = Network.of(module, architecture="recording", size=8)
    CALLS.clear()
    measured = time_networks([Subject(network, module, PRESET, IMAGES)], Grid(batch_sizes=(6,)), rounds=5)
    (timing,) = measured.timings.values()
    of_six = [call for call in CALLS if call == (torch.Size([6, 3, 8, 8]), torch.float32, False, True)]
    assert len(of_six) >= timing.repeats
    assert {call[2] for call in CALLS} == {False}
    assert (module.training, module.norm.training) == (whole, norm)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_is_waited_for() -> None:
    module = nn.Sequential(
        *[nn.Conv2d(3, 3, 3, padding=1) for _ in range(20)], nn.Flatten(), nn.Linear(3 * 256 * 256, 2)
    )
    preset = Preset(256, 256, "bilinear", PRESET.mean, PRESET.std)
    images = np.zeros((64, 3, 256, 256), dtype=np.uint8)
    network = Network.of(module, architecture="deep", size=256)
    subject = Subject(network, module.eval(), preset, images)
    small, large = time_networks([subject], Grid(device="cuda"), rounds=5).timings.values()
    assert large.p50_ms > 2 * small.p50_ms
    assert (large.device, large.wall_over_cpu) == ("cuda", None)


class Branching(nn.Module):
    """Takes another way for dark images, which no exporter can follow."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)[:, :2] * (1.0 if images.sum().item() > 0 else 2.0)


def test_a_network_that_an_engine_does_not_take_is_left_out_with_the_reason() -> None:
    measured = _timed(_subject(Branching()), engines=("eager", "onnx"), batch_sizes=(12,))
    assert [each.engine for each in measured.timings] == ["eager"]
    (note,) = measured.notes
    assert note.startswith("tiny with onnx fp32 is not timed: this network cannot be written as ONNX: ")


@pytest.mark.parametrize(
    ("grid", "error", "message"),
    [
        (Grid(precisions=("int8",)), ParamsError, "eager has no int8"),
        (Grid(engines=("onxx",)), ParamsError, "did you mean 'onnx'"),
        (Grid(engines=("onnx",), device="cuda:1"), ParamsError, "onnx runs on cpu, not on cuda:1"),
    ],
)
def test_nothing_to_time(grid: Grid, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        grid.check()


@pytest.mark.parametrize(
    ("engine", "package", "extra"), [("onnx", "onnxruntime", "deploy"), ("openvino", "openvino", "openvino")]
)
def test_a_missing_package_names_its_extra(
    engine: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        ModelError,
        match=rf"the engine {engine} cannot run: {package} is not installed: pip install 'kdpipe\[{extra}\]'",
    ):
        Grid(engines=(engine,)).check()


def test_compile_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ModelError, match=r"the engine compile cannot run: torch\.compile needs a C\+\+ compiler"):
        Grid(engines=("compile",)).check()


def test_list_engines(kdpipe: Callable[..., Outcome]) -> None:
    listed = kdpipe("list", "engines")
    assert listed.code == 0
    assert [line.split()[0] for line in listed.out.splitlines()] == ["written", "eager", "compile", "onnx", "openvino"]


def test_memory_and_load_time_are_those_of_a_process_without_torch(shared: Subject) -> None:
    found = measure_start(
        "kdpipe.export.runtimes:onnx_run",
        shared.source("onnx"),
        packages=("onnxruntime",),
        threads=1,
        batch_sizes=(1, 4096),
        size=8,
        static=False,
    )
    assert set(found) == {1, 4096}
    assert found[1].load_ms == found[4096].load_ms
    assert 0 < found[1].load_ms < 60_000
    assert 10e6 < found[1].libraries_bytes < found[1].peak_bytes < 200e6  # importing torch takes more
    activations = 4 * 4096 * (3 * 64 + 4 * 36)
    assert found[4096].peak_bytes - found[1].peak_bytes > activations / 2


def test_a_process_that_fails_says_why() -> None:
    arguments: dict[str, Any] = {"packages": (), "threads": 1, "batch_sizes": (1,), "size": 8, "static": False}
    with pytest.raises(ModelError, match="the process that loads it failed: ONNX Runtime does not load this model"):
        measure_start("kdpipe.export.runtimes:onnx_run", b"no model", **arguments)


def test_a_signal_is_handled_after_networks_in_openvino_are_gone(shared: Subject, tmp_path: Path) -> None:
    """Each core of OpenVINO that is freed takes the stack for signals with it, so there is one only."""
    (tmp_path / "tiny.onnx").write_bytes(shared.source("onnx"))
    code = (
        "import gc, pathlib, signal, sys\n"
        "from kdpipe.export.runtimes import openvino_run\n"
        "for _ in range(4):\n"
        "    run = openvino_run(pathlib.Path(sys.argv[1]).read_bytes(), threads=1, batch_size=1)\n"
        "del run\n"
        "gc.collect()\n"
        "signal.signal(signal.SIGINT, lambda *_: print('handled'))\n"
        "signal.raise_signal(signal.SIGINT)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "tiny.onnx"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "handled\n")


def test_the_process_ends_with_the_one_that_started_it(tmp_path: Path) -> None:
    """A killed benchmark leaves nothing behind: here a network that takes a minute to load."""
    (tmp_path / "slow.py").write_text(
        "import pathlib, os, time\n"
        "def load(origin, threads, batch_size):\n"
        "    pathlib.Path(origin['pid']).write_text(str(os.getpid()))\n"
        "    time.sleep(60)\n"
    )
    pid = tmp_path / "pid"
    code = (
        "from kdpipe.benchmark.starts import measure_start\n"
        f"measure_start('slow:load', {{'pid': {str(pid)!r}}}, packages=(), threads=1, batch_sizes=(1,), size=8, "
        "static=False)"
    )
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    parent = subprocess.Popen([sys.executable, "-c", code], env=environment)
    while not pid.exists() or not pid.read_text():
        assert parent.poll() is None
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    for _ in range(200):
        if not _runs(int(pid.read_text())):
            return
        time.sleep(0.05)
    raise AssertionError("the process still runs")


def _runs(pid: int) -> bool:
    """Return whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
def test_the_weights_of_a_run_are_loaded_in_a_process_of_their_own(tmp_path: Any) -> None:
    from kdpipe.models import save_weights

    module = models.create("resnet8", 10)
    weights = tmp_path / "model.safetensors"
    save_weights(weights, module, architecture="resnet8", preset=PRESET, classes=tuple("0123456789"))
    subject = _subject(module, architecture="resnet8")
    subject.origin = Origin("resnet8", 10, str(weights))
    measured = time_networks([subject], Grid(batch_sizes=(1,)), rounds=5, cold_starts=True)
    assert measured.notes == ()
    (timing,) = measured.timings.values()
    assert timing.start is not None
    assert timing.start.load_ms > 0
    assert timing.start.peak_bytes > timing.start.libraries_bytes > 50e6

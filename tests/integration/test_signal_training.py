"""Students that learn from the teacher's layers: against a plain loop, killed and resumed, and what is refused."""

from __future__ import annotations

import csv
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from kdpipe import dataset, models, open_store
from kdpipe.distil.losses import make, parse
from kdpipe.distil.objective import Distillation, DistillationObjective
from kdpipe.distil.signals import SignalTerms, settle
from kdpipe.distil.targets import soft_targets
from kdpipe.pairing.join import join_checked
from kdpipe.store.plan import Limits
from kdpipe.training.loop import train
from kdpipe.training.runs import RunDirectory
from kdpipe.training.schedule import Order
from kdpipe.training.settings import Optimization
from kdpipe.training.trainee import Student
from kdpipe.views import Geometry, Renderer
from tests.conftest import LIMITS, Built, Outcome, refused, run_command
from tests.processes import Server, Started

Kdpipe = Callable[..., Outcome]

SIGNALS = "features:layer3,penultimate+attention:layer2"
LOSS = "kd:weight=0.5+features:layer2:layer3,weight=2+attention+rkd:angle=1"


@pytest.fixture(scope="module")
def store(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The teacher's store with signals, in chunks of 10 samples."""
    out = tmp_path_factory.mktemp("signals") / "s.zarr"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kdpipe.store.plan.LIMITS", Limits(chunk_bytes=10 * 2 * 256))
        made = run_command(
            *(None, "cache-teacher", *LIMITS, "--teacher", "resnet8", "--weights", built.weights, "--device", "cpu"),
            *("--signals", SIGNALS, "--views", 2, "--out", out),
        )
    assert made.code == 0
    return out


def _train(store: Path, out: Path, *flags: object, loss: str = LOSS) -> tuple[object, ...]:
    return (
        *("train-student", *LIMITS, "--store", store, "--student", "resnet8", "--input-size", 16, "--out", out),
        *("--device", "cpu", "--epochs", 2, "--batch-size", 64, "--loss", loss, *flags),
    )


def _history(run: Path) -> list[dict[str, str]]:
    with (run / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [{key: text for key, text in row.items() if key not in ("seconds", "images_per_second")} for row in rows]


def _unit(maps: torch.Tensor) -> torch.Tensor:
    return maps.flatten(1) / maps.flatten(1).norm(dim=1, keepdim=True)


def test_the_loop_does_what_a_plain_one_does(store: Path, tmp_path: Path) -> None:
    """Two epochs of all samples in one batch each, so order plays no part; with a learned projection."""
    digits = dataset.load("digits", "train", 200)
    settings = Optimization(
        epochs=2, batch_size=200, lr=0.05, weight_decay=1e-3, warmup_epochs=0, lr_schedule="constant"
    )

    def student() -> models.Model:
        torch.manual_seed(1)
        return models.load("resnet8", num_classes=10, fallback_statistics=digits.statistics)

    losses = parse("features:layer2:layer3,weight=2+attention:weight=30").layers
    opened = open_store(store, beside=["features:layer3", "attention:layer2"])
    ours = student()
    settled = settle(losses, opened.signals, ours.module, size=32, name="resnet8", source="s")
    signals = SignalTerms(
        settled,
        ours.module,
        shapes=opened.manifest.kept,
        size=32,
        name="resnet8",
        seed=4,
        device=torch.device("cpu"),
    )
    rows = join_checked(opened, digits)
    renderer = Renderer(digits, "crop-flip", seed=0, geometry=Geometry.of(ours.preset))
    initial = {name: value.clone() for name, value in signals.projections.state_dict().items()}
    distillation = Distillation(make("kd"), kd_weight=0.7, ce_weight=0.3, signals=signals)
    objective = DistillationObjective(ours.preset, distillation)
    train(
        Student(ours.module, renderer, objective, settings, RunDirectory(tmp_path / "run")),
        soft_targets(opened, rows),
        order=Order(data_seed=0, views=2),
    )

    plain = student()
    projection = torch.nn.Linear(32, 64)
    projection.load_state_dict({name.rpartition(".")[2]: value for name, value in initial.items()})
    net, labels = plain.module.train(), torch.from_numpy(digits.labels.astype(np.int64))
    parameters = [*net.parameters(), *projection.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=1e-3, nesterov=True)
    expected = []
    for view in (1, 2):
        images = plain.preset.normalize(renderer(range(200), view))
        first = net.layer1(torch.relu(net.bn1(net.conv1(images))))
        second = net.layer2(first)
        logits = net.fc(net.layer3(second).mean((2, 3)))
        taught = torch.from_numpy(open_store(store).logits(rows, view))
        features = torch.from_numpy(open_store(store).signal("features:layer3", rows, view))
        maps = torch.from_numpy(open_store(store).signal("attention:layer2", rows, view))
        kd = 16 * torch.nn.functional.kl_div(
            (logits / 4).log_softmax(1), (taught / 4).log_softmax(1), log_target=True, reduction="batchmean"
        )
        regression = (projection(second.mean((2, 3))) - features).square().mean()
        attention = (_unit(second.square().mean(1)) - _unit(maps)).square().mean() / 2
        term = kd + 2 * regression + 30 * attention
        loss = 0.7 * term + 0.3 * torch.nn.functional.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        expected.append([float(value.detach()) for value in (loss, term, regression, attention)])
    found = [
        [float(row[name]) for name in ("loss", "kd", "features", "attention")] for row in _history(tmp_path / "run")
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    for name, value in net.state_dict().items():
        torch.testing.assert_close(ours.module.state_dict()[name], value, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(signals.projections.state_dict()["features.0.weight"], projection.weight.detach())
    assert not torch.equal(projection.weight.detach(), initial["features.0.weight"])
    assert not any(part._forward_hooks for part in ours.module.modules())


def test_a_run_has_a_column_for_each_and_a_model_without_projections(
    store: Path, kdpipe: Kdpipe, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert kdpipe(*_train(store, run)).code == 0
    for row in _history(run):
        assert float(row["loss"]) > 0
        assert {"kd", "ce", "features", "attention", "rkd"} <= row.keys()
    saved = load_file(run / "model.safetensors")
    assert saved.keys() <= models.create("resnet8", 10).state_dict().keys()
    lower = kdpipe(*_train(store, tmp_path / "alone", "--ema", 0.9, "--clip-grad-norm", 1, loss="rkd"))
    assert lower.code == 0
    assert [row["kd"] == row["rkd"] for row in _history(tmp_path / "alone")] == [True, True]


def test_signals_that_do_not_fit_in_memory_are_learned_from_in_windows(
    store: Path, kdpipe: Kdpipe, tmp_path: Path
) -> None:
    row = open_store(store, beside=open_store(store).signals).row_bytes
    limit = 2 * 60 * row / 1024**3
    run = tmp_path / "run"
    assert kdpipe(*_train(store, run, "--memory-limit", f"{limit:.12f}")).code == 0
    whole = tmp_path / "whole"
    assert kdpipe(*_train(store, whole)).code == 0
    assert _history(run) != _history(whole)
    assert abs(float(_history(run)[0]["features"]) / float(_history(whole)[0]["features"]) - 1) < 0.3


def test_killed_and_resumed_it_ends_with_the_same_bytes(store: Path, commands: Server, tmp_path: Path) -> None:
    def start(out: Path, *flags: object) -> Started:
        return commands.start(*_train(store, out, "--checkpoint-every", 0, "--epochs", 8, *flags))

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(whole).wait() == 0
    resume: tuple[str, ...] = ()
    for steps in (2, 4):
        process, seen, deadline = start(killed, *resume), 0, time.monotonic() + 60
        newest = 0
        while seen < steps and process.poll() is None:
            assert time.monotonic() < deadline
            written = (killed / "checkpoint.pt").stat().st_mtime_ns if (killed / "checkpoint.pt").exists() else 0
            seen, newest = seen + (written != newest), written
            time.sleep(0.0005)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        resume = ("--resume",)
    assert start(killed, *resume).wait() == 0
    assert (killed / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert _history(killed) == _history(whole)


def test_what_cannot_be_learned_from_is_one_line(built: Built, store: Path, kdpipe: Kdpipe, tmp_path: Path) -> None:
    run = tmp_path / "run"
    flag = "kdpipe cache-teacher --signals features:layer3"
    refused(kdpipe(*_train(built.store, run, loss="features:layer3")), flag)
    lacking = kdpipe(*_train(built.store, run, loss="kd+features"))
    refused(lacking, "learns from features:penultimate", "--signals features:penultimate")
    refused(kdpipe(*_train(store, run, loss="features:layer9:layer3")), "no layer 'layer9'")
    refused(kdpipe(*_train(store, run, "--temperature", 2, loss="features")), "--temperature 2 has no effect")
    both = kdpipe(*_train(store, run, "--store", built.store, loss="features"))
    refused(both, "the loss features learns from the signals of one store", "found 2 stores")
    live = ("--teacher", "resnet8", "--weights", built.weights, "--distill", "live")
    refused(kdpipe(*_train(store, run, *live, loss="features")), "found a live teacher")
    assert not run.exists()


def test_students_that_are_trained_together_learn_as_each_does_alone(
    store: Path, kdpipe: Kdpipe, tmp_path: Path
) -> None:
    """One learns from features, one from maps, one from logits alone; they share the planes."""
    losses = {"hints": "features:weight=3", "maps": "kd+attention", "plain": "kd"}
    listed = [f"- {{name: {name}, student: resnet8, loss: '{loss}', seed: 3}}" for name, loss in losses.items()]
    fleet = tmp_path / "fleet.yaml"
    fleet.write_text("\n".join(listed))
    shared = ("train-student", *LIMITS, "--store", store, "--input-size", 16, "--device", "cpu", "--epochs", 2)
    assert kdpipe(*shared, "--fleet", fleet, "--out", tmp_path / "all").code == 0
    for name, loss in losses.items():
        alone = tmp_path / name
        assert kdpipe(*shared, "--student", "resnet8", "--loss", loss, "--seed", 3, "--out", alone).code == 0
        weights = [(run / "model.safetensors").read_bytes() for run in (alone, tmp_path / "all" / name)]
        assert weights[0] == weights[1]

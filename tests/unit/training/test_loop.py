"""The training loop against a plain PyTorch loop, its own interruption, and cached against live targets."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from kdpipe import dataset, models, open_store
from kdpipe.dataset import Loading
from kdpipe.distil.losses import make
from kdpipe.distil.objective import Distillation
from kdpipe.distil.targets import CachedTargets, LiveTargets
from kdpipe.errors import DivergedError
from kdpipe.models import Model, Preset
from kdpipe.pairing import join_checked
from kdpipe.teacher import Forward
from kdpipe.training.batches import Batches
from kdpipe.training.evaluation import predict
from kdpipe.training.loop import train
from kdpipe.training.objective import cross_entropy
from kdpipe.training.runs import RunDirectory
from kdpipe.training.schedule import Schedule, epoch_batches, learning_rate
from kdpipe.views import Geometry, Renderer, render
from tests.conftest import Built

SCHEDULE = Schedule(epochs=3, batch_size=32, lr=0.05, weight_decay=5e-4, warmup_epochs=1, data_seed=3, views=2)


@pytest.fixture
def digits() -> dataset.Dataset:
    return dataset.load("digits", "train", 200)


def _student(digits: dataset.Dataset) -> Model:
    torch.manual_seed(1)
    return models.load("resnet8", num_classes=10, fallback_statistics=digits.statistics)


def _renderer(digits: dataset.Dataset, preset: Preset) -> Renderer:
    return Renderer(digits, "crop-flip", seed=0, geometry=Geometry.of(preset))


def _start(path: Path) -> RunDirectory:
    path.mkdir()
    return RunDirectory(path)


def _assert_same_weights(first: torch.nn.Module, second: torch.nn.Module) -> None:
    for (name, mine), other in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(mine, other), name


def test_without_a_teacher_it_is_a_plain_loop(digits: dataset.Dataset, tmp_path: Path) -> None:
    ours, plain = _student(digits), _student(digits)
    train(
        ours.module,
        _renderer(digits, ours.preset),
        preset=ours.preset,
        schedule=SCHEDULE,
        distillation=None,
        run=_start(tmp_path / "run"),
    )

    model = plain.module.train()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4, nesterov=True)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (plain.preset.mean, plain.preset.std))
    step = 0
    for epoch in range(3):
        for rows in epoch_batches(200, batch_size=32, data_seed=3, epoch=epoch):
            pixels = render(digits, "crop-flip", seed=0, indices=rows, view=1 + epoch % 2)
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(step, steps=21, warmup=7, peak=0.05)
            loss = F.cross_entropy(
                model((pixels.float() / 255 - mean) / std), torch.from_numpy(digits.labels[rows]).long()
            )
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            step += 1
    for mine, other in zip(ours.module.parameters(), model.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_figures_of_labels_are_means_over_the_labelled_samples(digits: dataset.Dataset, tmp_path: Path) -> None:
    labels = np.where(np.arange(len(digits)) % 5 == 0, digits.labels, -1).astype(np.int32)
    part = replace(digits, labels=labels)
    student = _student(part)
    renderer = _renderer(part, student.preset)
    run = _start(tmp_path / "run")
    frozen = replace(SCHEDULE, lr=1e-12, epochs=1, weight_decay=0.0)
    targets = LiveTargets(lambda pixels: torch.zeros(len(pixels), 10), None)
    train(
        student.module,
        renderer,
        preset=student.preset,
        schedule=frozen,
        distillation=Distillation(targets, make("kd"), kd_weight=0.5, ce_weight=0.5),
        run=run,
    )
    plain = _student(part)
    losses, hits = [], []
    for rows in epoch_batches(len(part), batch_size=32, data_seed=3, epoch=0):
        with torch.no_grad():
            logits = plain.module.train()(plain.preset.normalize(renderer(rows, 1)))
        for row, each in zip(rows, logits, strict=True):
            if labels[row] >= 0:
                losses.append(-torch.log_softmax(each.double(), 0)[int(labels[row])].item())
                hits.append(each.argmax().item() == labels[row])
    assert len(losses) == 40
    (row,) = run.history()
    assert row["ce"] == pytest.approx(np.mean(losses), rel=1e-4)
    assert row["train_top1"] == pytest.approx(np.mean(hits))


def test_resumed_equals_uninterrupted(digits: dataset.Dataset, tmp_path: Path) -> None:
    whole, cut, resumed = (_student(digits) for _ in range(3))
    renderer = _renderer(digits, whole.preset)
    settings = {"preset": whole.preset, "schedule": SCHEDULE, "distillation": None}
    train(whole.module, renderer, run=_start(tmp_path / "whole"), **settings)

    class StopError(Exception):
        pass

    def stop_after_second(row: dict[str, float]) -> None:
        if row["epoch"] == 2:
            raise StopError

    run = _start(tmp_path / "cut")
    with pytest.raises(StopError):
        train(cut.module, renderer, run=run, on_epoch=stop_after_second, **settings)
    train(resumed.module, renderer, run=run, resume=True, **settings)
    _assert_same_weights(whole.module, resumed.module)
    assert [row["epoch"] for row in run.history()] == [1, 2, 3]


def test_cached_and_live_targets_train_alike(built: Built, digits: dataset.Dataset, tmp_path: Path) -> None:
    store = open_store(built.store)
    teacher = models.load("resnet8", num_classes=10, weights=built.weights, fallback_statistics=digits.statistics)
    live = LiveTargets(Forward(teacher, device=torch.device("cpu")), None)
    curves = {}
    for name, targets in {"cache": CachedTargets(store, join_checked(store, digits)), "live": live}.items():
        student = _student(digits)
        run = _start(tmp_path / name)
        train(
            student.module,
            _renderer(digits, student.preset),
            preset=student.preset,
            schedule=SCHEDULE,
            distillation=Distillation(targets, make("kd", temperature=4.0), kd_weight=0.9, ce_weight=0.1),
            run=run,
        )
        curves[name] = [row["kd"] for row in run.history()]
    assert curves["cache"] == pytest.approx(curves["live"], rel=2e-3)
    assert curves["cache"][-1] < curves["cache"][0]


@pytest.mark.parametrize(("loading", "place"), [("memory", None), ("memory", 2), ("memory", 0), ("stream", None)])
def test_a_teacher_that_sees_another_size_gets_its_own_pixels(loading: Loading, place: int | None) -> None:
    """Whether no student, the third or the first of them is of its size, and rendered once where one is."""
    seen = []

    def forward(pixels: torch.Tensor) -> torch.Tensor:
        seen.append(pixels)
        return torch.zeros(len(pixels), 10)

    digits = dataset.load("digits", "train", 200, loading=loading)
    own, *renderers = (
        Renderer(digits, "crop-flip", seed=0, geometry=Geometry(size, size, "bilinear"), workers=1)
        for size in (48, 32, 16)
    )
    if place is not None:
        renderers.insert(place, own)
    batches = list(Batches(renderers, SCHEDULE, LiveTargets(forward, own)).epoch(1)[1])
    drawn = epoch_batches(200, batch_size=32, data_seed=3, epoch=1)
    assert len(seen) == len(drawn)
    for rows, shown, batch in zip(drawn, seen, batches, strict=True):
        assert torch.equal(shown, own(rows, 2))
        assert len(batch.pixels) == 3
        for renderer, pixels in zip([*renderers, own], batch.pixels, strict=False):
            assert torch.equal(pixels, renderer(rows, 2))


def test_unlabelled_samples_do_not_count() -> None:
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, -1, 2, -1, 3, 1])
    known = labels >= 0
    torch.testing.assert_close(cross_entropy(logits, labels), F.cross_entropy(logits[known], labels[known]))
    assert cross_entropy(logits, torch.full((6,), -1)).item() == 0.0


def test_divergence_stops_and_keeps_the_last_checkpoint(digits: dataset.Dataset, tmp_path: Path) -> None:
    student = _student(digits)
    run = _start(tmp_path / "run")
    calls: list[int] = []

    def explode(logits: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return logits.sum() * (float("nan") if len(calls) > 7 else 0.0)

    def forward(pixels: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(pixels), 10)

    with pytest.raises(DivergedError, match="epoch 2"):
        train(
            student.module,
            _renderer(digits, student.preset),
            preset=student.preset,
            schedule=replace(SCHEDULE, views=0),
            distillation=Distillation(LiveTargets(forward, None), explode, kd_weight=1.0, ce_weight=1.0),
            run=run,
        )
    state = run.load_checkpoint()
    assert state is not None
    assert len(state["history"]) == 1
    assert all(torch.isfinite(value).all() for value in state["model"].values())


def test_predict_leaves_the_mode_as_it_was(digits: dataset.Dataset) -> None:
    student = _student(digits)
    renderer = Renderer(digits, "none", seed=0, geometry=Geometry.of(student.preset))
    expected: Callable[[], np.ndarray] = lambda: predict(student.module, renderer, preset=student.preset)  # noqa: E731
    first = expected()
    assert not student.module.training
    student.module.train()
    assert np.array_equal(expected(), first)
    assert student.module.training

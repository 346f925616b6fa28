"""Validation during a training: it finds the best epoch, it is resumed, and the training does not notice it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdpipe import dataset, models
from kdpipe.dataset import Dataset
from kdpipe.errors import RunError
from kdpipe.training.evaluation import predict
from kdpipe.training.loop import train
from kdpipe.training.optimization import Optimisation
from kdpipe.training.runs import RunDirectory
from kdpipe.training.schedule import Schedule
from kdpipe.training.evaluation import Validation
from kdpipe.views import Geometry, Renderer


class Dropping(torch.nn.Module):
    """A model that draws from torch's generator at every step, and has batch-norm buffers."""

    def __init__(self, body: torch.nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.body(torch.nn.functional.dropout(images, 0.1, self.training))


class Run:
    """Trains one student on three quarters of some digits, each time in the same way."""

    def __init__(self, digits: Dataset, *, lr: float = 0.05, ema: float | None = None, epochs: int = 3) -> None:
        self.part, self.held_out = dataset.hold_out(digits, 0.25)
        self.module = self._student()
        self._optimisation = Optimisation(ema=ema)
        self._schedule = Schedule(epochs, 32, lr, 5e-4, 1, data_seed=3, views=2)
        self.kept: list[dict[str, torch.Tensor]] = []

    def _student(self) -> Dropping:
        torch.manual_seed(1)
        model = models.load("resnet8", num_classes=10, fallback_statistics=self.part.statistics)
        self.preset = model.preset
        return Dropping(model.module)

    def renderer(self, data: Dataset, recipe: str) -> Renderer:
        return Renderer(data, recipe, seed=0, geometry=Geometry.of(self.preset), workers=1)

    def _keep(self, module: torch.nn.Module) -> None:
        self.kept.append({name: value.clone() for name, value in module.state_dict().items()})

    def __call__(self, path: Path, *, validated: bool = True, **settings: Any) -> Validation | None:
        self.module = self._student()
        validation = None
        if validated:
            validation = Validation(self.renderer(self.held_out, "none"), preset=self.preset, keep=self._keep)
        train(
            self.module,
            self.renderer(self.part, "crop-flip"),
            preset=self.preset,
            schedule=self._schedule,
            distillation=None,
            optimisation=self._optimisation,
            validation=validation,
            run=RunDirectory(path),
            **settings,
        )
        return validation

    def validated(self, path: Path, **settings: Any) -> Validation:
        validation = self(path, **settings)
        assert validation is not None
        return validation

    def top1(self) -> float:
        """Return the accuracy of the module as it is now, by plain counting."""
        logits = predict(self.module, self.renderer(self.held_out, "none"), preset=self.preset)
        return float((logits.argmax(axis=1) == self.held_out.labels).mean())


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return dataset.load("digits", "train", 240)


@pytest.fixture(scope="module")
def streamed(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Images that worker processes decode, which takes a number from torch's generator for each pass over them."""
    from PIL import Image

    root = tmp_path_factory.mktemp("images")
    for index in range(48):
        folder = root / "train" / f"class{index % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(index).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    images = dataset.load(f"folder:{root}", "train", loading="stream")
    assert not images.in_memory
    return images


def _assert_equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert list(first) == list(second)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@pytest.mark.parametrize(("source", "ema"), [("digits", None), ("digits", 0.9), ("streamed", 0.9)])
def test_the_training_does_not_notice(
    source: str, ema: float | None, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    run = Run(request.getfixturevalue(source), ema=ema)
    run(tmp_path / "plain", validated=False)
    plain = run.module.state_dict()
    after = torch.get_rng_state()
    run(tmp_path / "validated")
    _assert_equal(run.module.state_dict(), plain)
    assert torch.equal(torch.get_rng_state(), after)
    assert run.module.training
    expected = RunDirectory(tmp_path / "plain").history()
    for row, other in zip(RunDirectory(tmp_path / "validated").history(), expected, strict=True):
        assert set(row) - set(other) == {"validation_top1", "validation_loss"}
        assert all(row[key] == other[key] for key in other if key not in ("seconds", "images_per_second"))


@pytest.mark.parametrize("ema", [None, 0.8])
def test_what_is_measured_last_is_what_is_left(digits: Dataset, ema: float | None, tmp_path: Path) -> None:
    run = Run(digits, ema=ema, epochs=8)
    validation = run.validated(tmp_path / "run")
    rows = RunDirectory(tmp_path / "run").history()
    assert rows[-1]["validation_top1"] == run.top1()
    values = [row["validation_top1"] for row in rows]
    assert len(set(values)) > 1
    assert validation.best is not None
    assert validation.best.top1 == max(values)
    assert validation.best.epoch == 1 + values.index(max(values))
    assert validation.best.loss == rows[validation.best.epoch - 1]["validation_loss"]
    run.module.load_state_dict(validation.best.weights)
    assert run.top1() == max(values)
    _assert_equal(run.kept[-1], validation.best.weights)


class _Breaking(Schedule):
    """A learning rate that destroys, in the fifth epoch, what the four before have learnt."""

    def rate(self, step: int, steps_per_epoch: int) -> float:
        return 5.0 if step >= 4 * steps_per_epoch else 0.05


def test_the_best_epoch_is_the_one_before_the_model_is_destroyed(digits: Dataset, tmp_path: Path) -> None:
    run = Run(digits)
    run._schedule = _Breaking(6, 8, 0.05, 5e-4, 0, data_seed=3, views=2)
    validation = run.validated(tmp_path / "run")
    values = [row["validation_top1"] for row in RunDirectory(tmp_path / "run").history()]
    assert validation.best is not None
    assert validation.best.epoch == 4
    assert values[3] > 2 * max(values[4:])
    assert run.top1() == values[-1]
    run.module.load_state_dict(validation.best.weights)
    assert run.top1() == values[3]


def _stop_after(step: int) -> Callable[[], bool]:
    steps = iter(range(1, 1000))
    return lambda: next(steps) == step


@pytest.mark.parametrize(("source", "ema", "stops"), [("digits", 0.8, (1, 5, 11, 16)), ("streamed", None, (2,))])
def test_a_resumed_run_has_the_same_best(
    source: str, ema: float | None, stops: tuple[int, ...], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Stopped between two epochs, and in the middle of one, before the best epoch and after it."""
    run = Run(request.getfixturevalue(source), ema=ema, epochs=4)
    whole = run.validated(tmp_path / "whole").best
    expected, weights = RunDirectory(tmp_path / "whole").history(), run.module.state_dict()
    assert whole is not None
    for stop in stops:
        path = tmp_path / str(stop)
        with pytest.raises(RunError, match="stopped at"):
            run(path, should_stop=_stop_after(stop))
        torch.manual_seed(stop)
        run.kept.clear()
        resumed = run.validated(path, resume=True).best
        assert resumed is not None
        assert (resumed.epoch, resumed.top1, resumed.loss) == (whole.epoch, whole.top1, whole.loss)
        _assert_equal(resumed.weights, whole.weights)
        _assert_equal(run.kept[-1], whole.weights)
        _assert_equal(run.module.state_dict(), weights)
        for row, other in zip(RunDirectory(path).history(), expected, strict=True):
            assert all(row[key] == other[key] for key in other if key not in ("seconds", "images_per_second"))

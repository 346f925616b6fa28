"""Optimisers, averaging, clipping and mixed precision against plain PyTorch loops, and through a resumption."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from kdpipe import dataset, models
from kdpipe.dataset import Dataset
from kdpipe.errors import RunError
from kdpipe.models import Model
from kdpipe.training.loop import train
from kdpipe.training.optimization import Optimisation
from kdpipe.training.runs import RunDirectory
from kdpipe.training.schedule import Schedule
from kdpipe.training.optimization import arithmetic
from kdpipe.training.schedule import epoch_batches
from kdpipe.views import Geometry, Renderer, render

SCHEDULE = Schedule(epochs=2, batch_size=32, lr=0.01, weight_decay=0.02, warmup_epochs=1, data_seed=3, views=2)
STEPS = 7


@pytest.fixture
def digits() -> Dataset:
    return dataset.load("digits", "train", 200)


def _student(digits: Dataset) -> Model:
    torch.manual_seed(1)
    return models.load("resnet8", num_classes=10, fallback_statistics=digits.statistics)


def _train(digits: Dataset, run: Path, optimisation: Optimisation, **settings: Any) -> torch.nn.Module:
    model = _student(digits)
    renderer = Renderer(digits, "crop-flip", seed=0, geometry=Geometry.of(model.preset))
    train(
        model.module,
        renderer,
        preset=model.preset,
        schedule=SCHEDULE,
        distillation=None,
        run=RunDirectory(run),
        optimisation=optimisation,
        **settings,
    )
    return model.module


def _plain(
    digits: Dataset,
    *,
    groups: bool,
    adamw: bool,
    nesterov: bool,
    smoothing: float,
    clip: float | None,
    ema: float | None,
) -> Any:
    model = _student(digits)
    module = model.module.train()
    average = copy.deepcopy(module)
    norms = {
        id(value) for part in module.modules() if isinstance(part, torch.nn.BatchNorm2d) for value in part.parameters()
    }
    pulled = {id(value) for name, value in module.named_parameters() if id(value) not in norms and "bias" not in name}
    parts: Any = [
        {"params": [value for value in module.parameters() if id(value) in pulled], "weight_decay": 0.02},
        {"params": [value for value in module.parameters() if id(value) not in pulled], "weight_decay": 0.0},
    ]
    given: Any = parts if groups else module.parameters()
    optimiser = (
        torch.optim.AdamW(given, lr=0.01, weight_decay=0.02)
        if adamw
        else torch.optim.SGD(given, lr=0.01, momentum=0.9, nesterov=nesterov, weight_decay=0.02)
    )
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (model.preset.mean, model.preset.std))
    for epoch in range(2):
        for step, rows in enumerate(epoch_batches(200, batch_size=32, data_seed=3, epoch=epoch)):
            for group in optimiser.param_groups:
                group["lr"] = SCHEDULE.rate(epoch * STEPS + step, STEPS)
            pixels = render(digits, "crop-flip", seed=0, indices=rows, view=1 + epoch)
            labels = torch.from_numpy(digits.labels[rows]).long()
            loss = F.cross_entropy(module((pixels.float() / 255 - mean) / std), labels, label_smoothing=smoothing)
            optimiser.zero_grad()
            loss.backward()
            if clip is not None:
                torch.nn.utils.clip_grad_norm_(module.parameters(), clip)
            optimiser.step()
            if ema is not None:
                for kept, value in zip(average.state_dict().values(), module.state_dict().values(), strict=True):
                    kept.copy_(ema * kept + (1 - ema) * value if value.is_floating_point() else value)
    return module if ema is None else average


@pytest.mark.parametrize(
    ("ours", "plain"),
    [
        ({}, {}),
        ({"nesterov": False}, {"nesterov": False}),
        ({"decay_on": "weights"}, {"groups": True}),
        ({"optimizer": "adamw"}, {"adamw": True, "groups": True}),
        ({"optimizer": "adamw", "decay_on": "all"}, {"adamw": True}),
        ({"label_smoothing": 0.1}, {"smoothing": 0.1}),
        ({"clip_grad_norm": 0.5}, {"clip": 0.5}),
        ({"ema": 0.8}, {"ema": 0.8}),
    ],
)
def test_equals_a_plain_loop(ours: dict[str, Any], plain: dict[str, Any], digits: Dataset, tmp_path: Path) -> None:
    trained = _train(digits, tmp_path / "run", Optimisation(**ours))
    defaults = {"groups": False, "adamw": False, "nesterov": True, "smoothing": 0.0, "clip": None, "ema": None}
    expected = _plain(digits, **defaults | plain)
    exact = not {"label_smoothing", "ema"} & set(ours)
    for (name, mine), other in zip(trained.state_dict().items(), expected.state_dict().values(), strict=True):
        if exact:
            assert torch.equal(mine, other), name
        else:
            torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-5)


SETTINGS = [
    {"optimizer": "adamw", "ema": 0.9, "clip_grad_norm": 1.0},
    {"nesterov": False, "amp": "bf16", "channels_last": True},
    {"amp": "fp16", "clip_grad_norm": 1.0},
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_all_of_it_is_in_the_checkpoints(settings: dict[str, Any], digits: Dataset, tmp_path: Path) -> None:
    optimisation = Optimisation(**settings)
    whole = _train(digits, tmp_path / "whole", optimisation)
    for stop in (2, STEPS + 3):
        steps = iter(range(1, 100))
        with pytest.raises(RunError, match="stopped"):
            _train(digits, tmp_path / str(stop), optimisation, should_stop=lambda: next(steps) == stop)  # noqa: B023
        resumed = _train(digits, tmp_path / str(stop), optimisation, resume=True)
        for (name, mine), other in zip(resumed.state_dict().items(), whole.state_dict().values(), strict=True):
            assert torch.equal(mine, other), name
            assert mine.is_contiguous()


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_reduced_precision_is_near_and_not_the_same(amp: Any, digits: Dataset, tmp_path: Path) -> None:
    for name, chosen in (("full", "fp32"), (amp, amp)):
        _train(digits, tmp_path / name, Optimisation(amp=chosen))
    (full, reduced) = (RunDirectory(tmp_path / name).history()[-1]["loss"] for name in ("full", amp))
    assert reduced != full
    assert reduced == pytest.approx(full, rel=0.05)


def test_auto_is_exact_on_the_cpu() -> None:
    assert arithmetic("auto", torch.device("cpu")) is torch.float32


def test_compile_wraps_the_forward_pass_alone(digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def compiled(module: torch.nn.Module) -> Any:
        def forward(images: torch.Tensor) -> torch.Tensor:
            calls.append(len(images))
            result: torch.Tensor = module(images)
            return result

        return forward

    monkeypatch.setattr(torch, "compile", compiled)
    trained = _train(digits, tmp_path / "a", Optimisation(compile=True))
    assert len(calls) == 2 * STEPS
    plain = _train(digits, tmp_path / "b", Optimisation())
    assert all(torch.equal(a, b) for a, b in zip(trained.parameters(), plain.parameters(), strict=True))

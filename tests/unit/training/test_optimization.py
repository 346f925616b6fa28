"""Optimizers, averaging, clipping and mixed precision against plain PyTorch loops, and through a resumption."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from kdpipe.errors import RunError
from kdpipe.testing.doubles import StopAfter, differences, small_network
from kdpipe.training.loop import train
from kdpipe.training.optimization import arithmetic
from kdpipe.training.runs import RunDirectory
from kdpipe.training.schedule import epoch_batches, rate
from kdpipe.views import render
from tests import students
from tests.students import ORDER, PRESET, STEPS, digits, student

SETTINGS = students.SETTINGS.but(lr=0.01, weight_decay=0.02)


def _train(run: Path, chosen: dict[str, Any], **others: Any) -> torch.nn.Module:
    trained = student(run, settings=SETTINGS.but(**chosen))
    train(trained, order=ORDER, **others)
    return trained.module


def _plain(
    *,
    groups: bool,
    adamw: bool,
    nesterov: bool,
    smoothing: float,
    clip: float | None,
    ema: float | None,
) -> Any:
    module = small_network().train()
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
    optimizer = (
        torch.optim.AdamW(given, lr=0.01, weight_decay=0.02)
        if adamw
        else torch.optim.SGD(given, lr=0.01, momentum=0.9, nesterov=nesterov, weight_decay=0.02)
    )
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (PRESET.mean, PRESET.std))
    for epoch in range(2):
        for step, rows in enumerate(epoch_batches(200, batch_size=32, data_seed=3, epoch=epoch)):
            for group in optimizer.param_groups:
                group["lr"] = rate(SETTINGS, epoch * STEPS + step, STEPS)
            pixels = render(digits(), "crop-flip", seed=0, indices=rows, view=1 + epoch, size=16)
            labels = torch.from_numpy(digits().labels[rows]).long()
            loss = F.cross_entropy(module((pixels.float() / 255 - mean) / std), labels, label_smoothing=smoothing)
            optimizer.zero_grad()
            loss.backward()
            if clip is not None:
                torch.nn.utils.clip_grad_norm_(module.parameters(), clip)
            optimizer.step()
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
def test_equals_a_plain_loop(ours: dict[str, Any], plain: dict[str, Any], tmp_path: Path) -> None:
    trained = _train(tmp_path, ours)
    defaults = {"groups": False, "adamw": False, "nesterov": True, "smoothing": 0.0, "clip": None, "ema": None}
    expected = _plain(**defaults | plain)
    exact = not {"label_smoothing", "ema"} & set(ours)
    for (name, mine), other in zip(trained.state_dict().items(), expected.state_dict().values(), strict=True):
        if exact:
            assert torch.equal(mine, other), name
        else:
            torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-5)


CHOSEN = [
    {"optimizer": "adamw", "ema": 0.9, "clip_grad_norm": 1.0},
    {"nesterov": False, "amp": "bf16", "channels_last": True},
    {"amp": "fp16", "clip_grad_norm": 1.0},
]


@pytest.mark.parametrize("chosen", CHOSEN)
def test_all_of_it_is_in_the_checkpoints(chosen: dict[str, Any], tmp_path: Path) -> None:
    whole = _train(tmp_path / "whole", chosen)
    for stop in (2, STEPS + 3):
        with pytest.raises(RunError, match="stopped"):
            _train(tmp_path / str(stop), chosen, should_stop=StopAfter(stop))
        resumed = _train(tmp_path / str(stop), chosen, resume=True)
        assert not differences(resumed.state_dict(), whole.state_dict())
        assert all(value.is_contiguous() for value in resumed.state_dict().values())


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_reduced_precision_is_near_and_not_the_same(amp: str, tmp_path: Path) -> None:
    for name in ("fp32", amp):
        _train(tmp_path / name, {"amp": name})
    (full, reduced) = (RunDirectory(tmp_path / name).history()[-1]["loss"] for name in ("fp32", amp))
    assert reduced != full
    assert reduced == pytest.approx(full, rel=0.05)


def test_auto_is_exact_on_the_cpu() -> None:
    assert arithmetic("auto", torch.device("cpu")) is torch.float32


def test_compile_wraps_the_forward_pass_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def compiled(module: torch.nn.Module) -> Any:
        def forward(images: torch.Tensor) -> torch.Tensor:
            calls.append(len(images))
            result: torch.Tensor = module(images)
            return result

        return forward

    monkeypatch.setattr(torch, "compile", compiled)
    trained = _train(tmp_path / "a", {"compile": True})
    assert len(calls) == 2 * STEPS
    plain = _train(tmp_path / "b", {})
    assert not differences(trained.state_dict(), plain.state_dict())

"""A training that can only get worse stops at once, says where, and leaves a checkpoint from before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from kdpipe.errors import DeviceError, DivergedError
from kdpipe.testing.doubles import ConstantTargets
from kdpipe.training.failures import LossWatch, not_finite
from kdpipe.training.loop import train
from kdpipe.training.runs import RunDirectory
from kdpipe.training.schedule import Order
from tests.students import SETTINGS, student, taught


def _train(run: Path, loss: Any, **settings: Any) -> None:
    objective = taught(loss, kd_weight=1.0, ce_weight=1.0)
    trained = student(run, objective=objective, settings=SETTINGS.but(epochs=3, weight_decay=0, warmup_epochs=0))
    train(trained, ConstantTargets(*[0.0] * 10), order=Order(0, views=0), **settings)


class _From:
    """A loss that is replaced from some step on, counted from 1."""

    def __init__(self, step: int, loss: Any) -> None:
        self._step, self._loss, self._calls = step, loss, 0

    def __call__(self, logits: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        self._calls += 1
        result: torch.Tensor = self._loss(logits) if self._calls >= self._step else logits.sum() * 0
        return result


def _assert_finite(run: Path, *, epochs: int, step: int) -> None:
    state = RunDirectory(run).load_checkpoint()
    assert state is not None
    assert (len(state["history"]), state["step"]) == (epochs, step)
    assert all(value.isfinite().all() for value in state["model"].values())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_the_message_names_step_terms_and_checkpoint(value: float, tmp_path: Path) -> None:
    with pytest.raises(DivergedError) as caught:
        _train(tmp_path / "run", _From(10, lambda logits: logits.sum() * value))
    message = str(caught.value)
    assert message.startswith("the loss of step 3 of epoch 2 is not finite (ce ")
    assert "kd nan" in message or "kd inf" in message or "kd -inf" in message
    assert f"{tmp_path / 'run' / 'checkpoint.pt'} holds the end of epoch 1; try a lower --lr." in message
    _assert_finite(tmp_path / "run", epochs=1, step=0)


def test_no_checkpoint_is_written_once_it_has_diverged(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match="holds step 2 of epoch 2"):
        _train(tmp_path / "run", _From(10, lambda logits: logits.sum() * float("nan")), checkpoint_every=0)
    _assert_finite(tmp_path / "run", epochs=1, step=2)


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    """The loss is finite, its gradient is not, so the step before is the last good one."""
    with pytest.raises(DivergedError, match=r"holds NaN or infinity at step 4 of epoch 1\. .* holds step 3 of epoch 1"):
        _train(tmp_path / "run", _From(4, lambda logits: (logits.sum() * 0).sqrt()), checkpoint_every=0)
    _assert_finite(tmp_path / "run", epochs=0, step=3)


def test_before_the_first_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match=r"step 1 of epoch 1 .* There is no checkpoint yet"):
        _train(tmp_path / "run", _From(1, lambda logits: logits.sum() * float("nan")))


def test_the_watch_looks_every_fifty_steps() -> None:
    watch = LossWatch(lambda: "")
    good, bad = {"loss": torch.tensor(1.0)}, {"loss": torch.tensor(float("nan"))}
    for step in range(1, 51):
        watch.add(good, epoch=1, step=step)
    for step in range(51, 100):
        watch.add(bad if step == 60 else good, epoch=1, step=step)
    with pytest.raises(DivergedError, match="step 60 of epoch 1"):
        watch.add(good, epoch=1, step=100)


def test_the_tensor_that_is_not_finite_is_named() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    assert not_finite(module) is None
    module[1].running_var[1] = float("inf")
    assert not_finite(module) == "1.running_var"
    assert not_finite(torch.nn.Flatten()) is None


def test_too_little_memory_is_one_line_with_a_batch_size_that_fits(tmp_path: Path) -> None:
    def exhaust(logits: torch.Tensor) -> torch.Tensor:
        if len(logits) > 8:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return logits.sum()

    with pytest.raises(DeviceError, match=r"ran out of memory at a batch size of 32; 8 fit\. Try --batch-size 8;"):
        _train(tmp_path / "run", _From(9, exhaust))


def test_where_no_batch_fits_the_model_is_too_large(tmp_path: Path) -> None:
    def exhaust(_logits: torch.Tensor) -> torch.Tensor:
        raise MemoryError

    with pytest.raises(DeviceError, match=r"batch size of 32, and 2 do not fit either"):
        _train(tmp_path / "run", _From(1, exhaust))


def test_another_error_is_not_taken_for_too_little_memory(tmp_path: Path) -> None:
    def fail(_logits: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        _train(tmp_path / "run", _From(2, fail))

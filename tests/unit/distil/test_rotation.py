"""The auxiliary task against plain loops, and what it leaves alone: the student's statistics, file and neighbours."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from kdpipe.distil.losses import make, parse
from kdpipe.distil.objective import Distillation, DistillationObjective
from kdpipe.distil.rotation import Rotation, turned
from kdpipe.distil.signals import SignalTerms, settle
from kdpipe.errors import DeviceError, ModelError, RunError
from kdpipe.models import save_weights
from kdpipe.testing.doubles import Dropping, IndexedTargets, StopAfter, by_index, differences, small_network
from kdpipe.training.checkpoint import State
from kdpipe.training.loop import Cost, train, train_together
from kdpipe.training.runs import RunDirectory
from kdpipe.training.schedule import epoch_batches
from kdpipe.training.settings import Optimization
from kdpipe.training.trainee import Student
from kdpipe.views import render
from tests import students
from tests.students import ORDER, PRESET, digits, renderer, student

SETTINGS = students.SETTINGS.but(batch_size=100, weight_decay=1e-3, warmup_epochs=0, lr_schedule="constant")
CPU = torch.device("cpu")


def _rotation(module: torch.nn.Module, weight: float = 0.5, seed: int = 4) -> Rotation:
    return Rotation(module, PRESET, weight=weight, name="small", seed=seed, device=CPU)


def _pixels(indices: Any = range(200), view: int = 1) -> torch.Tensor:
    return render(digits(), "crop-flip", seed=0, indices=indices, view=view, size=16)


def _turn(pixels: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    return torch.stack([torch.rot90(image, int(turn), dims=(1, 2)) for image, turn in zip(pixels, turns, strict=True)])


def _says(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return -logits.log_softmax(1).gather(1, labels[:, None]).mean()


def test_each_image_is_turned_by_its_own_quarter_turns() -> None:
    pixels = torch.arange(5 * 3 * 4 * 4, dtype=torch.uint8).reshape(5, 3, 4, 4)
    turns = torch.tensor([3, 0, 2, 1, 1])
    assert torch.equal(turned(pixels, turns), _turn(pixels, turns))
    assert torch.equal(turned(pixels, turns)[3, 0, 0], pixels[3, 0, :, -1])  # counter-clockwise: the right column is up


def test_the_term_is_the_cross_entropy_of_a_linear_head() -> None:
    module, pixels = small_network().train(), _pixels()
    rotation = _rotation(module)
    buffers = {name: value.clone() for name, value in module.named_buffers()}
    torch.manual_seed(9)
    found = rotation(module, pixels)
    found["rotation"].backward()

    net = small_network().train()
    weight, bias = (parameter.detach().clone().requires_grad_() for parameter in rotation.head.parameters())
    torch.manual_seed(9)
    turns = torch.randint(4, (200,))
    images = PRESET.normalize(_turn(pixels, turns))
    logits = net[:-1](images) @ weight.T + bias
    expected = _says(logits, turns)
    expected.backward()
    torch.testing.assert_close(found["rotation"], expected)
    assert found["rotation_top1"] == (logits.argmax(1) == turns).float().mean()
    torch.testing.assert_close(rotation.head.weight.grad, weight.grad)
    torch.testing.assert_close(rotation.head.bias.grad, bias.grad)
    torch.testing.assert_close(module[0].weight.grad, net[0].weight.grad)
    assert module[-1].weight.grad is None
    for name, value in module.named_buffers():
        assert torch.equal(value, buffers[name]), name


def test_turns_are_drawn_evenly_and_anew() -> None:
    module = small_network()
    rotation, shown = _rotation(module), []
    corner = torch.zeros(2000, 3, 16, 16, dtype=torch.uint8)
    corner[:, :, 0, 0] = 255

    def forward(images: torch.Tensor) -> torch.Tensor:
        lit = images[:, 0] > images[:, 0].mean()
        shown.append(torch.stack([lit[:, 0, 0], lit[:, -1, 0], lit[:, -1, -1], lit[:, 0, -1]]).int().argmax(0))
        logits: torch.Tensor = module(images[:, :, :8, :8])
        return logits

    torch.manual_seed(0)
    rotation(forward, corner)
    rotation(forward, corner)
    for turns in shown:
        counts = torch.bincount(turns, minlength=4)
        assert (counts - 500).abs().max() < 5 * (2000 * 0.25 * 0.75) ** 0.5
    assert 400 < (shown[0] == shown[1]).sum() < 600


def test_the_head_is_drawn_by_the_seed_alone() -> None:
    module = small_network()
    before = torch.get_rng_state()
    head = _rotation(module).head
    assert torch.equal(before, torch.get_rng_state())
    torch.rand(3)
    assert torch.equal(head.weight, _rotation(module).head.weight)
    assert not torch.equal(head.weight, _rotation(module, seed=5).head.weight)
    assert head.weight.shape == (4, 16)


def test_a_model_without_penultimate_features_is_refused() -> None:
    with pytest.raises(ModelError, match=r"no layer of small makes its logits.* Leave out --aux"):
        _rotation(torch.nn.Sequential(small_network(), torch.nn.Softplus()))


def test_the_loop_does_what_a_plain_one_does(tmp_path: Path) -> None:
    """Beside a loss on logits and one on features, which must be those of the upright images."""
    module = small_network()
    settled = settle(parse("features:2:2,weight=2").layers, ["features:2"], module, size=16, name="small", source="s")
    signals = SignalTerms(settled, module, shapes={"features:2": (32,)}, size=16, name="small", seed=4, device=CPU)
    rotation = _rotation(module, weight=0.7)
    initial = {name: value.clone() for name, value in rotation.head.state_dict().items()}
    projection = copy.deepcopy(signals.projections["features"][0])
    distillation = Distillation(make("kd"), kd_weight=0.6, ce_weight=0.4, signals=signals)
    objective = DistillationObjective(PRESET, distillation, rotation=rotation)
    torch.manual_seed(9)
    trained = student(tmp_path / "run", module, objective=objective, settings=SETTINGS.but(batch_size=200))
    train(trained, IndexedTargets(10, signals={"features:2": 32}), order=ORDER)
    left = RunDirectory(tmp_path / "run").load_checkpoint()
    assert left is not None
    assert set(left["beside"]) == {*signals.projections.state_dict(), "rotation.weight", "rotation.bias"}
    assert not any("rotation" in name for name in left["model"])

    net = small_network().train()
    head = torch.nn.Linear(16, 4)
    head.load_state_dict(initial)
    labels = torch.from_numpy(digits().labels.astype(np.int64))
    optimizer = torch.optim.SGD(
        [*net.parameters(), *projection.parameters(), *head.parameters()],
        lr=0.05,
        momentum=0.9,
        weight_decay=1e-3,
        nesterov=True,
    )
    torch.manual_seed(9)
    expected = []
    for epoch in range(2):
        (rows,) = epoch_batches(200, batch_size=200, data_seed=3, epoch=epoch)
        pixels = _pixels(rows, 1 + epoch)
        second = net[:3](PRESET.normalize(pixels))
        logits = net[3:](second)
        features = (projection(second.mean((2, 3))) - by_index(rows, 32)).square().mean()
        kd = 16 * F.kl_div(
            (logits / 4).log_softmax(1),
            (by_index(rows, 10) / 4).log_softmax(1),
            log_target=True,
            reduction="batchmean",
        )
        statistics = {name: value.clone() for name, value in net.named_buffers()}
        turns = torch.randint(4, (200,))
        said = head(net[:-1](PRESET.normalize(_turn(pixels, turns))))
        task = _says(said, turns)
        loss = 0.6 * (kd + 2 * features) + 0.4 * _says(logits, labels[rows]) + 0.7 * task
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for name, value in net.named_buffers():
            value.copy_(statistics[name])
        right = (said.argmax(1) == turns).float().mean()
        expected.append([float(value.detach()) for value in (loss, kd + 2 * features, features, task, right)])
    columns = ("loss", "kd", "features", "rotation", "rotation_top1")
    found = [[row[name] for name in columns] for row in RunDirectory(tmp_path / "run").history()]
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    for name, value in net.state_dict().items():
        torch.testing.assert_close(module.state_dict()[name], value, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(rotation.head.weight, head.weight)
    assert not torch.equal(head.weight.detach(), initial["weight"])
    assert not any(part._forward_pre_hooks or part._forward_hooks for part in module.modules())


def _student(
    folder: Path,
    weight: float | None = 0.5,
    *,
    wrap: Callable[[torch.nn.Module], torch.nn.Module] = Dropping,
    settings: Optimization = SETTINGS,
    **others: Any,
) -> Student:
    module = wrap(small_network())
    rotation = None if weight is None else _rotation(module, weight)
    objective = DistillationObjective(PRESET, None, rotation=rotation)
    generators = [torch.Generator().manual_seed(9).get_state()]
    return student(folder, module, objective=objective, settings=settings, generators=generators, **others)


def _trained(
    folder: Path, weight: float | None = 0.5, *, settings: Optimization = SETTINGS, **how: Any
) -> RunDirectory:
    """Train a student with the task, or without it."""
    trained = _student(folder, weight, settings=settings)
    train(trained, order=ORDER, **how)
    return trained.run


def _state(run: RunDirectory) -> State:
    state = run.load_checkpoint()
    assert state is not None
    return state


def test_the_first_step_is_that_without_the_task_but_for_its_term(tmp_path: Path) -> None:
    once = SETTINGS.but(epochs=1, batch_size=200)
    runs = [_trained(tmp_path / str(weight), weight, settings=once) for weight in (None, 0.5, 2.0)]
    without, half, double = (run.history()[0] for run in runs)
    assert "rotation" not in without
    assert "beside" not in _state(runs[0])
    assert without["loss"] == without["ce"] == half["ce"] == double["ce"]
    assert without["train_top1"] == half["train_top1"]
    assert half["rotation"] == double["rotation"]
    for row, weight in ((half, 0.5), (double, 2.0)):
        assert row["loss"] == pytest.approx(row["ce"] + weight * row["rotation"], rel=1e-6)
    plain, helped = (_state(run)["model"] for run in runs[:2])
    for name, value in plain.items():  # the classifier sees no turned image, nor do the running statistics
        untouched = any(part in name for part in (".8.", "running", "batches"))
        assert torch.equal(value, helped[name]) == untouched, name


def test_samples_without_a_label_count(tmp_path: Path) -> None:
    labels = np.where(np.arange(200) % 4 == 0, digits().labels, -1).astype(np.int32)
    still = SETTINGS.but(epochs=1, batch_size=40, lr=1e-30)
    found = []
    for name, images in (("all", digits()), ("some", replace(digits(), labels=labels))):
        trained = _student(tmp_path / name, settings=still, images=renderer(images))
        train(trained, order=ORDER)
        found += trained.run.history()
    all_of_them, some = found
    for name in ("rotation", "rotation_top1"):
        assert some[name] == pytest.approx(all_of_them[name], rel=1e-6)
    assert some["ce"] != pytest.approx(all_of_them["ce"], rel=1e-3)


def test_stopped_and_resumed_it_ends_with_the_same_bits(tmp_path: Path) -> None:
    whole = _state(_trained(tmp_path / "whole"))
    for step in (1, 2, 3):
        run = tmp_path / str(step)
        with pytest.raises(RunError, match="stopped at"):
            _trained(run, should_stop=StopAfter(step))
        assert not differences(_state(_trained(run, resume=True)), whole)
    assert "beside" in whole


def test_the_saved_model_has_no_head(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    settings = SETTINGS.but(ema=0.9, amp="bf16")
    trained = _student(tmp_path, wrap=lambda body: body, settings=settings)
    train(trained, order=ORDER)
    save_weights(trained.run.weights, trained.module, architecture="small", preset=PRESET, classes=digits().classes)
    assert load_file(trained.run.weights).keys() <= small_network().state_dict().keys()
    assert set(_state(trained.run)["beside"]) == {"rotation.weight", "rotation.bias"}


@pytest.mark.parametrize("tasks", [(0.5, None, 2.0), (None, 2.0, 0.5), (2.0, 0.5)])
def test_beside_others_each_learns_as_alone(tmp_path: Path, tasks: tuple[float | None, ...]) -> None:
    images = renderer()
    fleet = [_student(tmp_path / f"fleet-{weight}", weight, images=images) for weight in tasks]
    assert all(isinstance(cost, Cost) for cost in train_together(fleet, order=ORDER))
    for each, weight in zip(fleet, tasks, strict=True):
        assert not differences(_state(each.run), _state(_trained(tmp_path / str(weight), weight)))


def test_a_batch_that_fits_has_room_for_the_turned_images(tmp_path: Path) -> None:
    class Starving(torch.nn.Module):
        """Every second forward pass, that of the turned images, has memory for 16 of them."""

        def __init__(self, body: torch.nn.Module) -> None:
            super().__init__()
            self.body, self.passes = body, 0

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            self.passes += self.training
            if self.training and self.passes % 2 == 0 and len(images) > 16:
                raise torch.OutOfMemoryError("out of memory")
            return self.body(images)

    with pytest.raises(DeviceError, match="batch size of 100; 16 fit"):
        train(_student(tmp_path, wrap=Starving), order=ORDER)

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

from kdpipe import dataset, models
from kdpipe.dataset import Dataset
from kdpipe.distil.losses import make
from kdpipe.distil.objective import Distillation
from kdpipe.distil.rotation import Rotation, turned
from kdpipe.distil.signals import SignalTerms, settle, split
from kdpipe.errors import DeviceError, ModelError, RunError
from kdpipe.models import Model, save_weights
from kdpipe.training.loop import Cost, train, train_together
from kdpipe.training.optimization import Optimisation
from kdpipe.training.runs import RunDirectory
from kdpipe.training.schedule import Schedule, epoch_batches
from kdpipe.training.trainee import Member
from kdpipe.views import Geometry, Renderer, render

SCHEDULE = Schedule(
    epochs=2, batch_size=100, lr=0.05, weight_decay=1e-3, warmup_epochs=0, lr_schedule="constant", data_seed=3, views=2
)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return dataset.load("digits", "train", 200)


class Dropping(torch.nn.Module):
    """A model that draws from torch's generator at every forward pass."""

    def __init__(self, body: torch.nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.body(F.dropout(images, 0.1, self.training))


class Known:
    """Soft targets and signals that are functions of the sample."""

    renderer = None

    def start_epoch(self, view: int, next_view: int | None) -> None:
        pass

    def order(self, samples: np.ndarray, *, data_seed: int, epoch: int) -> None:
        pass

    def skip(self, samples: int) -> None:
        pass

    def logits(self, indices: np.ndarray, pixels: torch.Tensor) -> torch.Tensor:
        return _by_index(indices, 10)

    def answer(self, indices: np.ndarray, pixels: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return self.logits(indices, pixels), {"features:layer2": _by_index(indices, 32)}


def _by_index(indices: np.ndarray, length: int) -> torch.Tensor:
    return torch.sin(torch.from_numpy(indices)[:, None] * torch.arange(1.0, 1 + length))


def _student(digits: Dataset, wrap: Callable[[torch.nn.Module], torch.nn.Module] | None = None) -> Model:
    torch.manual_seed(1)
    model = models.load("resnet8", num_classes=10, fallback_statistics=digits.statistics)
    return model if wrap is None else replace(model, module=wrap(model.module))


def _rotation(model: Model, weight: float = 0.5, seed: int = 4) -> Rotation:
    return Rotation(model.module, model.preset, weight=weight, name=model.name, seed=seed, device=CPU)


def _renderer(digits: Dataset, model: Model) -> Renderer:
    return Renderer(digits, "crop-flip", seed=0, geometry=Geometry.of(model.preset), workers=1)


def _pixels(digits: Dataset, indices: Any = range(200), view: int = 1) -> torch.Tensor:
    return render(digits, "crop-flip", seed=0, indices=indices, view=view)


def _turn(pixels: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    return torch.stack([torch.rot90(image, int(turn), dims=(1, 2)) for image, turn in zip(pixels, turns, strict=True)])


def _says(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return -logits.log_softmax(1).gather(1, labels[:, None]).mean()


def test_each_image_is_turned_by_its_own_quarter_turns() -> None:
    pixels = torch.arange(5 * 3 * 4 * 4, dtype=torch.uint8).reshape(5, 3, 4, 4)
    turns = torch.tensor([3, 0, 2, 1, 1])
    assert torch.equal(turned(pixels, turns), _turn(pixels, turns))
    assert torch.equal(turned(pixels, turns)[3, 0, 0], pixels[3, 0, :, -1])  # counter-clockwise: the right column is up


def test_the_term_is_the_cross_entropy_of_a_linear_head(digits: Dataset) -> None:
    model, pixels = _student(digits), _pixels(digits)
    rotation = _rotation(model)
    model.module.train()
    buffers = {name: value.clone() for name, value in model.module.named_buffers()}
    torch.manual_seed(9)
    found = rotation(model.module, pixels)
    found["rotation"].backward()

    net = _student(digits).module.train()
    weight, bias = (parameter.detach().clone().requires_grad_() for parameter in rotation.head.parameters())
    torch.manual_seed(9)
    turns = torch.randint(4, (200,))
    images = model.preset.normalize(_turn(pixels, turns))
    features = net.layer3(net.layer2(net.layer1(torch.relu(net.bn1(net.conv1(images)))))).mean((2, 3))
    logits = features @ weight.T + bias
    expected = _says(logits, turns)
    expected.backward()
    torch.testing.assert_close(found["rotation"], expected)
    assert found["rotation_top1"] == (logits.argmax(1) == turns).float().mean()
    torch.testing.assert_close(rotation.head.weight.grad, weight.grad)
    torch.testing.assert_close(rotation.head.bias.grad, bias.grad)
    torch.testing.assert_close(model.module.conv1.weight.grad, net.conv1.weight.grad)
    assert model.module.fc.weight.grad is None
    for name, value in model.module.named_buffers():
        assert torch.equal(value, buffers[name]), name


def test_turns_are_drawn_evenly_and_anew(digits: Dataset) -> None:
    model = _student(digits)
    rotation, shown = _rotation(model), []
    corner = torch.zeros(2000, 3, 32, 32, dtype=torch.uint8)
    corner[:, :, 0, 0] = 255

    def forward(images: torch.Tensor) -> torch.Tensor:
        lit = images[:, 0] > images[:, 0].mean()
        shown.append(torch.stack([lit[:, 0, 0], lit[:, -1, 0], lit[:, -1, -1], lit[:, 0, -1]]).int().argmax(0))
        logits: torch.Tensor = model.module(images[:, :, :8, :8])
        return logits

    torch.manual_seed(0)
    rotation(forward, corner)
    rotation(forward, corner)
    for turns in shown:
        counts = torch.bincount(turns, minlength=4)
        assert (counts - 500).abs().max() < 5 * (2000 * 0.25 * 0.75) ** 0.5
    assert 400 < (shown[0] == shown[1]).sum() < 600


def test_the_head_is_drawn_by_the_seed_alone(digits: Dataset) -> None:
    model = _student(digits)
    before = torch.get_rng_state()
    head = _rotation(model).head
    assert torch.equal(before, torch.get_rng_state())
    torch.rand(3)
    assert torch.equal(head.weight, _rotation(model).head.weight)
    assert not torch.equal(head.weight, _rotation(model, seed=5).head.weight)
    assert head.weight.shape == (4, 64)


def test_a_model_without_penultimate_features_is_refused(digits: Dataset) -> None:
    model = _student(digits, lambda body: torch.nn.Sequential(body, torch.nn.Softplus()))
    with pytest.raises(ModelError, match=r"no layer of resnet8 makes its logits.* Leave out --aux"):
        _rotation(model)


def test_the_loop_does_what_a_plain_one_does(digits: Dataset, tmp_path: Path) -> None:
    """Beside a loss on logits and one on features, which must be those of the upright images."""
    model = _student(digits)
    settled = settle(
        split("{features: {layers: {layer2: layer2}, weight: 2}}")[1],
        *(["features:layer2"], model.module),
        **{"size": 32, "name": "resnet8", "source": "s"},
    )
    shapes = {"features:layer2": (32,)}
    signals = SignalTerms(settled, model.module, shapes=shapes, size=32, name="resnet8", seed=4, device=CPU)
    rotation = _rotation(model, weight=0.7)
    initial = {name: value.clone() for name, value in rotation.head.state_dict().items()}
    projection = copy.deepcopy(signals.projections["features"][0])
    torch.manual_seed(9)
    train(
        model.module,
        _renderer(digits, model),
        preset=model.preset,
        schedule=replace(SCHEDULE, batch_size=200),
        distillation=Distillation(Known(), make("kd"), 0.6, 0.4, signals),
        run=RunDirectory(tmp_path / "run"),
        rotation=rotation,
    )
    left = RunDirectory(tmp_path / "run").load_checkpoint()
    assert left is not None
    assert set(left["beside"]) == {*signals.projections.state_dict(), "rotation.weight", "rotation.bias"}
    assert not any("rotation" in name for name in left["model"])

    net = _student(digits).module.train()
    head = torch.nn.Linear(64, 4)
    head.load_state_dict(initial)
    labels = torch.from_numpy(digits.labels.astype(np.int64))
    optimiser = torch.optim.SGD(
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
        pixels = _pixels(digits, rows, 1 + epoch)
        second = net.layer2(net.layer1(torch.relu(net.bn1(net.conv1(model.preset.normalize(pixels))))))
        logits = net.fc(net.layer3(second).mean((2, 3)))
        features = (projection(second.mean((2, 3))) - _by_index(rows, 32)).square().mean()
        kd = 16 * F.kl_div(
            (logits / 4).log_softmax(1),
            (_by_index(rows, 10) / 4).log_softmax(1),
            log_target=True,
            reduction="batchmean",
        )
        statistics = {name: value.clone() for name, value in net.named_buffers()}
        turns = torch.randint(4, (200,))
        images = model.preset.normalize(_turn(pixels, turns))
        body = net.layer3(net.layer2(net.layer1(torch.relu(net.bn1(net.conv1(images))))))
        said = head(body.mean((2, 3)))
        task = _says(said, turns)
        loss = 0.6 * (kd + 2 * features) + 0.4 * _says(logits, labels[rows]) + 0.7 * task
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        for name, value in net.named_buffers():
            value.copy_(statistics[name])
        right = (said.argmax(1) == turns).float().mean()
        expected.append([float(value.detach()) for value in (loss, kd + 2 * features, features, task, right)])
    columns = ("loss", "kd", "features", "rotation", "rotation_top1")
    found = [[row[name] for name in columns] for row in RunDirectory(tmp_path / "run").history()]
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    for name, value in net.state_dict().items():
        torch.testing.assert_close(model.module.state_dict()[name], value, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(rotation.head.weight, head.weight)
    assert not torch.equal(head.weight.detach(), initial["weight"])
    assert not any(part._forward_pre_hooks or part._forward_hooks for part in model.module.modules())


def _trained(
    digits: Dataset,
    run: Path,
    weight: float | None = 0.5,
    *,
    schedule: Schedule = SCHEDULE,
    wrap: Callable[[torch.nn.Module], torch.nn.Module] | None = Dropping,
    stop_after: int = 0,
    **others: Any,
) -> RunDirectory:
    model = _student(digits, wrap)
    steps = iter(range(1, 100))
    torch.manual_seed(9)
    train(
        model.module,
        _renderer(digits, model),
        preset=model.preset,
        schedule=schedule,
        distillation=None,
        run=RunDirectory(run),
        rotation=None if weight is None else _rotation(model, weight),
        should_stop=lambda: next(steps) == stop_after,
        **others,
    )
    save_weights(
        run / "model.safetensors",
        model.module,
        architecture="resnet8",
        preset=model.preset,
        classes=digits.classes,
    )
    return RunDirectory(run)


def _assert_same(run: RunDirectory, other: RunDirectory) -> None:
    """Compare all that the last checkpoints hold, to the bit; times may differ."""
    assert _leaves(run.load_checkpoint()) == _leaves(other.load_checkpoint())


def _leaves(state: Any) -> Any:
    """Return what can be compared with ``==``."""
    if isinstance(state, dict):
        return {key: _leaves(value) for key, value in state.items() if key not in ("seconds", "images_per_second")}
    if isinstance(state, list):
        return list(map(_leaves, state))
    return (state.shape, state.numpy().tobytes()) if isinstance(state, torch.Tensor) else state


def test_the_first_step_is_that_without_the_task_but_for_its_term(digits: Dataset, tmp_path: Path) -> None:
    once = replace(SCHEDULE, epochs=1, batch_size=200)
    runs = [_trained(digits, tmp_path / str(weight), weight, schedule=once) for weight in (None, 0.5, 2.0)]
    without, half, double = (run.history()[0] for run in runs)
    assert "rotation" not in without
    assert "beside" not in (runs[0].load_checkpoint() or {})
    assert without["loss"] == without["ce"] == half["ce"] == double["ce"]
    assert without["train_top1"] == half["train_top1"]
    assert half["rotation"] == double["rotation"]
    for row, weight in ((half, 0.5), (double, 2.0)):
        assert row["loss"] == pytest.approx(row["ce"] + weight * row["rotation"], rel=1e-6)
    plain, helped = ((run.load_checkpoint() or {})["model"] for run in runs[:2])
    for name, value in plain.items():  # the classifier sees no turned image, nor do the running statistics
        untouched = any(part in name for part in (".fc.", "running", "batches"))
        assert torch.equal(value, helped[name]) == untouched, name


def test_samples_without_a_label_count(digits: Dataset, tmp_path: Path) -> None:
    class Partly:
        """The digits, with a label for one in four."""

        labels = np.where(np.arange(200) % 4 == 0, digits.labels, -1)

        def __len__(self) -> int:
            return 200

        def __getattr__(self, name: str) -> Any:
            return getattr(digits, name)

    still = replace(SCHEDULE, epochs=1, batch_size=40, lr=1e-30)
    all_of_them = _trained(digits, tmp_path / "all", schedule=still).history()[0]
    partly: Any = Partly()
    some = _trained(partly, tmp_path / "some", schedule=still).history()[0]
    for name in ("rotation", "rotation_top1"):
        assert some[name] == pytest.approx(all_of_them[name], rel=1e-6)
    assert some["ce"] != pytest.approx(all_of_them["ce"], rel=1e-3)


@pytest.mark.parametrize("step", [1, 2, 3])
def test_stopped_and_resumed_it_ends_with_the_same_bits(digits: Dataset, tmp_path: Path, step: int) -> None:
    whole = _trained(digits, tmp_path / "whole")
    with pytest.raises(RunError, match="stopped at"):
        _trained(digits, tmp_path / "run", stop_after=step)
    _assert_same(_trained(digits, tmp_path / "run", resume=True), whole)
    assert "beside" in (whole.load_checkpoint() or {})


def test_the_saved_model_has_no_head(digits: Dataset, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    run = _trained(digits, tmp_path / "run", wrap=None, optimisation=Optimisation(ema=0.9, amp="bf16"))
    assert load_file(run.weights).keys() <= _student(digits).module.state_dict().keys()
    assert set((run.load_checkpoint() or {})["beside"]) == {"rotation.weight", "rotation.bias"}


@pytest.mark.parametrize("tasks", [(0.5, None, 2.0), (None, 2.0, 0.5), (2.0, 0.5)])
def test_beside_others_each_learns_as_alone(digits: Dataset, tmp_path: Path, tasks: tuple[float | None, ...]) -> None:
    (tmp_path / "fleet").mkdir()
    members, renderer = [], None
    for weight in tasks:
        model = _student(digits, Dropping)
        renderer = renderer or _renderer(digits, model)
        torch.manual_seed(9)
        run = RunDirectory(tmp_path / "fleet" / str(weight))
        rotation = None if weight is None else _rotation(model, weight)
        member = Member(model.module, renderer, model.preset, SCHEDULE, None, run, rotation=rotation)
        members.append(member)
    assert all(isinstance(cost, Cost) for cost in train_together(members))
    for member, weight in zip(members, tasks, strict=True):
        _assert_same(member.run, _trained(digits, tmp_path / str(weight), weight))


def test_a_batch_that_fits_has_room_for_the_turned_images(digits: Dataset, tmp_path: Path) -> None:
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
        _trained(digits, tmp_path / "run", wrap=Starving)

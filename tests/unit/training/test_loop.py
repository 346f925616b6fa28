"""The training loop against a plain PyTorch loop, its own interruption, and cached against live targets."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from kdpipe import dataset, models, open_store
from kdpipe.dataset import Loading
from kdpipe.distil.targets import CachedTargets, LiveTargets
from kdpipe.errors import DivergedError
from kdpipe.pairing.join import join_checked
from kdpipe.teacher.forward import Forward
from kdpipe.testing.doubles import ConstantTargets, differences, small_network
from kdpipe.training.batches import Batches
from kdpipe.training.evaluation import predict
from kdpipe.training.loop import train
from kdpipe.training.objective import cross_entropy
from kdpipe.training.runs import RunDirectory
from kdpipe.training.schedule import Order, epoch_batches, learning_rate
from kdpipe.views import Geometry, Renderer, render
from tests.conftest import Built
from tests.students import ORDER, PRESET, SETTINGS, digits, renderer, student, taught

MEAN, STD = (torch.tensor(values).view(1, 3, 1, 1) for values in (PRESET.mean, PRESET.std))


def test_without_a_teacher_it_is_a_plain_loop(tmp_path: Path) -> None:
    settings = SETTINGS.but(epochs=3)
    ours = student(tmp_path, settings=settings)
    train(ours, order=ORDER)

    model = small_network().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4, nesterov=True)
    step = 0
    for epoch in range(3):
        for rows in epoch_batches(200, batch_size=32, data_seed=3, epoch=epoch):
            pixels = render(digits(), "crop-flip", seed=0, indices=rows, view=1 + epoch % 2, size=16)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, steps=21, warmup=7, peak=0.05)
            loss = F.cross_entropy(model((pixels.float() / 255 - MEAN) / STD), _labels(rows))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
    for (name, mine), other in zip(ours.module.state_dict().items(), model.state_dict().values(), strict=True):
        assert torch.equal(mine, other), name


def _labels(rows: Sequence[int]) -> torch.Tensor:
    return torch.from_numpy(digits().labels[rows]).long()


def test_figures_of_labels_are_means_over_the_labeled_samples(tmp_path: Path) -> None:
    labels = np.where(np.arange(200) % 5 == 0, digits().labels, -1).astype(np.int32)
    images = renderer(replace(digits(), labels=labels))
    frozen = SETTINGS.but(lr=1e-12, epochs=1, weight_decay=0.0)
    ours = student(tmp_path, objective=taught(kd_weight=0.5, ce_weight=0.5), images=images, settings=frozen)
    train(ours, ConstantTargets(*[0.0] * 10), order=ORDER)
    losses, hits = [], []
    for rows in epoch_batches(200, batch_size=32, data_seed=3, epoch=0):
        with torch.no_grad():
            logits = small_network().train()((images(rows, 1).float() / 255 - MEAN) / STD)
        for row, each in zip(rows, logits, strict=True):
            if labels[row] >= 0:
                losses.append(-torch.log_softmax(each.double(), 0)[int(labels[row])].item())
                hits.append(each.argmax().item() == labels[row])
    assert len(losses) == 40
    (row,) = ours.run.history()
    assert row["ce"] == pytest.approx(np.mean(losses), rel=1e-4)
    assert row["train_top1"] == pytest.approx(np.mean(hits))


def test_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    """Where an error of the caller ended it, after an epoch."""
    settings = SETTINGS.but(epochs=3)
    whole, resumed = (student(tmp_path / name, settings=settings) for name in ("whole", "cut"))
    train(whole, order=ORDER)

    class StopError(Exception):
        pass

    def stop_after_second(row: dict[str, float]) -> None:
        if row["epoch"] == 2:
            raise StopError

    with pytest.raises(StopError):
        train(student(tmp_path / "cut", settings=settings, on_epoch=stop_after_second), order=ORDER)
    train(resumed, order=ORDER, resume=True)
    assert not differences(resumed.module.state_dict(), whole.module.state_dict())
    assert [row["epoch"] for row in resumed.run.history()] == [1, 2, 3]


def test_cached_and_live_targets_train_alike(built: Built, tmp_path: Path) -> None:
    store = open_store(built.store)
    teacher = models.load("resnet8", num_classes=10, weights=built.weights, fallback_statistics=digits().statistics)
    images = renderer(size=32)
    curves = {}
    for name, targets in {
        "cache": CachedTargets(store, join_checked(store, digits())),
        "live": LiveTargets(Forward(teacher, device=torch.device("cpu")), None),
    }.items():
        ours = student(tmp_path / name, objective=taught(), images=images, settings=SETTINGS.but(epochs=3))
        train(ours, targets, order=ORDER)
        curves[name] = [row["kd"] for row in ours.run.history()]
    assert curves["cache"] == pytest.approx(curves["live"], rel=2e-3)
    assert curves["cache"][-1] < curves["cache"][0]


@pytest.mark.parametrize(("loading", "place"), [("memory", None), ("memory", 2), ("memory", 0), ("stream", None)])
def test_a_teacher_of_another_input_size_gets_pixels_of_its_size(loading: Loading, place: int | None) -> None:
    """Whether no student, the third or the first of them is of its size; rendered once where one is."""
    seen = []

    def forward(pixels: torch.Tensor) -> torch.Tensor:
        seen.append(pixels)
        return torch.zeros(len(pixels), 10)

    loaded = dataset.load("digits", "train", 200, loading=loading)
    own, *renderers = (
        Renderer(loaded, "crop-flip", seed=0, geometry=Geometry(size, size, "bilinear"), workers=1)
        for size in (48, 32, 16)
    )
    if place is not None:
        renderers.insert(place, own)
    batches = list(Batches(renderers, LiveTargets(forward, own), order=ORDER, batch_size=32, epochs=3).epoch(1)[1])
    drawn = epoch_batches(200, batch_size=32, data_seed=3, epoch=1)
    assert len(seen) == len(drawn)
    for rows, shown, batch in zip(drawn, seen, batches, strict=True):
        assert torch.equal(shown, own(rows, 2))
        assert len(batch.pixels) == 3
        for each, pixels in zip([*renderers, own], batch.pixels, strict=False):
            assert torch.equal(pixels, each(rows, 2))


def test_unlabeled_samples_do_not_count() -> None:
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, -1, 2, -1, 3, 1])
    known = labels >= 0
    torch.testing.assert_close(cross_entropy(logits, labels), F.cross_entropy(logits[known], labels[known]))
    assert cross_entropy(logits, torch.full((6,), -1)).item() == 0.0


def test_divergence_stops_and_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    calls: list[int] = []

    def explode(logits: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return logits.sum() * (float("nan") if len(calls) > 7 else 0.0)

    objective = taught(explode, kd_weight=1.0, ce_weight=1.0)
    with pytest.raises(DivergedError, match="epoch 2"):
        train(student(tmp_path, objective=objective), ConstantTargets(*[0.0] * 10), order=Order(3, views=0))
    state = RunDirectory(tmp_path).load_checkpoint()
    assert state is not None
    assert len(state["history"]) == 1
    assert all(torch.isfinite(value).all() for value in state["model"].values())


def test_predict_leaves_the_mode_as_it_was() -> None:
    """That of each part: a frozen batch norm stays in evaluation mode."""
    module, images = small_network(), renderer(recipe="none")
    first = predict(module.eval(), images, preset=PRESET)
    assert not any(part.training for part in module.modules())
    module.train()[1].eval()
    assert np.array_equal(predict(module, images, preset=PRESET), first)
    assert [name for name, part in module.named_modules() if not part.training] == ["1"]
